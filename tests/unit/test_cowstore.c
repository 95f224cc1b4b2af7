/* src/fastpath/cowstore.c: whose store it is, and what is refused */
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "fastpath/cowstore.h"
#include "fastpath/snapshot-store.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define HEADER  144
#define CHECKED 112

static const CowstoreHeader some_header = {
    .state = COWSTORE_FOLDING,
    .chunk = 65536,
    .folded_to = 77,
    .origin = {.disk_size = 1234567, .whole = {1, 2, 3}, .below = {4, 5, 6}},
};

static Store *store_with_header(const CowstoreHeader *header)
{
    Store *store = store_memory_new("store", NULL, COWSTORE_BASE);
    ck_assert_int_eq(cowstore_write_header(store, header), 0);
    return store;
}

/* Changes a number and makes the digest fit again. */
static void forge(Store *store, uint64_t offset, uint32_t value)
{
    uint8_t bytes[HEADER];
    gsize length = 32;
    ck_assert_int_eq(store_read(store, bytes, sizeof bytes, 0), 0);
    store_le32(bytes + offset, value);
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_checksum_update(sum, bytes, CHECKED);
    g_checksum_get_digest(sum, bytes + CHECKED, &length);
    ck_assert_int_eq(store_write(store, bytes, sizeof bytes, 0), 0);
}

START_TEST(cowstore_header_is_read_as_it_was_written)
{
    CowstoreHeader header;
    g_autoptr(Store) store = store_with_header(&some_header);
    ck_assert(cowstore_read_header(store, &header, NULL));
    ck_assert_int_eq(header.state, COWSTORE_FOLDING);
    ck_assert_uint_eq(header.chunk, 65536);
    ck_assert_uint_eq(header.folded_to, 77);
    ck_assert_uint_eq(header.origin.disk_size, 1234567);
    ck_assert_mem_eq(header.origin.whole, some_header.origin.whole, COWSTORE_DIGEST);
    ck_assert_mem_eq(header.origin.below, some_header.origin.below, COWSTORE_DIGEST);
}
END_TEST

START_TEST(cowstore_header_with_any_byte_changed_is_refused)
{
    g_autoptr(Store) store = store_with_header(&some_header);
    uint8_t byte;
    CowstoreHeader header;
    ck_assert_int_eq(store_read(store, &byte, 1, _i), 0);
    byte ^= 1;
    ck_assert_int_eq(store_write(store, &byte, 1, _i), 0);
    ck_assert(!cowstore_read_header(store, &header, NULL));
}
END_TEST

START_TEST(cowstore_header_with_impossible_numbers_is_refused)
{
    static const struct {
        uint64_t offset;
        uint32_t value;
        int code;
    } cases[] = {
        {8, 2, ENOTSUP},        {12, 0, EUCLEAN},        {12, 4, EUCLEAN},   {16, 0, EUCLEAN},
        {20, 1, EUCLEAN},       {32, 0, EUCLEAN},        {32, 512, EUCLEAN}, {32, 12288, EUCLEAN},
        {32, 1 << 21, EUCLEAN}, {32, 1u << 31, EUCLEAN},
    };
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_with_header(&some_header);
    CowstoreHeader header;
    forge(store, cases[_i].offset, cases[_i].value);
    ck_assert(!cowstore_read_header(store, &header, &error));
    ck_assert_int_eq(error->code, cases[_i].code);
}
END_TEST

/* ---- whose store --------------------------------------------------------------------------- */

static void write_file(const char *path, char letter, off_t offset, struct timespec time)
{
    char bytes[4096];
    memset(bytes, letter, sizeof bytes);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, 8 << 20), 0);
    ck_assert_int_eq(pwrite(fd, bytes, sizeof bytes, offset), sizeof bytes);
    ck_assert_int_eq(futimens(fd, (struct timespec[]){time, time}), 0);
    close(fd);
}

static bool fits(const char *path, CowstoreHeader *header)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_memory_new("store", NULL, COWSTORE_BASE);
    g_autoptr(Image) image = image_open(path, &(ImageOpen){.fold = true}, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    bool good = cowstore_check_origin(store, header, image, &error);
    ck_assert(good || error->code == EINVAL);
    return good;
}

START_TEST(cowstore_belongs_to_the_image_as_it_was)
{
    static const struct timespec then = {.tv_sec = 1000000000, .tv_nsec = 5};
    static const struct timespec later = {.tv_sec = 1000000000, .tv_nsec = 6};
    g_autofree char *folder = g_dir_make_tmp("cownbd-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(folder, "disk.raw", NULL);
    CowstoreHeader header = {.state = COWSTORE_OPEN, .chunk = 4096};
    write_file(path, 'a', 4 << 20, then);
    g_autoptr(Image) image = image_open(path, &(ImageOpen){.fold = true}, NULL);
    ck_assert(cowstore_origin(image, &header.origin, NULL));
    g_clear_pointer(&image, image_unref);
    ck_assert(fits(path, &header));
    write_file(path, 'a', 4 << 20, later); /* another time */
    ck_assert(!fits(path, &header));
    header.state = COWSTORE_FOLDING; /* the fold itself has done that */
    ck_assert(fits(path, &header));
    header.state = COWSTORE_OPEN;
    write_file(path, 'b', 1 << 20, then); /* the same time, other bytes in the sample */
    ck_assert(!fits(path, &header));
    write_file(path, '\0', 1 << 20, then);
    ck_assert(fits(path, &header));
    header.origin.disk_size++;
    ck_assert(!fits(path, &header));
    g_unlink(path);
    g_rmdir(folder);
}
END_TEST

START_TEST(cowstore_chunks_grow_with_the_disk)
{
    ck_assert_uint_eq(snapshot_store_chunk(0), 16 << 10);
    ck_assert_uint_eq(snapshot_store_chunk(256ull << 30), 16 << 10);
    ck_assert_uint_eq(snapshot_store_chunk((256ull << 30) + 1), 16 << 10);
    ck_assert_uint_eq(snapshot_store_chunk(257ull << 30), 32 << 10);
    ck_assert_uint_eq(snapshot_store_chunk(1ull << 40), 64 << 10);
    ck_assert_uint_eq(snapshot_store_chunk(INT64_MAX), 1 << 20);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("cowstore");
    tcase_add_test(tcase, cowstore_header_is_read_as_it_was_written);
    tcase_add_loop_test(tcase, cowstore_header_with_any_byte_changed_is_refused, 0, HEADER);
    tcase_add_loop_test(tcase, cowstore_header_with_impossible_numbers_is_refused, 0, 10);
    tcase_add_test(tcase, cowstore_belongs_to_the_image_as_it_was);
    tcase_add_test(tcase, cowstore_chunks_grow_with_the_disk);
    return suite_run("cowstore", tcase);
}
