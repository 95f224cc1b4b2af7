/* src/engine: requests on a raw disk in memory, from a worker, one kind at a time. The random ones
 * are in tests/crash. */
#include <errno.h>
#include <glib.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "engine/disk.h"
#include "formats/format.h"
#include "latch.h"
#include "store/aio.h"
#include "tests/lib/format-letters.h"
#include "tests/lib/qcow2-walk.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/call.h"
#include "tests/unit/suite.h"

#define DISK_SIZE    (1u << 20)
#define POOL_THREADS 2

static Pool *pool;
static Worker *worker;

/* Submits, waits, leaves the answer in call. */
static int run_call(Call *call, Disk *disk, RequestType type, unsigned flags, uint64_t offset,
                    uint64_t length, void *buffer)
{
    call_start(call, disk, worker, type, flags, offset, length, buffer);
    return call_end(call);
}

static int run(Disk *disk, RequestType type, unsigned flags, uint64_t offset, uint64_t length,
               void *buffer)
{
    Call call;
    int r = run_call(&call, disk, type, flags, offset, length, buffer);
    request_clear(&call.request);
    return r;
}

static Disk *open_disk(Store *store, const Format *format, bool write)
{
    GError *error = NULL;
    ImageOpen how = {.write = write, .format = format};
    g_autoptr(Image) image = image_open_store(store, &how, NULL, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return disk_new(image, pool, image->format_guessed);
}

/* A store whose writes and syncs fail for as long as the test says. */
static struct {
    const StoreOps *real;
    StoreOps ops;
    atomic_int write_error, sync_error; /* negative errno, or 0 */
} failing;

static int failing_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    int r = failing.write_error;
    return r < 0 ? r : failing.real->pwritev(store, iov, count, offset);
}

static int failing_sync(Store *store)
{
    int r = failing.sync_error;
    return r < 0 ? r : failing.real->sync(store);
}

static void make_failing(Store *store)
{
    failing.real = store->ops;
    failing.ops = *store->ops;
    failing.ops.pwritev = failing_pwritev;
    failing.ops.sync = failing_sync;
    failing.write_error = failing.sync_error = 0;
    store->ops = &failing.ops;
}

static Disk *open_new_qcow2(Store *store)
{
    GError *error = NULL;
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    FormatCreate create = {.size = DISK_SIZE, .options = options};
    ck_assert(format_qcow2.create(store, &create, &error));
    make_failing(store);
    return open_disk(store, &format_qcow2, true);
}

START_TEST(disk_reads_what_was_written)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    Disk *disk = open_disk(store, &format_raw, true);
    uint8_t out[70000], in[70000];
    memset(out, 0x5a, sizeof out);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 12345, sizeof out, out), 0);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 12345, sizeof in, in), 0);
    ck_assert_mem_eq(in, out, sizeof in);
    ck_assert_int_eq(run(disk, REQUEST_FLUSH, 0, 0, 0, NULL), 0);
    ck_assert_int_eq(run(disk, REQUEST_ZERO, REQUEST_FUA, 12345, 100, NULL), 0);
    ck_assert_int_eq(run(disk, REQUEST_CACHE, 0, 0, DISK_SIZE, NULL), 0);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 12345, 101, in), 0);
    ck_assert_uint_eq(in[0], 0);
    ck_assert_uint_eq(in[99], 0);
    ck_assert_uint_eq(in[100], 0x5a);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

START_TEST(disk_refuses_changes_when_read_only)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    Disk *disk = open_disk(store, &format_raw, false);
    uint8_t byte = 1;
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, 1, &byte), -EPERM);
    ck_assert_int_eq(run(disk, REQUEST_TRIM, 0, 0, 512, NULL), -EPERM);
    ck_assert_int_eq(run(disk, REQUEST_ZERO, 0, 0, 512, NULL), -EPERM);
    ck_assert_int_eq(run(disk, REQUEST_FLUSH, 0, 0, 0, NULL), 0);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

/* CVE-2008-2004: a guest writes a qcow2 header into its raw disk and names any file of the host as
 * its backing. */
START_TEST(disk_guards_a_guessed_raw_image_against_a_planted_header)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    Disk *disk = open_disk(store, NULL, true);
    uint8_t header[1024] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof header, header), -EPERM);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, 3, header), 0);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 3, 600, header + 3), -EPERM);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 4096, sizeof header, header), 0);
    ck_assert_int_eq(disk_close(disk), 0);

    g_autoptr(Store) declared = store_memory_new("memory", NULL, DISK_SIZE);
    disk = open_disk(declared, &format_raw, true);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof header, header), 0);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

/* Two writes that were looked at beside each other planted the header of which each brought a half. */
START_TEST(disk_guards_a_guessed_raw_image_against_two_halves_of_a_header)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    Disk *disk = open_disk(store, NULL, true);
    uint8_t header[8] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3}, zeroes[8] = {0};
    for (unsigned i = 0; i < 200; i++) {
        Call halves[2];
        ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof zeroes, zeroes), 0);
        call_start(&halves[0], disk, worker, REQUEST_WRITE, 0, 0, 2, header);
        call_start(&halves[1], disk, worker, REQUEST_WRITE, 0, 2, 6, header + 2);
        int first = call_end(&halves[0]), second = call_end(&halves[1]);
        request_clear(&halves[0].request);
        request_clear(&halves[1].request);
        ck_assert_int_eq(min_u64(-first, -second), 0);
        ck_assert_int_eq(max_u64(-first, -second), EPERM);
    }
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

/* What lies behind the first bytes is written, too. */
START_TEST(disk_writes_all_of_a_write_that_begins_in_guarded_bytes)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    Disk *disk = open_disk(store, NULL, true);
    uint8_t out[20000], in[20000];
    memset(out, 0x5a, sizeof out);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, REQUEST_FUA, 100, sizeof out, out), 0);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 100, sizeof in, in), 0);
    ck_assert_mem_eq(in, out, sizeof in);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 4000, 96, out), 0);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

START_TEST(disk_answers_status_from_the_start_of_the_range)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    Disk *disk = open_disk(store, &format_raw, false);
    Call call;
    ck_assert_int_eq(run_call(&call, disk, REQUEST_STATUS, 0, 4096, 8192, NULL), 0);
    ck_assert_uint_ge(call.request.extents.count, 1);
    ck_assert_uint_eq(call.request.extents.items[0].offset, 4096);
    ck_assert_uint_le(extent_list_end(&call.request.extents), 12288);
    request_clear(&call.request);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

/* The write started over for ever: the map of the unit ended in its middle, so that nothing was
 * left to allocate. */
START_TEST(write_over_unreadable_backing_data_fails)
{
    GError *error = NULL;
    g_autoptr(Image) backing = letters_open("DDDDIDDDDDDDDDDD", 7, NULL);
    g_autoptr(Store) store = store_memory_new("memory", NULL, 0);
    FormatCreate create = {
        .size = 65536, .backing_name = "letters", .backing_format = "raw", .options = NULL};
    ck_assert(format_qcow2.create(store, &create, &error));
    ImageOpen how = {.write = true, .format = &format_qcow2};
    g_autoptr(Image) image = image_open_store(store, &how, backing, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    Disk *disk = disk_new(image, pool, false);
    uint8_t bytes[512] = {1};
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof bytes, bytes), -EIO);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 4096, sizeof bytes, bytes), 0);
    ck_assert_uint_eq(bytes[0], 8);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

typedef struct Plug {
    PoolJob job;
    Latch *held, *free;
} Plug;

static void plug_run(PoolJob *job)
{
    Plug *plug = (Plug *)job;
    latch_down(plug->held);
    latch_wait(plug->free);
}

START_TEST(write_that_may_block_allocates_without_the_pool)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, 0);
    Disk *disk = open_new_qcow2(store);
    uint8_t out[65536], in[65536];
    memset(out, 0x5a, sizeof out);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 0, 1, in), 0); /* now the map is known */
    static Plug plugs[POOL_THREADS]; /* static: the pool's threads may look at them after the end */
    static Latch held, free;
    latch_init(&held, POOL_THREADS);
    latch_init(&free, 1);
    for (unsigned i = 0; i < POOL_THREADS; i++) {
        plugs[i] = (Plug){.job.run = plug_run, .held = &held, .free = &free};
        pool_submit(pool, &plugs[i].job);
    }
    latch_wait(&held);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, REQUEST_MAY_BLOCK, 65536, sizeof out, out), 0);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, REQUEST_MAY_BLOCK, 262144, 100, out), 0);
    latch_down(&free);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 65536, sizeof in, in), 0);
    ck_assert_mem_eq(in, out, sizeof in);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 262144, sizeof in, in), 0);
    ck_assert_mem_eq(in, out, 100);
    ck_assert_uint_eq(in[100] | in[sizeof in - 1], 0);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

static int flush(Disk *disk)
{
    return run(disk, REQUEST_FLUSH, 0, 0, 0, NULL);
}

/* What was reserved for it is given back: nothing leaks. */
START_TEST(write_that_fails_keeps_no_space)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, 0);
    Disk *disk = open_new_qcow2(store);
    uint8_t bytes[512] = {1};
    uint64_t size;
    ck_assert_int_eq(run(disk, REQUEST_WRITE, REQUEST_FUA, 0, sizeof bytes, bytes), 0);
    store_memory_fail_writes(store, 0, UINT64_MAX);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 65536, sizeof bytes, bytes), -EIO);
    store_memory_fail_writes(store, 0, 0);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 131072, sizeof bytes, bytes), 0);
    ck_assert_int_eq(disk_close(disk), 0);
    const uint8_t *content = store_memory_content(store, &size);
    g_autofree char *problem = qcow2_walk(content, size, false);
    ck_assert_msg(problem == NULL, "%s", problem);
}
END_TEST

/* Whoever had the image before may have left writes that no sync has covered. */
START_TEST(flush_syncs_at_first_and_then_what_is_new)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    Disk *disk = open_disk(store, &format_raw, true);
    uint8_t bytes[512] = {1};
    uint64_t before = store_memory_syncs(store);
    ck_assert_int_eq(flush(disk), 0);
    ck_assert_uint_eq(store_memory_syncs(store), before + 1);
    ck_assert_int_eq(flush(disk), 0);
    ck_assert_uint_eq(store_memory_syncs(store), before + 1);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof bytes, bytes), 0);
    ck_assert_uint_eq(store_memory_syncs(store), before + 1);
    ck_assert_int_eq(flush(disk), 0);
    ck_assert_uint_eq(store_memory_syncs(store), before + 2);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, REQUEST_FUA, 0, sizeof bytes, bytes), 0);
    ck_assert_int_eq(run(disk, REQUEST_ZERO, REQUEST_FUA, 0, sizeof bytes, NULL), 0);
    ck_assert_int_eq(run(disk, REQUEST_TRIM, REQUEST_FUA, 0, sizeof bytes, NULL), 0);
    ck_assert_uint_eq(store_memory_syncs(store), before + 5);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

/* With nothing written since, the next flush has that of the failed one to do. */
START_TEST(flush_fails_until_a_sync_is_true)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, DISK_SIZE);
    make_failing(store);
    Disk *disk = open_disk(store, &format_raw, true);
    uint8_t bytes[512] = {1};
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof bytes, bytes), 0);
    failing.sync_error = -EIO;
    ck_assert_int_eq(flush(disk), -EIO);
    ck_assert_int_eq(flush(disk), -EIO);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, REQUEST_FUA, 0, sizeof bytes, bytes), -EIO);
    failing.sync_error = 0;
    ck_assert_int_eq(flush(disk), 0);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

START_TEST(flush_whose_tables_fail_makes_the_disk_read_only)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, 0);
    Disk *disk = open_new_qcow2(store);
    uint8_t out[512] = {1}, in[512];
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof out, out), 0);
    failing.write_error = -EIO;
    ck_assert_int_eq(flush(disk), -EIO);
    failing.write_error = 0;
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 0, sizeof out, out), -EIO);
    ck_assert_int_eq(flush(disk), -EIO);
    ck_assert_int_eq(run(disk, REQUEST_READ, 0, 0, sizeof in, in), 0);
    ck_assert_mem_eq(in, out, sizeof in);
    ck_assert_int_eq(disk_close(disk), -EIO);
}
END_TEST

START_TEST(flush_without_space_is_tried_again)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, 0);
    Disk *disk = open_new_qcow2(store);
    uint8_t out[512] = {1}, in[512];
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 65536, sizeof out, out), 0);
    failing.write_error = -ENOSPC;
    ck_assert_int_eq(flush(disk), -ENOSPC);
    ck_assert_int_eq(flush(disk), -ENOSPC);
    failing.write_error = 0;
    ck_assert_int_eq(flush(disk), 0);
    ck_assert_int_eq(run(disk, REQUEST_WRITE, 0, 131072, sizeof out, out), 0);
    ck_assert_int_eq(disk_close(disk), 0);
    disk = open_disk(store, &format_qcow2, false);
    for (uint64_t at = 65536; at <= 131072; at += 65536) {
        ck_assert_int_eq(run(disk, REQUEST_READ, 0, at, sizeof in, in), 0);
        ck_assert_mem_eq(in, out, sizeof in);
    }
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

int main(void)
{
    pool = pool_new(POOL_THREADS);
    aio_init(pool);
    worker = worker_new(0, NULL);
    TCase *tcase = tcase_create("disk");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, disk_reads_what_was_written);
    tcase_add_test(tcase, disk_refuses_changes_when_read_only);
    tcase_add_test(tcase, disk_guards_a_guessed_raw_image_against_a_planted_header);
    tcase_add_test(tcase, disk_guards_a_guessed_raw_image_against_two_halves_of_a_header);
    tcase_add_test(tcase, disk_writes_all_of_a_write_that_begins_in_guarded_bytes);
    tcase_add_test(tcase, write_over_unreadable_backing_data_fails);
    tcase_add_test(tcase, write_that_may_block_allocates_without_the_pool);
    tcase_add_test(tcase, disk_answers_status_from_the_start_of_the_range);
    tcase_add_test(tcase, write_that_fails_keeps_no_space);
    tcase_add_test(tcase, flush_syncs_at_first_and_then_what_is_new);
    tcase_add_test(tcase, flush_fails_until_a_sync_is_true);
    tcase_add_test(tcase, flush_whose_tables_fail_makes_the_disk_read_only);
    tcase_add_test(tcase, flush_without_space_is_tried_again);
    int status = suite_run("disk", tcase);
    pool_free(pool); /* first: its threads may still be waking the worker */
    worker_free(worker);
    return status;
}
