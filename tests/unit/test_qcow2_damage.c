/*
 * formats/qcow2*.c: changes of images that are damaged, or were made to do harm.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "map/image.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define CLUSTER   UINT64_C(65536)
#define DISK_SIZE (16 * CLUSTER)
#define COPIED    (UINT64_C(1) << 63)
#define HEADER_L1 40 /* offset of l1_table_offset */
#define HEADER_RT 48 /* offset of refcount_table_offset */

static Store *create(void)
{
    Store *store = store_memory_new("image", NULL, 0);
    FormatCreate how = {.size = DISK_SIZE};
    ck_assert(format_qcow2.create(store, &how, NULL));
    return store;
}

static Image *open_image(Store *store)
{
    GError *error = NULL;
    ImageOpen how = {.format = &format_qcow2, .write = true};
    Image *image = image_open_store(store, &how, NULL, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return image;
}

static uint64_t get(Store *store, uint64_t offset)
{
    uint8_t bytes[8];
    ck_assert_int_eq(store_read(store, bytes, 8, offset), 0);
    return load_be64(bytes);
}

static void put(Store *store, uint64_t offset, uint64_t value)
{
    uint8_t bytes[8];
    store_be64(bytes, value);
    ck_assert_int_eq(store_write(store, bytes, 8, offset), 0);
}

/* Writes one guest cluster as the engine does. 0 or what allocate or commit said. */
static int write_cluster(Image *image, uint64_t offset, uint8_t value)
{
    uint8_t data[CLUSTER];
    memset(data, value, sizeof data);
    Allocation a = {.offset = offset, .length = min_u64(CLUSTER, image->size - offset)};
    Allocation *list[] = {&a};
    extent_list_init(&a.extents);
    int r = format_qcow2.allocate(image, list, 1);
    if (r == 0) {
        const Extent *e = &a.extents.items[0];
        ck_assert_int_eq(store_write(e->store, data, a.length, e->host_offset), 0);
        r = format_qcow2.commit(image, list, 1);
    }
    extent_list_clear(&a.extents);
    return r;
}

/* COPIED without a table: nothing was there to change, and unmap changed it. */
START_TEST(unmap_copes_with_an_l1_entry_that_has_copied_but_no_table)
{
    g_autoptr(Store) store = create();
    put(store, get(store, HEADER_L1), COPIED);
    g_autoptr(Image) image = open_image(store);
    ck_assert_int_eq(format_qcow2.unmap(image, CLUSTER, CLUSTER, UNMAP_ZERO | UNMAP_KEEP_SPACE), 0);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(image_map(image, CLUSTER, CLUSTER, &list), 0);
    ck_assert_int_eq(list.items[0].type, EXTENT_ZERO);
    extent_list_clear(&list);
    ck_assert_int_eq(image_finish(image), 0);
}
END_TEST

/* A guest cluster that lies on metadata, or a compressed one that lies in the header's cluster,
 * gave its host cluster back when it was written: the metadata was punched, and then handed out as
 * free space. */
START_TEST(metadata_is_not_freed_with_the_data_that_claims_its_place)
{
    g_autoptr(Store) store = create();
    Image *image = open_image(store);
    ck_assert_int_eq(write_cluster(image, 0, 0x11), 0);
    ck_assert_int_eq(image_finish(image), 0);
    image_unref(image);
    uint64_t l2 = get(store, get(store, HEADER_L1)) & ~COPIED;
    uint64_t block = get(store, get(store, HEADER_RT));
    uint64_t claims[] = {block, l2, get(store, HEADER_L1), get(store, HEADER_RT),
                         UINT64_C(1) << 62 | 512};
    put(store, l2 + 8, claims[_i]);
    image = open_image(store);
    uint64_t before = get(store, claims[_i] & ~(UINT64_C(1) << 62) & ~(CLUSTER - 1));
    ck_assert_int_eq(write_cluster(image, CLUSTER, 0x22), 0);
    int r = 0;
    for (unsigned i = 0; r == 0 && i < 4; i++) {
        r = format_qcow2.flush(image);
    }
    ck_assert_int_eq(r, -EIO);
    ck_assert_int_eq(write_cluster(image, 2 * CLUSTER, 0x33), -EIO);
    image_unref(image);
    ck_assert_uint_eq(get(store, claims[_i] & ~(UINT64_C(1) << 62) & ~(CLUSTER - 1)), before);
    ck_assert_uint_eq(get(store, 72) & 2, 2); /* the corrupt bit */
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("qcow2_damage");
    tcase_add_test(tcase, unmap_copes_with_an_l1_entry_that_has_copied_but_no_table);
    tcase_add_loop_test(tcase, metadata_is_not_freed_with_the_data_that_claims_its_place, 0, 5);
    return suite_run("qcow2_damage", tcase);
}
