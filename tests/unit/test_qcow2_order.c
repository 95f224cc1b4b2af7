/*
 * formats/qcow2-flush.c: the order of what it writes, at every sync.
 *
 * Nothing but a sync orders writes (store.h). So, at each sync, every write since the last one is left on the disk alone,
 * and is missing alone; either way no table may point to what the refcounts call free.
 */
#include <string.h>

#include "formats/qcow2.h"
#include "tests/lib/qcow2-walk.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

typedef struct Write {
    uint64_t offset;
    GBytes *bytes;
} Write;

static struct {
    const StoreOps *real;
    StoreOps ops;
    GByteArray *synced; /* what is on the disk for certain */
    GPtrArray *writes;  /* since then */
    unsigned states;
} cut;

static void write_free(void *data)
{
    Write *write = data;
    g_bytes_unref(write->bytes);
    g_free(write);
}

/* What is synced, with write number `which` alone or with all but that one. */
static void assert_state(unsigned which, bool alone)
{
    g_autofree uint8_t *state = g_memdup2(cut.synced->data, cut.synced->len);
    for (unsigned i = 0; i < cut.writes->len; i++) {
        const Write *write = cut.writes->pdata[i];
        gsize length;
        const void *bytes = g_bytes_get_data(write->bytes, &length);
        if ((i == which) == alone) {
            memcpy(state + write->offset, bytes, length);
        }
    }
    const Write *one = cut.writes->pdata[which];
    g_autofree char *problem = qcow2_walk(state, cut.synced->len, true);
    ck_assert_msg(problem == NULL, "write %u of %u since the sync, at %" PRIu64 ", %s: %s", which,
                  cut.writes->len, one->offset, alone ? "alone" : "missing", problem);
    cut.states++;
}

static int cut_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    for (int i = 0; i < count; i++) {
        g_byte_array_append(bytes, iov[i].iov_base, iov[i].iov_len);
    }
    Write *write = g_new(Write, 1);
    *write = (Write){offset, g_byte_array_free_to_bytes(g_steal_pointer(&bytes))};
    g_ptr_array_add(cut.writes, write);
    return cut.real->pwritev(store, iov, count, offset);
}

static int cut_sync(Store *store)
{
    uint64_t size, known = cut.synced->len;
    const uint8_t *now = store_memory_content(store, &size);
    g_byte_array_set_size(cut.synced, size);
    if (size > known) {
        memset(cut.synced->data + known, 0, size - known);
    }
    for (unsigned i = 0; i < cut.writes->len; i++) {
        assert_state(i, true);
        assert_state(i, false);
    }
    memcpy(cut.synced->data, now, size);
    g_ptr_array_set_size(cut.writes, 0);
    return cut.real->sync(store);
}

static void make_cut(Store *store)
{
    uint64_t size;
    const uint8_t *bytes = store_memory_content(store, &size);
    cut.real = store->ops;
    cut.ops = *store->ops;
    cut.ops.pwritev = cut_pwritev;
    cut.ops.sync = cut_sync;
    cut.synced = g_byte_array_append(g_byte_array_new(), bytes, size);
    cut.writes = g_ptr_array_new_with_free_func(write_free);
    cut.states = 0;
    store->ops = &cut.ops;
}

static void cut_clear(void)
{
    g_byte_array_unref(cut.synced);
    g_ptr_array_unref(cut.writes);
}

/* 64 clusters a refcount block, 64 blocks a cluster of the refcount table. */
static Store *new_store(uint64_t size)
{
    Store *store = store_memory_new("image", NULL, 0);
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, (char *)"cluster_size", (char *)"512");
    g_hash_table_insert(options, (char *)"refcount_bits", (char *)"64");
    FormatCreate how = {.size = size, .options = options};
    ck_assert(format_qcow2.create(store, &how, NULL));
    return store;
}

/* Makes the range data, without writing any: of a cut, only the tables matter here. */
static void reserve(Image *image, uint64_t offset, uint64_t length)
{
    Allocation a = {offset, length}, *list = &a;
    extent_list_init(&a.extents);
    ck_assert_int_eq(format_qcow2.allocate(image, &list, 1), 0);
    ck_assert_int_eq(format_qcow2.commit(image, &list, 1), 0);
    extent_list_clear(&a.extents);
}

/* Every write of the tables, alone and missing, at every sync: blocks and entries of the refcount table for new clusters,
 * new L2 tables, freed clusters used again, and a refcount table that moves. */
START_TEST(flush_needs_no_more_order_than_its_syncs_give)
{
    const uint64_t piece = 24 << 10, pieces = 40;
    g_autoptr(Store) store = new_store(pieces * piece);
    make_cut(store);
    ImageOpen how = {.format = &format_qcow2, .write = true};
    g_autoptr(Image) image = image_open_store(store, &how, NULL, NULL);
    ck_assert(image != NULL);
    uint64_t table = qcow2_state(image)->header.refcount_table_offset;
    for (uint64_t i = 0; i < pieces; i++) {
        reserve(image, i * piece, piece);
        ck_assert_int_eq(qcow2_flush(image), 0);
        if (i % 3 == 2) {
            ck_assert_int_eq(qcow2_unmap(image, (i - 2) * piece, piece, 0), 0);
            ck_assert_int_eq(qcow2_flush(image), 0);
        }
    }
    ck_assert_uint_eq(qcow2_state(image)->header.refcount_table_offset, table);
    /* What nobody refers to fills the rest of what the table can describe. */
    for (Qcow2Run run = {0, 0}; qcow2_state(image)->table_offset == table;) {
        bool fresh;
        ck_assert_int_eq(qcow2_alloc_run(image, 64, &run, &fresh), 0);
    }
    ck_assert_int_eq(qcow2_flush(image), 0);
    ck_assert_uint_ne(qcow2_state(image)->header.refcount_table_offset, table);
    reserve(image, 0, piece);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_gt(cut.states, 500);
    cut_clear();
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("order");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, flush_needs_no_more_order_than_its_syncs_give);
    return suite_run("qcow2_order", tcase);
}
