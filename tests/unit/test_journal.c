/*
 * src/engine/journal.c, journal-replay.c
 *
 * A server is killed: what its host file and its journal hold at that moment is copied, and a new
 * disk is opened on the copies. It must read what the old one would have read.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/errors.h"
#include "engine/journal-impl.h"
#include "engine/journal.h"
#include "formats/format.h"
#include "store/aio.h"
#include "tests/lib/random.h"
#include "tests/lib/store-memory.h"
#include "tests/lib/store-record.h"
#include "tests/unit/call.h"
#include "tests/unit/suite.h"

#define UNIT  4096u
#define UNITS 64u
#define SIZE  (UNITS * UNIT)

static Pool *pool;
static Worker *worker;
static char folder[] = "/tmp/cownbd-journal-XXXXXX";
static const Format *format = &format_qcow2;
static char *live, *left; /* paths: the journal of the first server, and its copy */

static void run(Disk *disk, RequestType type, uint64_t offset, uint64_t length, void *buffer)
{
    Call call;
    call_start(&call, disk, worker, type, 0, offset, length, buffer);
    ck_assert_int_eq(call_end(&call), 0);
    request_clear(&call.request);
}

static Disk *open_disk(Store *store)
{
    GError *error = NULL;
    ImageOpen how = {.write = true, .format = format};
    g_autoptr(Image) image = image_open_store(store, &how, NULL, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return disk_new(image, pool, false);
}

/* An empty image; a qcow2 has units of 4 KiB. */
static Store *new_store(void)
{
    GError *error = NULL;
    Store *store = store_memory_new("memory", NULL, 0);
    GHashTable *options = g_hash_table_new(g_str_hash, g_str_equal);
    if (format == &format_qcow2) {
        g_hash_table_insert(options, (void *)"cluster_size", (void *)"4096");
    }
    FormatCreate how = {.size = SIZE, .options = options};
    ck_assert_msg(format->create(store, &how, &error), "%s", error ? error->message : "");
    g_hash_table_destroy(options);
    return store;
}

static Disk *first_server(Store *store)
{
    GError *error = NULL;
    Disk *disk = open_disk(store);
    ck_assert_msg(journal_start(disk, live, &error), "%s", error ? error->message : "");
    return disk;
}

/* What is there when the server is killed now. */
static Store *kill_now(Store *store)
{
    g_autofree char *journal = NULL;
    gsize size;
    ck_assert(g_file_get_contents(live, &journal, &size, NULL));
    ck_assert(g_file_set_contents(left, journal, size, NULL));
    uint64_t bytes = store_size(store);
    g_autofree uint8_t *content = g_malloc(bytes);
    ck_assert_int_eq(store_read(store, content, bytes, 0), 0);
    return store_memory_new("memory", content, bytes);
}

static void expect_equal(Disk *disk, const uint8_t *model)
{
    static uint8_t got[SIZE];
    run(disk, REQUEST_READ, 0, SIZE, got);
    for (unsigned i = 0; i < SIZE; i += 512) {
        ck_assert_msg(memcmp(got + i, model + i, 512) == 0, "wrong at %u", i);
    }
}

static void expect_clean(Store *store)
{
    GError *error = NULL;
    ImageOpen how = {.format = format};
    g_autoptr(Image) image = image_open_store(store, &how, NULL, &error);
    CheckResult result = {0};
    ck_assert(image != NULL && format->check(image, CHECK_REPORT_ONLY, &result, &error));
    ck_assert_uint_eq(result.corruptions + result.check_errors, 0);
}

static void expect_next_server(Store *store, const uint8_t *model)
{
    GError *error = NULL;
    Disk *disk = open_disk(store);
    ck_assert_msg(journal_replay(disk, worker, left, &error), "%s", error ? error->message : "");
    ck_assert_int_ne(access(left, F_OK), 0);
    expect_equal(disk, model);
    ck_assert_int_eq(disk_close(disk), 0);
    expect_clean(store);
}

static void step(Disk *disk, Random *random, uint8_t *model)
{
    uint8_t buffer[8 * UNIT];
    uint64_t offset = random_below(random, SIZE / 512 - 1) * 512;
    uint64_t most = sizeof buffer < SIZE - offset ? sizeof buffer : SIZE - offset;
    uint64_t length = 512 * (1 + random_below(random, most / 512));
    unsigned kind = random_below(random, 20);
    if (kind < 13) {
        memset(buffer, 1 + random_below(random, 255), length);
        memcpy(model + offset, buffer, length);
        run(disk, REQUEST_WRITE, offset, length, buffer);
    } else if (kind < 18) {
        memset(model + offset, 0, length);
        run(disk, REQUEST_ZERO, offset, length, NULL);
    } else {
        run(disk, REQUEST_FLUSH, 0, 0, NULL);
    }
}

START_TEST(journal_has_all_that_was_answered)
{
    static uint8_t model[SIZE];
    Random random = random_new(_i);
    format = _i % 2 == 0 ? &format_qcow2 : &format_vhd; /* which zeroes in place */
    memset(model, 0, sizeof model);
    g_autoptr(Store) store = new_store();
    Disk *disk = first_server(store);
    for (unsigned n = 0; n < 60; n++) {
        step(disk, &random, model);
        if (random_percent(&random, 15)) {
            g_autoptr(Store) copy = kill_now(store);
            expect_next_server(copy, model);
        }
    }
    ck_assert_int_eq(disk_close(disk), 0);
    ck_assert_int_ne(access(live, F_OK), 0);
    format = &format_qcow2;
}
END_TEST

START_TEST(journal_is_empty_after_a_flush)
{
    uint8_t bytes[UNIT] = {1};
    g_autoptr(Store) store = new_store();
    Disk *disk = first_server(store);
    ck_assert(!journal_has_records(disk));
    run(disk, REQUEST_WRITE, 0, UNIT, bytes);
    ck_assert(journal_has_records(disk));
    ck_assert(!journal_check_empty(live, NULL));
    run(disk, REQUEST_FLUSH, 0, 0, NULL);
    ck_assert(!journal_has_records(disk));
    ck_assert(journal_check_empty(live, NULL));
    ck_assert(journal_check_empty("/nowhere/journal", NULL));
    ck_assert_int_eq(disk_close(disk), 0);
}
END_TEST

/* What was saved stays until it is in the image: a replay that failed, or was killed, begins
 * again. */
START_TEST(replay_that_fails_is_done_again)
{
    static uint8_t model[SIZE];
    g_autoptr(GError) error = NULL;
    memset(model, 7, 20 * UNIT);
    g_autoptr(Store) store = new_store();
    Disk *disk = first_server(store);
    run(disk, REQUEST_WRITE, 0, 20 * UNIT, model);
    g_autoptr(Store) copy = kill_now(store);
    ck_assert_int_eq(disk_close(disk), 0);

    FaultPlan plan;
    fault_plan_init(&plan, FAULT_WRITE, 1 + _i, true, -EIO);
    RecordOptions how = {.pool = pool, .discard = true, .faults = &plan};
    uint64_t size;
    const uint8_t *content = store_memory_content(copy, &size);
    g_autoptr(Store) faulty = store_record_new("memory", content, size, &how);
    disk = open_disk(faulty);
    ck_assert(!journal_replay(disk, worker, left, &error));
    ck_assert_int_eq(access(left, F_OK), 0);
    disk_close(disk);
    content = record_content(faulty, &size);
    g_autoptr(Store) after = store_memory_new("memory", content, size);
    fault_plan_clear(&plan);
    expect_next_server(after, model);
}
END_TEST

static void change_left(size_t offset, const void *bytes, size_t length)
{
    int fd = open(left, O_WRONLY);
    ck_assert(fd >= 0 && pwrite(fd, bytes, length, offset) == (ssize_t)length);
    close(fd);
}

START_TEST(replay_leaves_out_the_journal_of_another_file)
{
    uint8_t bytes[UNIT] = {1}, zeroes[SIZE] = {0};
    uint64_t inode = 12345;
    g_autoptr(Store) store = new_store();
    Disk *disk = first_server(store);
    run(disk, REQUEST_WRITE, 0, UNIT, bytes);
    g_autoptr(Store) copy = kill_now(store);
    change_left(offsetof(JournalHeader, inode), &inode, sizeof inode);
    ck_assert_int_eq(disk_close(disk), 0);
    expect_next_server(copy, zeroes);
}
END_TEST

START_TEST(replay_refuses_a_damaged_journal)
{
    static const struct {
        size_t offset;
        uint64_t value;
    } damages[] = {
        {offsetof(JournalHeader, kind), 3},
        {offsetof(JournalHeader, count), UINT64_MAX},
        {offsetof(JournalHeader, count), JOURNAL_RECORDS + 1},
        {JOURNAL_HEAD + offsetof(JournalRecord, offset), SIZE},
        {JOURNAL_HEAD + offsetof(JournalRecord, offset), UINT64_MAX},
        {JOURNAL_HEAD + offsetof(JournalRecord, length), 0},
        {JOURNAL_HEAD + offsetof(JournalRecord, length), SIZE + 1},
        {JOURNAL_HEAD + offsetof(JournalRecord, place), UINT64_MAX - 1},
        {JOURNAL_HEAD + offsetof(JournalRecord, place), 1u << 30},
    };
    uint8_t bytes[UNIT] = {1};
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = new_store();
    Disk *disk = first_server(store);
    run(disk, REQUEST_WRITE, 0, UNIT, bytes);
    g_autoptr(Store) copy = kill_now(store);
    ck_assert_int_eq(disk_close(disk), 0);
    change_left(damages[_i].offset, &damages[_i].value, 8);
    disk = open_disk(copy);
    ck_assert(!journal_replay(disk, worker, left, &error));
    ck_assert_int_eq(error->code, EUCLEAN);
    ck_assert_int_eq(access(left, F_OK), 0);
    disk_close(disk);
    unlink(left);
}
END_TEST

int main(void)
{
    pool = pool_new(2);
    aio_init(pool);
    worker = worker_new(0, NULL);
    if (mkdtemp(folder) == NULL) {
        return EXIT_FAILURE;
    }
    live = g_strconcat(folder, "/live", NULL);
    left = g_strconcat(folder, "/left", NULL);
    TCase *tcase = tcase_create("journal");
    tcase_set_timeout(tcase, 240);
    tcase_add_loop_test(tcase, journal_has_all_that_was_answered, 0, 30);
    tcase_add_test(tcase, journal_is_empty_after_a_flush);
    tcase_add_loop_test(tcase, replay_that_fails_is_done_again, 0, 4);
    tcase_add_test(tcase, replay_leaves_out_the_journal_of_another_file);
    tcase_add_loop_test(tcase, replay_refuses_a_damaged_journal, 0, 9);
    int status = suite_run("journal", tcase);
    pool_free(pool); /* first: its threads may still be waking the worker */
    worker_free(worker);
    rmdir(folder);
    g_free(live);
    g_free(left);
    return status;
}
