/*
 * src/engine/lease.c, lease-map.c, reclaim.c, rangeset.c
 *
 * The long test is a disk under a holder that is all that the kernel would be: a table of lines, a
 * device whose writes go straight to the host file where there is a line and to the disk as
 * requests elsewhere, and a suspend that waits for all of them. Another client writes and zeroes
 * beside it. Every block has one owner, who knows what it must hold.
 */
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/thread.h"
#include "engine/disk-impl.h"
#include "engine/lease.h"
#include "formats/format.h"
#include "latch.h"
#include "store/aio.h"
#include "store/store-file.h"
#include "tests/lib/random.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/call.h"
#include "tests/unit/suite.h"

#define UNIT  4096u
#define UNITS 64u
#define SIZE  (UNITS * UNIT)

static Pool *pool;
static Worker *worker;

/* Every other write may block. */
static void start(Call *call, Disk *disk, RequestType type, uint64_t offset, uint64_t length,
                  void *buffer)
{
    static atomic_uint calls;
    unsigned flags = type == REQUEST_WRITE && calls++ % 2 ? REQUEST_MAY_BLOCK : 0;
    call_start(call, disk, worker, type, flags, offset, length, buffer);
}

static void end(Call *call)
{
    ck_assert_int_eq(call_end(call), 0);
    request_clear(&call->request);
}

static void run(Disk *disk, RequestType type, uint64_t offset, uint64_t length, void *buffer)
{
    Call call;
    start(&call, disk, type, offset, length, buffer);
    end(&call);
}

static bool is_done(Call *call)
{
    with_mutex(&call->latch.lock);
    return call->latch.count == 0;
}

/* An empty qcow2 with units of 4 KiB. */
static Disk *disk_on(Store *store)
{
    GError *error = NULL;
    GHashTable *options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, (void *)"cluster_size", (void *)"4096");
    FormatCreate how = {.size = SIZE, .options = options};
    ck_assert_msg(format_qcow2.create(store, &how, &error), "%s", error ? error->message : "");
    g_hash_table_destroy(options);
    ImageOpen open = {.write = true, .format = &format_qcow2};
    g_autoptr(Image) image = image_open_store(store, &open, NULL, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return disk_new(image, pool, false);
}

static Disk *disk_in_memory(void)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, 0);
    return disk_on(store);
}

/* ---- single steps ---- */

typedef struct Counter {
    LeaseHolder holder;
    atomic_uint recalls;
} Counter;

static void count_recall(LeaseHolder *holder)
{
    ((Counter *)holder)->recalls++;
}

static void take(Disk *disk, uint64_t offset, uint64_t length)
{
    Range range = {offset, length};
    lease_begin(disk);
    ck_assert(lease_commit(disk, &range, 1));
    lease_settle(disk);
}

START_TEST(lease_parks_a_change_until_its_range_is_given_back)
{
    Disk *disk = disk_in_memory();
    Counter counter = {.holder.recall = count_recall};
    uint8_t bytes[2 * UNIT] = {1};
    Call zero, read;
    ck_assert(lease_attach(disk, &counter.holder));
    ck_assert(!lease_attach(disk, &counter.holder));
    run(disk, REQUEST_WRITE, 0, sizeof bytes, bytes);
    take(disk, 0, 2 * UNIT);
    start(&zero, disk, REQUEST_ZERO, UNIT, UNIT, NULL);
    while (counter.recalls == 0) {
        g_usleep(1000);
    }
    ck_assert(lease_wanted(disk));
    /* It stands in nobody's way: reads and writes of the same unit go on. */
    start(&read, disk, REQUEST_READ, UNIT, UNIT, bytes);
    end(&read);
    run(disk, REQUEST_WRITE, UNIT, UNIT, bytes);
    ck_assert(!is_done(&zero));
    Range kept = {0, UNIT};
    ck_assert(lease_commit(disk, &kept, 1));
    ck_assert(!is_done(&zero)); /* the kernel may still fall back to what it had */
    lease_settle(disk);
    end(&zero);
    ck_assert(!lease_wanted(disk));
    lease_detach(disk);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

START_TEST(lease_cancel_keeps_what_was_held)
{
    Disk *disk = disk_in_memory();
    Counter counter = {.holder.recall = count_recall};
    uint8_t bytes[UNIT] = {1};
    Call zero;
    ck_assert(lease_attach(disk, &counter.holder));
    run(disk, REQUEST_WRITE, 0, UNIT, bytes);
    take(disk, 0, UNIT);
    ck_assert(lease_commit(disk, NULL, 0));
    lease_cancel(disk);
    start(&zero, disk, REQUEST_ZERO, 0, UNIT, NULL);
    while (counter.recalls == 0) {
        g_usleep(1000);
    }
    lease_detach(disk); /* parked changes go on */
    end(&zero);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

START_TEST(lease_write_through_flushes_before_it_answers)
{
    Disk *disk = disk_in_memory();
    Counter counter = {.holder.recall = count_recall};
    uint8_t bytes[UNIT] = {1};
    ck_assert(lease_attach(disk, &counter.holder));
    run(disk, REQUEST_WRITE, 0, UNIT, bytes);
    ck_assert(disk->has_unsynced && disk->image->format->is_dirty(disk->image));
    lease_write_through(disk, true);
    for (unsigned unit = 0; unit < 3; unit++) { /* in place, and two that are new */
        run(disk, REQUEST_WRITE, unit * UNIT, UNIT, bytes);
        ck_assert(!disk->has_unsynced && !disk->image->format->is_dirty(disk->image));
    }
    run(disk, REQUEST_TRIM, UNIT, UNIT, NULL);
    ck_assert(!disk->has_unsynced);
    lease_detach(disk);
    run(disk, REQUEST_WRITE, 0, UNIT, bytes);
    ck_assert(disk->has_unsynced);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

START_TEST(lease_is_not_taken_of_what_changes_meanwhile)
{
    Disk *disk = disk_in_memory();
    Counter counter = {.holder.recall = count_recall};
    uint8_t bytes[UNIT] = {1};
    Range range = {0, UNIT}, other = {UNIT, UNIT};
    RangeSet unfit = {0};
    ck_assert(lease_attach(disk, &counter.holder));
    run(disk, REQUEST_WRITE, 0, UNIT, bytes);
    lease_begin(disk);
    run(disk, REQUEST_ZERO, 0, UNIT, NULL);
    lease_unfit(disk, &unfit);
    ck_assert(rangeset_overlaps(&unfit, 0, UNIT));
    ck_assert(!rangeset_overlaps(&unfit, UNIT, UNIT));
    ck_assert(!lease_commit(disk, &range, 1));
    lease_begin(disk);
    ck_assert(lease_commit(disk, &other, 1));
    lease_settle(disk);
    rangeset_clear(&unfit);
    lease_detach(disk);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

START_TEST(lease_new_bytes_counts_what_was_allocated)
{
    Disk *disk = disk_in_memory();
    uint8_t bytes[3 * UNIT] = {1};
    run(disk, REQUEST_WRITE, UNIT + 1, UNIT, bytes);
    ck_assert_uint_eq(lease_new_bytes(disk), 2 * UNIT);
    run(disk, REQUEST_WRITE, UNIT, UNIT, bytes);
    ck_assert_uint_eq(lease_new_bytes(disk), 2 * UNIT);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

static void add_data(void *argument, const Extent *extent)
{
    *(uint64_t *)argument += extent->type == EXTENT_DATA ? extent->length : 0;
}

START_TEST(reclaim_gives_back_units_that_are_holes_of_the_file)
{
    char path[] = "/tmp/cownbd-lease-XXXXXX";
    int fd = mkstemp(path);
    g_autoptr(Store) store = store_file_from_fd(fd, path, STORE_OPEN_WRITE, NULL);
    Disk *disk = disk_on(store);
    uint8_t bytes[8 * UNIT], read[8 * UNIT];
    uint64_t before = 0, after = 0;
    ExtentList list;
    memset(bytes, 5, sizeof bytes);
    run(disk, REQUEST_WRITE, 0, sizeof bytes, bytes);
    ck_assert_int_eq(lease_map(disk, add_data, &before), 0);
    extent_list_init(&list);
    ck_assert_int_eq(chain_map(disk->image, 0, sizeof bytes, 0, &list), 0);
    ck_assert_uint_eq(list.count, 1);
    uint64_t host = list.items[0].host_offset;
    extent_list_clear(&list);
    ck_assert_int_eq(store_punch(store, host + 2 * UNIT - 512, 3 * UNIT, STORE_PUNCH_FREE), 0);
    memset(bytes + 2 * UNIT - 512, 0, 3 * UNIT);
    run(disk, REQUEST_RECLAIM, 0, SIZE, NULL);
    ck_assert_int_eq(lease_map(disk, add_data, &after), 0);
    ck_assert_uint_eq(before - after, 2 * UNIT);
    run(disk, REQUEST_READ, 0, sizeof read, read);
    ck_assert_mem_eq(read, bytes, sizeof read);
    ck_assert_int_eq(disk_close(disk), 0);
    unlink(path);
}
END_TEST

static void add_writable(void *argument, const Extent *extent)
{
    uint64_t *bytes = argument;
    bytes[extent->flags & EXTENT_WRITABLE ? 1 : 0] += extent->length;
}

/* Or the kernel would write what the server looks at before it is written. */
START_TEST(lease_of_a_guessed_raw_image_leaves_out_its_first_bytes)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, SIZE);
    ImageOpen how = {.write = true};
    g_autoptr(Image) image = image_open_store(store, &how, NULL, NULL);
    Disk *disk = disk_new(image, pool, true);
    uint64_t bytes[2] = {0};
    ck_assert_int_eq(lease_map(disk, add_writable, bytes), 0);
    ck_assert_uint_eq(bytes[0], IMAGE_PROBE_SIZE);
    ck_assert_uint_eq(bytes[1], SIZE - IMAGE_PROBE_SIZE);
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

/* ---- a holder at work ---- */

#define BLOCK  1024u
#define BLOCKS ((SIZE - 4 * UNIT) / BLOCK) /* the last units are for changes that recall */
#define ROUNDS 4000u

typedef struct Line {
    uint64_t offset, length, host_offset;
} Line;

typedef struct Kernel {
    Disk *disk;
    Store *store;
    LeaseHolder holder;
    pthread_rwlock_t in_flight; /* read: one bio; write: suspended */
    GArray *table;              /* Line; in_flight */
    atomic_uint recalls, mapped, refused;
    atomic_bool ended;
    uint32_t words[BLOCKS]; /* what each block holds; its owner's */
} Kernel;

static void note_recall(LeaseHolder *holder)
{
    ((Kernel *)((char *)holder - offsetof(Kernel, holder)))->recalls++;
}

static void collect(void *argument, const Extent *extent)
{
    Line line = {extent->offset, extent->length, extent->host_offset};
    if (extent->type == EXTENT_DATA && (extent->flags & EXTENT_WRITABLE)) {
        g_array_append_val((GArray *)argument, line);
    }
}

/* Leaves whole units: the lines that overlap what is unfit are cut into units first. */
static GArray *without(const GArray *lines, const RangeSet *unfit)
{
    GArray *left = g_array_new(false, false, sizeof(Line));
    for (unsigned i = 0; i < lines->len; i++) {
        Line line = g_array_index(lines, Line, i);
        for (uint64_t at = 0; at < line.length; at += UNIT) {
            Line unit = {line.offset + at, UNIT, line.host_offset + at};
            if (!rangeset_overlaps(unfit, unit.offset, UNIT)) {
                g_array_append_val(left, unit);
            }
        }
    }
    return left;
}

static void change_table(Kernel *kernel, GArray *table)
{
    g_autofree Range *ranges = g_new(Range, table->len + 1);
    for (unsigned i = 0; i < table->len; i++) {
        const Line *line = &g_array_index(table, Line, i);
        ranges[i] = (Range){line->offset, line->length};
    }
    pthread_rwlock_wrlock(&kernel->in_flight);
    bool done = lease_commit(kernel->disk, ranges, table->len);
    if (done) {
        GArray *old = kernel->table;
        kernel->table = table;
        table = old;
    }
    pthread_rwlock_unlock(&kernel->in_flight);
    g_array_free(table, true);
    if (done) {
        lease_settle(kernel->disk);
    } else {
        kernel->refused++;
    }
}

static void round_of(Kernel *kernel, bool reads_map)
{
    RangeSet unfit = {0};
    g_autoptr(GArray) lines = g_array_new(false, false, sizeof(Line));
    if (reads_map) {
        lease_begin(kernel->disk);
        ck_assert_int_eq(lease_map(kernel->disk, collect, lines), 0);
        ck_assert_int_eq(lease_flush(kernel->disk), 0);
    }
    lease_unfit(kernel->disk, &unfit);
    change_table(kernel, without(reads_map ? lines : kernel->table, &unfit));
    rangeset_clear(&unfit);
}

static void *hold(void *argument)
{
    Kernel *kernel = argument;
    for (unsigned i = 0; !kernel->ended; i++) {
        if (lease_wanted(kernel->disk)) {
            round_of(kernel, false);
        } else if (i % 4 == 0) {
            round_of(kernel, true);
        }
        g_usleep(100);
    }
    return NULL;
}

/* The device's own I/O: to the host where there is a line. The lock is held until it has ended. */
static void device_io(Kernel *kernel, bool write, uint64_t offset, uint8_t *bytes)
{
    pthread_rwlock_rdlock(&kernel->in_flight);
    const Line *found = NULL;
    for (unsigned i = 0; i < kernel->table->len && found == NULL; i++) {
        const Line *line = &g_array_index(kernel->table, Line, i);
        found = offset - line->offset < line->length ? line : NULL;
    }
    if (found != NULL) {
        uint64_t place = found->host_offset + (offset - found->offset);
        ck_assert_int_eq(write ? store_write(kernel->store, bytes, BLOCK, place)
                               : store_read(kernel->store, bytes, BLOCK, place),
                         0);
        kernel->mapped++;
    } else {
        run(kernel->disk, write ? REQUEST_WRITE : REQUEST_READ, offset, BLOCK, bytes);
    }
    pthread_rwlock_unlock(&kernel->in_flight);
}

static void check_block(const Kernel *kernel, uint64_t block, const uint8_t *bytes)
{
    for (unsigned i = 0; i < BLOCK; i += 4) {
        uint32_t word;
        memcpy(&word, bytes + i, 4);
        ck_assert_msg(word == kernel->words[block], "block %u has %u, not %u", (unsigned)block,
                      word, kernel->words[block]);
    }
}

static void fill_block(Kernel *kernel, uint64_t block, uint8_t *bytes, uint32_t word)
{
    kernel->words[block] = word;
    for (unsigned i = 0; i < BLOCK; i += 4) {
        memcpy(bytes + i, &word, 4);
    }
}

/* Even blocks are the device's. */
static void *use_device(void *argument)
{
    Kernel *kernel = argument;
    Random random = random_new(1);
    uint8_t bytes[BLOCK];
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        uint64_t block = random_below(&random, BLOCKS / 2) * 2;
        if (random_below(&random, 3) == 0) {
            device_io(kernel, false, block * BLOCK, bytes);
            check_block(kernel, block, bytes);
        } else {
            fill_block(kernel, block, bytes, i);
            device_io(kernel, true, block * BLOCK, bytes);
        }
    }
    return NULL;
}

/* Odd blocks are the other client's: every unit is used by both. */
static void *use_requests(void *argument)
{
    Kernel *kernel = argument;
    Random random = random_new(2);
    uint8_t bytes[BLOCK];
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        uint64_t block = random_below(&random, BLOCKS / 2) * 2 + 1;
        unsigned kind = random_below(&random, 8);
        if (kind == 0) {
            run(kernel->disk, REQUEST_ZERO, block * BLOCK, BLOCK, NULL);
            kernel->words[block] = 0;
        } else if (kind < 4) {
            run(kernel->disk, REQUEST_READ, block * BLOCK, BLOCK, bytes);
            check_block(kernel, block, bytes);
        } else {
            fill_block(kernel, block, bytes, i | 1u << 31);
            run(kernel->disk, REQUEST_WRITE, block * BLOCK, BLOCK, bytes);
        }
    }
    return NULL;
}

/* Whole units are allocated and freed again: what the holder has taken meanwhile is recalled. */
static void *zero_units(void *argument)
{
    Kernel *kernel = argument;
    Random random = random_new(3);
    uint8_t bytes[UNIT];
    memset(bytes, 0x77, sizeof bytes);
    for (uint32_t i = 0; i < ROUNDS / 8; i++) {
        uint64_t offset = SIZE - (1 + random_below(&random, 4)) * UNIT;
        run(kernel->disk, REQUEST_WRITE, offset, UNIT, bytes);
        run(kernel->disk, i % 2 == 0 ? REQUEST_ZERO : REQUEST_TRIM, offset, UNIT, NULL);
        uint8_t read[UNIT], zero[UNIT] = {0};
        run(kernel->disk, REQUEST_READ, offset, UNIT, read);
        ck_assert_mem_eq(read, zero, UNIT);
    }
    return NULL;
}

static void check_all(Kernel *kernel)
{
    for (uint64_t block = 0; block < BLOCKS; block++) {
        uint8_t bytes[BLOCK];
        run(kernel->disk, REQUEST_READ, block * BLOCK, BLOCK, bytes);
        check_block(kernel, block, bytes);
    }
}

START_TEST(lease_holder_and_clients_agree_on_every_block)
{
    g_autoptr(Store) store = store_memory_new("memory", NULL, 0);
    Kernel *kernel = g_new0(Kernel, 1);
    pthread_t threads[4];
    void *(*const runs[])(void *) = {use_device, use_requests, zero_units, hold};
    kernel->disk = disk_on(store);
    kernel->store = store;
    kernel->holder.recall = note_recall;
    kernel->table = g_array_new(false, false, sizeof(Line));
    pthread_rwlock_init(&kernel->in_flight, NULL);
    ck_assert(lease_attach(kernel->disk, &kernel->holder));
    for (unsigned i = 0; i < 4; i++) {
        ck_assert_int_eq(thread_start(&threads[i], "test", runs[i], kernel), 0);
    }
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    kernel->ended = true;
    pthread_join(threads[3], NULL);
    lease_detach(kernel->disk);
    check_all(kernel);
    ck_assert_uint_gt(kernel->mapped, 0);
    ck_assert_uint_gt(kernel->recalls, 0);
    ck_assert_int_eq(disk_close(kernel->disk), 0);
    pthread_rwlock_destroy(&kernel->in_flight);
    g_array_free(kernel->table, true);
    g_free(kernel);
}
END_TEST

/* ---- range sets ---- */

START_TEST(rangeset_is_the_union_of_what_was_added)
{
    Random random = random_new(_i);
    bool model[512] = {false};
    RangeSet set = {.limit = _i % 2 != 0 ? 5 : 0};
    for (unsigned n = 0; n < 60; n++) {
        uint64_t offset = random_below(&random, 500), length = 1 + random_below(&random, 12);
        rangeset_add(&set, offset, length);
        memset(model + offset, true, length);
        for (unsigned i = 0; i < 512; i++) {
            bool has = rangeset_overlaps(&set, i, 1);
            ck_assert(set.limit != 0 ? has || !model[i] : has == model[i]);
        }
        ck_assert(set.limit == 0 || set.count <= set.limit);
        for (unsigned i = 1; i < set.count; i++) {
            const Range *left = &set.items[i - 1];
            ck_assert_uint_lt(left->offset + left->length, set.items[i].offset);
        }
    }
    rangeset_clear(&set);
}
END_TEST

int main(void)
{
    pool = pool_new(2);
    aio_init(pool);
    worker = worker_new(0, NULL);
    TCase *tcase = tcase_create("lease");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, lease_parks_a_change_until_its_range_is_given_back);
    tcase_add_test(tcase, lease_cancel_keeps_what_was_held);
    tcase_add_test(tcase, lease_write_through_flushes_before_it_answers);
    tcase_add_test(tcase, lease_is_not_taken_of_what_changes_meanwhile);
    tcase_add_test(tcase, lease_new_bytes_counts_what_was_allocated);
    tcase_add_test(tcase, reclaim_gives_back_units_that_are_holes_of_the_file);
    tcase_add_test(tcase, lease_of_a_guessed_raw_image_leaves_out_its_first_bytes);
    tcase_add_test(tcase, lease_holder_and_clients_agree_on_every_block);
    tcase_add_loop_test(tcase, rangeset_is_the_union_of_what_was_added, 0, 20);
    int status = suite_run("lease", tcase);
    pool_free(pool); /* first: its threads may still be waking the worker */
    worker_free(worker);
    return status;
}
