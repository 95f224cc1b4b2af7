/* src/fastpath/exceptions.c: stores are read as they were written, and damaged ones refused */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "fastpath/exceptions.h"
#include "tests/lib/random.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define CHUNK   4096u
#define RECORDS (CHUNK / 16)
#define BASE    (64u << 10)
#define DISK    (16u << 20)

static uint8_t contents[CHUNK];

/* A store with count exceptions: the i-th is of chunk (i * step) % chunks of the disk. */
static Store *store_with(uint64_t count, uint64_t step)
{
    Store *store = store_memory_new("store", NULL, BASE);
    ExceptionWriter writer;
    ck_assert_int_eq(exceptions_writer_init(&writer, store, BASE, CHUNK), 0);
    for (uint64_t i = 0; i < count; i++) {
        memset(contents, 'a' + i % 26, CHUNK);
        ck_assert_int_eq(exceptions_append(&writer, i * step % (DISK / CHUNK), contents), 0);
    }
    return store;
}

static void put_record(Store *store, uint64_t area_chunk, uint64_t index, uint64_t origin,
                       uint64_t at)
{
    uint8_t record[16];
    store_le64(record, origin);
    store_le64(record + 8, at);
    ck_assert_int_eq(
        store_write(store, record, sizeof record, BASE + area_chunk * CHUNK + index * 16), 0);
}

static void put_u32(Store *store, uint64_t offset, uint32_t value)
{
    uint8_t bytes[4];
    store_le32(bytes, value);
    ck_assert_int_eq(store_write(store, bytes, sizeof bytes, BASE + offset), 0);
}

static void refused(Store *store, int code, const char *words)
{
    g_autoptr(GError) error = NULL;
    Exceptions list;
    ck_assert(!exceptions_read(store, BASE, DISK, &list, &error));
    ck_assert_int_eq(error->code, code);
    ck_assert_msg(strstr(error->message, words), "%s", error->message);
    ck_assert_ptr_null(list.items);
}

static Exceptions accepted(Store *store)
{
    g_autoptr(GError) error = NULL;
    Exceptions list;
    ck_assert_msg(exceptions_read(store, BASE, DISK, &list, &error), "%s",
                  error ? error->message : "");
    return list;
}

START_TEST(exceptions_read_what_was_written)
{
    static const uint64_t counts[] = {
        0, 1, 2, RECORDS - 1, RECORDS, RECORDS + 1, 2 * RECORDS, 3 * RECORDS - 1, 3 * RECORDS};
    const uint64_t step = 1021; /* odd: no chunk of the disk twice */
    uint64_t count = counts[_i];
    g_autoptr(Store) store = store_with(count, step);
    Exceptions list = accepted(store);
    ck_assert_uint_eq(list.count, count);
    ck_assert_uint_eq(list.chunk, CHUNK);
    ck_assert(list.valid);
    ck_assert_uint_eq(list.chunks_used, 1 + count / RECORDS + 1 + count);
    for (uint64_t i = 0; i < count; i++) {
        const Exception *item = &list.items[i];
        ck_assert(i == 0 || list.items[i - 1].origin < item->origin);
        uint64_t number =
            (item->store - 1) / (RECORDS + 1) * RECORDS + (item->store - 1) % (RECORDS + 1) - 1;
        ck_assert_uint_eq(number * step % (DISK / CHUNK), item->origin);
        uint8_t byte;
        ck_assert_int_eq(store_read(store, &byte, 1, exceptions_offset(&list, BASE, item->store)),
                         0);
        ck_assert_uint_eq(byte, 'a' + number % 26);
    }
    exceptions_clear(&list);
}
END_TEST

START_TEST(exceptions_of_a_store_that_was_never_used)
{
    g_autoptr(Store) store = store_memory_new("store", NULL, BASE + 8 * CHUNK);
    Exceptions list = accepted(store);
    ck_assert_uint_eq(list.count, 0);
    ck_assert_uint_eq(list.chunk, 0);
    ck_assert(list.valid);
    g_autoptr(Store) empty = store_memory_new("store", NULL, BASE);
    list = accepted(empty);
    ck_assert_uint_eq(list.count, 0);
    g_autoptr(Store) shorter = store_memory_new("store", NULL, BASE - 1);
    refused(shorter, EUCLEAN, "begins at");
}
END_TEST

START_TEST(exceptions_of_a_store_that_the_kernel_gave_up)
{
    g_autoptr(Store) store = store_with(5, 3);
    put_u32(store, 4, 0);
    Exceptions list = accepted(store);
    ck_assert(!list.valid);
    ck_assert_uint_eq(list.count, 5);
    exceptions_clear(&list);
}
END_TEST

START_TEST(exceptions_headers_that_are_refused)
{
    static const struct {
        uint64_t offset;
        uint32_t value;
        int code;
        const char *words;
    } cases[] = {
        {0, 0x70416e54, EUCLEAN, "must be 0x70416e53"},
        {8, 2, ENOTSUP, "version 2"},
        {8, 0, ENOTSUP, "version 0"},
        {12, 0, EUCLEAN, "is 0 sectors"},
        {12, 7, EUCLEAN, "is 7 sectors"},
        {12, 0x80000000, EUCLEAN, "sectors"},
        {12, 32768, EUCLEAN, "at most 16384"},
    };
    g_autoptr(Store) store = store_with(3, 1);
    put_u32(store, cases[_i].offset, cases[_i].value);
    refused(store, cases[_i].code, cases[_i].words);
}
END_TEST

START_TEST(exceptions_records_that_are_refused)
{
    static const struct {
        uint64_t origin, at;
        const char *words;
    } cases[] = {
        {DISK / CHUNK, 9, "of the disk: must be below"},
        {UINT64_MAX, 9, "of the disk: must be below"},
        {9, 4000, "cut short"},
        {9, UINT64_MAX, "cut short"},
        {9, UINT64_MAX / CHUNK + 4, "cut short"}, /* wraps to a small offset */
        {9, 1, "the store's own"},
        {9, 1 + (RECORDS + 1), "the store's own"},
        {9, 3, "same chunk of the store"},
        {1, 9, "same chunk of the disk"},
    };
    g_autoptr(Store) store = store_with(3, 1);
    ck_assert_int_eq(store_truncate(store, BASE + (RECORDS + 8) * CHUNK), 0);
    put_record(store, 1, 3, cases[_i].origin, cases[_i].at);
    refused(store, EUCLEAN, cases[_i].words);
}
END_TEST

START_TEST(exceptions_of_stores_that_were_cut_short)
{
    g_autoptr(Store) store = store_with(RECORDS + 3, 1);
    uint64_t size = store_size(store);
    ck_assert_int_eq(store_truncate(store, size - 1), 0);
    refused(store, EUCLEAN, "cut short");
    /* just before the second area: the first is full, so there must be one */
    ck_assert_int_eq(store_truncate(store, BASE + (1 + RECORDS + 1) * CHUNK), 0);
    refused(store, EUCLEAN, "cut short");
    ck_assert_int_eq(store_truncate(store, BASE + 100), 0);
    refused(store, EUCLEAN, "cut short");
}
END_TEST

START_TEST(exceptions_of_an_area_that_was_torn)
{
    g_autoptr(Store) store = store_with(70, 1);
    static const uint8_t zeroes[512];
    /* Records 32 to 63 have not reached the disk, later ones have: the list ends before them. */
    ck_assert_int_eq(store_write(store, zeroes, sizeof zeroes, BASE + CHUNK + 512), 0);
    Exceptions list = accepted(store);
    ck_assert_uint_eq(list.count, 32);
    exceptions_clear(&list);
}
END_TEST

START_TEST(exceptions_in_no_order)
{
    g_autoptr(Store) store = store_with(0, 1);
    ck_assert_int_eq(store_truncate(store, BASE + (RECORDS + 8) * CHUNK), 0);
    for (uint64_t i = 0; i < 100; i++) {
        put_record(store, 1, i, (i * 37) % 100, 2 + (i * 61) % 100);
    }
    Exceptions list = accepted(store);
    for (uint64_t i = 0; i < 100; i++) {
        ck_assert_uint_eq(list.items[i].origin, i);
    }
    exceptions_clear(&list);
}
END_TEST

START_TEST(exceptions_sizes)
{
    for (uint64_t chunks = 0; chunks < 4 * RECORDS; chunks++) {
        uint64_t fit = exceptions_fit_size(chunks * CHUNK + 17, CHUNK) / CHUNK;
        bool before_area = chunks > 1 && (chunks - 1) % (RECORDS + 1) == 0;
        ck_assert_uint_eq(fit, before_area ? chunks - 1 : chunks);
        /* the full size holds all contents, and all areas that these need */
        uint64_t full = exceptions_full_size(chunks * CHUNK, CHUNK) / CHUNK;
        ck_assert_uint_eq(full, 1 + chunks + chunks / RECORDS + 1);
        ck_assert_uint_eq(exceptions_fit_size(full * CHUNK, CHUNK), full * CHUNK);
    }
}
END_TEST

START_TEST(exceptions_of_any_damage_end)
{
    Random random = random_new(_i);
    g_autoptr(Store) store = store_with(1 + random_below(&random, 2 * RECORDS), 1);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t bytes[8];
        store_le64(bytes, random_next(&random) >> random_below(&random, 64));
        uint64_t size = random_percent(&random, 50) ? 2 * CHUNK : store_size(store) - BASE;
        ck_assert_int_eq(store_write(store, bytes, 1 + random_below(&random, 8),
                                     BASE + random_below(&random, size)),
                         0);
    }
    g_autoptr(GError) error = NULL;
    Exceptions list;
    bool ok = exceptions_read(store, BASE, DISK, &list, &error);
    ck_assert(ok == (error == NULL));
    for (uint64_t i = 0; i < list.count; i++) {
        ck_assert(range_within(exceptions_offset(&list, BASE, list.items[i].store), list.chunk,
                               store_size(store)));
    }
    exceptions_clear(&list);
}
END_TEST

/* Stores that Linux 6.1 has written (dmsetup, a disk of 1 MiB), cut after what is in use. */
static Exceptions kernel_store(const char *name, Store **store)
{
    const char *source = g_getenv("COWNBD_SOURCE");
    g_autofree char *path =
        g_build_filename(source ? source : ".", "tests/fuzz/seeds/exceptions", name, NULL);
    g_autofree char *bytes = NULL;
    gsize size;
    Exceptions list;
    ck_assert_msg(g_file_get_contents(path, &bytes, &size, NULL), "%s", path);
    *store = store_memory_new(path, bytes, size);
    ck_assert(exceptions_read(*store, 0, 1 << 20, &list, NULL));
    return list;
}

static char letter_of(const Exceptions *list, Store *store, uint64_t origin, unsigned at)
{
    uint8_t letter = '?';
    for (uint64_t i = 0; i < list->count; i++) {
        if (list->items[i].origin == origin) {
            ck_assert_int_eq(store_read(store, &letter, 1,
                                        exceptions_offset(list, 0, list->items[i].store) + at),
                             0);
        }
    }
    return letter;
}

START_TEST(exceptions_of_the_kernel_in_two_areas)
{
    g_autoptr(Store) store = NULL;
    Exceptions list = kernel_store("kernel-512", &store);
    ck_assert_uint_eq(list.chunk, 512);
    ck_assert_uint_eq(list.count, 8 + 36);
    ck_assert_uint_eq(list.chunks_used, 47); /* as dmsetup status said, in sectors */
    ck_assert_int_eq(letter_of(&list, store, 0, 0), 'a');
    ck_assert_int_eq(letter_of(&list, store, 2047, 511), 'a');
    ck_assert_int_eq(letter_of(&list, store, 5, 0), 'b');
    ck_assert_int_eq(letter_of(&list, store, 200, 0), 'c');
    ck_assert_int_eq(letter_of(&list, store, 235, 0), 'c');
    ck_assert_int_eq(letter_of(&list, store, 236, 0), '?');
    exceptions_clear(&list);
}
END_TEST

START_TEST(exceptions_of_the_kernel_copied_from_the_origin)
{
    g_autoptr(Store) store = NULL;
    Exceptions list = kernel_store("kernel-4k", &store);
    ck_assert_uint_eq(list.chunk, 4096);
    ck_assert_uint_eq(list.chunks_used, 7);
    ck_assert_int_eq(letter_of(&list, store, 0, 5 * 512 - 1), 'o');
    ck_assert_int_eq(letter_of(&list, store, 0, 5 * 512 % 4096), 'a');
    ck_assert_int_eq(letter_of(&list, store, 255, 0), 'b');
    ck_assert_int_eq(letter_of(&list, store, 10, 7 * 512), 'd');
    ck_assert_int_eq(letter_of(&list, store, 11, 0), 'd');
    ck_assert_int_eq(letter_of(&list, store, 11, 512), 'o');
    exceptions_clear(&list);
}
END_TEST

START_TEST(exceptions_of_stores_that_the_kernel_has_filled)
{
    g_autoptr(Store) invalid = NULL, overflowed = NULL;
    Exceptions list = kernel_store("kernel-invalid", &invalid);
    ck_assert(!list.valid);
    ck_assert_uint_eq(list.count, 30);
    exceptions_clear(&list);
    list = kernel_store("kernel-overflow", &overflowed);
    ck_assert(list.valid);
    ck_assert_uint_eq(list.count, 6);
    ck_assert_uint_eq(list.chunks_used, 8);
    exceptions_clear(&list);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("exceptions");
    tcase_add_loop_test(tcase, exceptions_read_what_was_written, 0, 9);
    tcase_add_test(tcase, exceptions_of_a_store_that_was_never_used);
    tcase_add_test(tcase, exceptions_of_a_store_that_the_kernel_gave_up);
    tcase_add_loop_test(tcase, exceptions_headers_that_are_refused, 0, 7);
    tcase_add_loop_test(tcase, exceptions_records_that_are_refused, 0, 9);
    tcase_add_test(tcase, exceptions_of_stores_that_were_cut_short);
    tcase_add_test(tcase, exceptions_of_an_area_that_was_torn);
    tcase_add_test(tcase, exceptions_in_no_order);
    tcase_add_test(tcase, exceptions_sizes);
    tcase_add_loop_test(tcase, exceptions_of_any_damage_end, 0, 300);
    tcase_add_test(tcase, exceptions_of_the_kernel_in_two_areas);
    tcase_add_test(tcase, exceptions_of_the_kernel_copied_from_the_origin);
    tcase_add_test(tcase, exceptions_of_stores_that_the_kernel_has_filled);
    return suite_run("exceptions", tcase);
}
