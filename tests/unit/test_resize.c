/* src/engine/resize.c and the resize of formats: a disk that grows and shrinks, against a model of its bytes. */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "base/bytes.h"
#include "engine/disk.h"
#include "engine/request-call.h"
#include "formats/format.h"
#include "store/aio.h"
#include "tests/lib/qcow2-walk.h"
#include "tests/lib/scale.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define KIB         UINT64_C(1024)
#define MIB         (KIB * KIB)
#define LARGEST     (2 * MIB + 600 * KIB)
#define BACKING_END (2 * MIB + 300 * KIB)

static Pool *pool;
static Worker *worker;

/* A disk, and what it must read as. */
typedef struct Subject {
    Store *store;
    Image *backing; /* NULL: none */
    const Format *format;
    Disk *disk;
    uint8_t model[LARGEST];
    uint64_t size;
    uint8_t next; /* value of the next write */
} Subject;

static int request(Subject *s, RequestType type, unsigned flags, uint64_t offset, uint64_t length,
                   void *buffer)
{
    RequestCall call;
    request_call_init(&call, disk_node(s->disk), worker);
    call.request.type = type;
    call.request.flags = flags;
    call.request.offset = offset;
    call.request.length = length;
    call.request.buffer = buffer;
    int r = request_call(&call);
    request_call_clear(&call);
    return r;
}

static Image *open_image(const Subject *s, bool write)
{
    GError *error = NULL;
    ImageOpen how = {.write = write, .format = s->format};
    Image *image = image_open_store(s->store, &how, s->backing, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return image;
}

static void subject_open(Subject *s)
{
    g_autoptr(Image) image = open_image(s, true);
    s->disk = disk_new(image, pool, false);
    s->size = image->size;
}

/* options: of qcow2's create, "name=value" */
static Subject *subject_new(const Format *format, uint64_t size, Image *backing,
                            const char *const *options)
{
    Subject *s = g_new0(Subject, 1);
    g_autoptr(GHashTable) table = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    for (; options != NULL && *options != NULL; options++) {
        char **pair = g_strsplit(*options, "=", 2);
        g_hash_table_insert(table, pair[0], pair[1]);
        g_free(pair);
    }
    FormatCreate how = {.size = size,
                        .options = table,
                        .backing_name = backing != NULL ? "backing" : NULL,
                        .backing_format = backing != NULL ? "raw" : NULL};
    GError *error = NULL;
    s->format = format;
    s->backing = backing;
    s->store = store_memory_new("memory", NULL, 0);
    ck_assert_msg(format->create(s->store, &how, &error), "%s", error ? error->message : "");
    memset(s->model, backing != NULL ? 0xbb : 0, backing != NULL ? BACKING_END : 0);
    subject_open(s);
    return s;
}

static void subject_free(Subject *s)
{
    store_unref(s->store);
    g_free(s);
}

static Image *new_backing(void)
{
    g_autofree uint8_t *bytes = g_malloc(BACKING_END);
    memset(bytes, 0xbb, BACKING_END);
    g_autoptr(Store) store = store_memory_new("backing", bytes, BACKING_END);
    return image_open_store(store, &(ImageOpen){.format = &format_raw}, NULL, NULL);
}

static void write_at(Subject *s, uint64_t offset, uint64_t length)
{
    if (offset >= s->size) {
        return;
    }
    length = min_u64(length, s->size - offset);
    memset(s->model + offset, ++s->next, length);
    ck_assert_int_eq(request(s, REQUEST_WRITE, 0, offset, length, s->model + offset), 0);
}

static void write_some(Subject *s)
{
    write_at(s, 0, 700);
    write_at(s, 40 * KIB, 5 * KIB);
    write_at(s, 2 * MIB - 6 * KIB, 12 * KIB);
    write_at(s, s->size > 1000 ? s->size - 1000 : 0, 1000);
}

static void resize(Subject *s, uint64_t size)
{
    GError *error = NULL;
    ck_assert_msg(disk_resize(s->disk, worker, size, true, &error), "%s",
                  error ? error->message : "");
    ck_assert_uint_eq(disk_node(s->disk)->size, size);
    if (size > s->size) {
        memset(s->model + s->size, 0, size - s->size);
    }
    s->size = size;
}

static void verify(const Subject *s)
{
    g_autofree uint8_t *bytes = g_malloc(LARGEST);
    g_autoptr(Image) image = open_image(s, false);
    ck_assert_uint_eq(image->size, s->size);
    ck_assert_int_eq(chain_read(image, bytes, s->size, 0), 0);
    for (uint64_t at = 0; at < s->size && memcmp(bytes, s->model, s->size) != 0; at++) {
        ck_assert_msg(bytes[at] == s->model[at], "at %u of %u: %02x instead of %02x", (unsigned)at,
                      (unsigned)s->size, bytes[at], s->model[at]);
    }
}

static void fail_check(void *opaque, const char *text)
{
    ck_abort_msg("check: %s", text);
}

static bool can_shrink(const Format *format)
{
    return format != &format_qcow && format != &format_qed && format != &format_parallels &&
           format != &format_vmdk;
}

/* No damage, and no leaks, but for those formats that have no use for what becomes free in the middle of the file. */
static void verify_check(const Subject *s)
{
    bool leaks = s->format == &format_vhd || !can_shrink(s->format);
    CheckResult result = {.message = leaks ? NULL : fail_check};
    g_autoptr(Image) image = open_image(s, true);
    ck_assert(s->format->check(image, CHECK_REPORT_ONLY, &result, NULL));
    ck_assert_uint_eq(result.corruptions + result.check_errors, 0);
}

static void verify_counts(const Subject *s)
{
    if (s->format != &format_qcow2) {
        verify_check(s);
        return;
    }
    uint64_t length;
    const uint8_t *content = store_memory_content(s->store, &length);
    g_autofree char *wrong = qcow2_walk(content, length, false);
    ck_assert_msg(wrong == NULL, "%s", wrong);
}

/* From a size to another to a third: what stays, stays; what comes reads as zeroes, whatever was
 * there or is below; no space is lost. */
static void try_sizes(const Format *format, const char *option, const uint64_t *sizes,
                      unsigned count, Image *backing)
{
    const char *const options[] = {option, NULL};
    /* Scaled, one in seven, which is no factor of any count: each size comes first, second and third. */
    unsigned step = scaled(100) < 100 ? 7 : 1;
    for (unsigned i = 0; i < count * count * count; i += step) {
        unsigned first = i % count, second = i / count % count, third = i / count / count;
        if (!can_shrink(format) && (first > second || second > third)) {
            continue;
        }
        Subject *s = subject_new(format, sizes[first], backing, options);
        write_some(s);
        resize(s, sizes[second]);
        if (i % 2 == 0) { /* also what nobody wrote between */
            write_some(s);
        }
        resize(s, sizes[third]);
        ck_assert_int_eq(disk_close(s->disk), 0);
        verify(s);
        verify_counts(s);
        subject_free(s);
    }
}

START_TEST(qcow2_keeps_what_stays_and_zeroes_what_comes)
{
    /* The L1 table of clusters of 512 bytes must move beyond 2 MiB; one L2 table of clusters of
     * 4 KiB reaches to 2 MiB. */
    const uint64_t small[] = {512, 33 * KIB, 2 * MIB, 2 * MIB + 512, LARGEST};
    const uint64_t large[] = {512, 42 * KIB, 2 * MIB - 512, 2 * MIB + 5 * KIB, LARGEST - 512};
    g_autoptr(Image) backing = new_backing();
    try_sizes(&format_qcow2, "cluster_size=512", small, G_N_ELEMENTS(small), NULL);
    try_sizes(&format_qcow2, "cluster_size=512", small, G_N_ELEMENTS(small), backing);
    try_sizes(&format_qcow2, "cluster_size=4096", large, G_N_ELEMENTS(large), NULL);
    try_sizes(&format_qcow2, "cluster_size=4096", large, G_N_ELEMENTS(large), backing);
}
END_TEST

/* The table of a vhd of blocks of 4 KiB leaves its place when it has more than 512 entries. */
START_TEST(blocks_keep_what_stays_and_zero_what_comes)
{
    const uint64_t sizes[] = {512, 33 * KIB, 2 * MIB, 2 * MIB + 512, LARGEST};
    try_sizes(&format_vhd, "block_size=4096", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_vhd, "block_size=65536", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_vhd, "subformat=fixed", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_vdi, "block_size=4096", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_vdi, "static=on", sizes, G_N_ELEMENTS(sizes), NULL);
}
END_TEST

/* Beyond 4032 KiB the table of a parallels needs the room of the first clusters. */
START_TEST(clusters_move_out_of_the_way_of_the_table)
{
    const uint64_t sizes[] = {512, 33 * KIB, 2 * MIB, LARGEST};
    try_sizes(&format_parallels, "cluster_size=4k", sizes, G_N_ELEMENTS(sizes), NULL);
    Subject *s =
        subject_new(&format_parallels, LARGEST, NULL, (const char *[]){"cluster_size=4k", NULL});
    write_some(s);
    for (uint64_t size = 4033 * KIB; size < 64 * MIB; size *= 2) {
        GError *error = NULL;
        ck_assert_msg(disk_resize(s->disk, worker, size, false, &error), "%s",
                      error ? error->message : "");
    }
    ck_assert_int_eq(disk_close(s->disk), 0);
    g_autofree uint8_t *bytes = g_malloc(LARGEST);
    g_autoptr(Image) image = open_image(s, true);
    ck_assert_int_eq(chain_read(image, bytes, LARGEST, 0), 0);
    ck_assert_mem_eq(bytes, s->model, LARGEST);
    verify_check(s);
    image_finish(image);
    subject_free(s);
}
END_TEST

/* A block is larger than the disks of the model: sizes that need another table are tried by cli test_resize. */
START_TEST(vhdx_keeps_what_stays_and_zeroes_what_comes)
{
    const uint64_t sizes[] = {512, 33 * KIB, 2 * MIB, 2 * MIB + 512, LARGEST};
    try_sizes(&format_vhdx, "block_size=1M", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_vhdx, "subformat=fixed", sizes, G_N_ELEMENTS(sizes), NULL);
}
END_TEST

/* The L1 table of a qcow moves with each 32 KiB of clusters of 512 bytes. */
START_TEST(trees_keep_what_stays_and_zero_what_comes)
{
    const uint64_t sizes[] = {512, 33 * KIB, 2 * MIB, 2 * MIB + 512, LARGEST};
    const uint64_t behind[] = {BACKING_END, BACKING_END + 512, LARGEST};
    g_autoptr(Image) backing = new_backing();
    try_sizes(&format_qcow, "cluster_size=512", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_qcow, "cluster_size=64k", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_qcow, "cluster_size=4k", behind, G_N_ELEMENTS(behind), backing);
    try_sizes(&format_qed, "cluster_size=4k", sizes, G_N_ELEMENTS(sizes), NULL);
    try_sizes(&format_qed, "cluster_size=64k", sizes, G_N_ELEMENTS(sizes), backing);
}
END_TEST

START_TEST(raw_keeps_what_stays_and_zeroes_what_comes)
{
    Subject *s = subject_new(&format_raw, 2 * MIB, NULL, NULL);
    write_some(s);
    resize(s, 40 * KIB + 100);
    resize(s, LARGEST);
    write_some(s);
    resize(s, LARGEST - 1);
    ck_assert_int_eq(disk_close(s->disk), 0);
    verify(s);
    subject_free(s);
}
END_TEST

START_TEST(requests_meet_the_new_end)
{
    Subject *s = subject_new(&format_qcow2, MIB, NULL, NULL);
    uint8_t bytes[4096] = {1};
    ck_assert_int_eq(request(s, REQUEST_WRITE, 0, MIB - 4096, 4096, bytes), 0);
    resize(s, 512 * KIB);
    const RequestType reads[] = {REQUEST_READ, REQUEST_STATUS, REQUEST_CACHE};
    for (unsigned i = 0; i < G_N_ELEMENTS(reads); i++) {
        ck_assert_int_eq(request(s, reads[i], 0, MIB - 4096, 4096, bytes), -EINVAL);
        ck_assert_int_eq(request(s, reads[i], 0, 512 * KIB - 512, 1024, bytes), -EINVAL);
        ck_assert_int_eq(request(s, reads[i], 0, 512 * KIB - 512, 512, bytes), 0);
    }
    const RequestType changes[] = {REQUEST_WRITE, REQUEST_ZERO, REQUEST_TRIM};
    for (unsigned i = 0; i < G_N_ELEMENTS(changes); i++) {
        ck_assert_int_eq(request(s, changes[i], 0, MIB - 65536, 65536, s->model), -ENOSPC);
    }
    resize(s, MIB);
    ck_assert_int_eq(request(s, REQUEST_WRITE, 0, MIB - 4096, 4096, bytes), 0);
    ck_assert_int_eq(disk_close(s->disk), 0);
    verify_counts(s);
    subject_free(s);
}
END_TEST

static void assert_refused(Subject *s, uint64_t size, bool shrink, int code, const char *text)
{
    GError *error = NULL;
    uint64_t before = disk_node(s->disk)->size;
    ck_assert(!disk_resize(s->disk, worker, size, shrink, &error));
    ck_assert_int_eq(error->code, code);
    ck_assert_msg(strstr(error->message, text) != NULL, "%s", error->message);
    ck_assert_uint_eq(disk_node(s->disk)->size, before);
    g_error_free(error);
}

START_TEST(what_cannot_be_is_refused)
{
    const char *const options[] = {"cluster_size=512", NULL};
    Subject *s = subject_new(&format_qcow2, MIB, NULL, options);
    assert_refused(s, KIB, false, EPERM, "--shrink");
    assert_refused(s, UINT64_C(1) << 63, false, EFBIG, "below 2^63");
    assert_refused(s, (UINT64_C(128) << 30) + 1, false, EFBIG, "at most 137438953472");
    ck_assert_int_eq(disk_close(s->disk), 0);
    subject_free(s);

    g_autoptr(Image) backing = new_backing();
    const char *const old[] = {"compat=0.10", NULL};
    s = subject_new(&format_qcow2, MIB, backing, old);
    assert_refused(s, 2 * MIB, false, ENOTSUP, "version 2");
    ck_assert_int_eq(disk_close(s->disk), 0);
    subject_free(s);
}
END_TEST

int main(void)
{
    pool = pool_new(2);
    aio_init(pool);
    worker = worker_new(0, NULL);
    TCase *tcase = tcase_create("resize");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, qcow2_keeps_what_stays_and_zeroes_what_comes);
    tcase_add_test(tcase, blocks_keep_what_stays_and_zero_what_comes);
    tcase_add_test(tcase, vhdx_keeps_what_stays_and_zeroes_what_comes);
    tcase_add_test(tcase, clusters_move_out_of_the_way_of_the_table);
    tcase_add_test(tcase, trees_keep_what_stays_and_zero_what_comes);
    tcase_add_test(tcase, raw_keeps_what_stays_and_zeroes_what_comes);
    tcase_add_test(tcase, requests_meet_the_new_end);
    tcase_add_test(tcase, what_cannot_be_is_refused);
    int status = suite_run("resize", tcase);
    pool_free(pool); /* first: its threads may still be waking the worker */
    worker_free(worker);
    return status;
}
