/* src/store/aio.c with both back ends, and where a seccomp filter refuses io_uring. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "latch.h"
#include "store/aio.h"
#include "store/store-file.h"
#include "tests/unit/suite.h"

#define SLOTS     1500 /* more than the ring holds at once */
#define FEW       200  /* fewer: no later submission helps them along */
#define SLOT_SIZE 20000
#define PIECES    5

static const char *const back_ends[] = {"pool", "uring"};

static char *folder, *path;
static Store *store;
static Pool *pool;
static Worker *worker;
static Latch latch;
static char name_used[16];

typedef struct Slot {
    StoreIo io; /* first */
    struct iovec iov[PIECES];
    uint8_t *data;
    bool inside_submit;
} Slot;

static Slot slots[SLOTS];

static void start_threads(const char *wish)
{
    if (wish != NULL) {
        g_setenv("COWNBD_AIO", wish, TRUE);
    } else {
        g_unsetenv("COWNBD_AIO");
    }
    pool = pool_new(2);
    aio_init(pool);
    worker = worker_new(0, NULL);
    ck_assert_ptr_nonnull(worker);
}

static void start(const char *wish)
{
    folder = g_dir_make_tmp("cownbd-test-XXXXXX", NULL);
    ck_assert_ptr_nonnull(folder);
    path = g_build_filename(folder, "image", NULL);
    store = store_file_create(path, false, NULL);
    ck_assert_ptr_nonnull(store);
    start_threads(wish);
}

static void stop(void)
{
    pool_free(pool);
    worker_free(worker);
    store_unref(store);
    g_unlink(path);
    g_rmdir(folder);
    g_free(path);
    g_free(folder);
}

/* Runs a function on the worker and waits until the latch, set to count before, is down. */
static void on_worker(void (*function)(WorkerMessage *), unsigned count)
{
    WorkerMessage message = {.run = function};
    latch_init(&latch, count);
    worker_post(worker, &message);
    latch_wait(&latch);
}

static void ask_name(WorkerMessage *message)
{
    g_strlcpy(name_used, aio_name(), sizeof name_used);
    latch_down(&latch);
}

static void slot_done(StoreIo *io)
{
    ck_assert_ptr_eq(worker_current(), worker);
    ck_assert(!((Slot *)io)->inside_submit);
    latch_down(&latch);
}

/* A slot's transfer: one piece, or several of uneven length. */
static void slot_submit(unsigned i, StoreIoKind kind)
{
    Slot *slot = &slots[i];
    bool whole = i % 3 == 0;
    size_t at = 0;
    for (unsigned p = 0; p < PIECES; p++) {
        size_t length = whole ? SLOT_SIZE : p == PIECES - 1 ? SLOT_SIZE - at : p * 1111;
        slot->iov[p] = (struct iovec){slot->data + at, length};
        at += length;
    }
    slot->io = (StoreIo){.kind = kind,
                         .store = store,
                         .iov = slot->iov,
                         .iov_count = whole ? 1 : PIECES,
                         .offset = (uint64_t)i * SLOT_SIZE,
                         .length = SLOT_SIZE,
                         .done = slot_done};
    slot->inside_submit = true;
    store_submit(&slot->io);
    slot->inside_submit = false;
}

static void write_all(WorkerMessage *message)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        memset(slots[i].data, i % 251 + 1, SLOT_SIZE);
        slot_submit(i, STORE_IO_WRITE);
    }
}

static void read_all(WorkerMessage *message)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        memset(slots[i].data, 0xee, SLOT_SIZE);
        slot_submit(i, STORE_IO_READ);
    }
}

static bool all_bytes_are(const uint8_t *data, size_t length, uint8_t value)
{
    return length == 0 || (data[0] == value && memcmp(data, data + 1, length - 1) == 0);
}

static void drop_page_cache(void)
{
    ck_assert_int_eq(store_sync(store), 0);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
}

/* The last slots lie past the end, one of them in part. */
static void check_reads(uint64_t size)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        uint64_t begin = (uint64_t)i * SLOT_SIZE;
        size_t have = begin >= size ? 0 : MIN(size - begin, SLOT_SIZE);
        ck_assert_int_eq(slots[i].io.result, 0);
        ck_assert(all_bytes_are(slots[i].data, have, i % 251 + 1));
        ck_assert(all_bytes_are(slots[i].data + have, SLOT_SIZE - have, 0));
    }
}

static void transfers_round_trip(void)
{
    uint8_t *memory = g_malloc(SLOTS * SLOT_SIZE);
    for (unsigned i = 0; i < SLOTS; i++) {
        slots[i].data = memory + i * SLOT_SIZE;
    }
    on_worker(write_all, SLOTS);
    for (unsigned i = 0; i < SLOTS; i++) {
        ck_assert_int_eq(slots[i].io.result, 0);
    }
    ck_assert_uint_eq(store_size(store), SLOTS * SLOT_SIZE);
    uint64_t size = SLOTS * SLOT_SIZE - 3 * SLOT_SIZE / 2;
    ck_assert_int_eq(store_truncate(store, size), 0);
    drop_page_cache();
    on_worker(read_all, SLOTS);
    check_reads(size);
    on_worker(read_all, SLOTS); /* now from the cache */
    check_reads(size);
    g_free(memory);
}

START_TEST(aio_moves_many_transfers)
{
    const char *wanted = back_ends[_i];
    start(NULL);
    on_worker(ask_name, 1);
    bool refused = strcmp(name_used, "pool") == 0;
    stop();
    if (refused && strcmp(wanted, "uring") == 0) {
        printf("this kernel refuses io_uring\n");
        return;
    }
    start(wanted);
    on_worker(ask_name, 1);
    ck_assert_str_eq(name_used, strcmp(wanted, "uring") == 0 ? "io_uring" : "pool");
    transfers_round_trip();
    stop();
}
END_TEST

static void submit_one_write(WorkerMessage *message)
{
    slot_submit(0, STORE_IO_WRITE);
}

START_TEST(aio_reports_errors)
{
    uint8_t data[SLOT_SIZE] = {0};
    start(back_ends[_i]);
    slots[0].data = data;
    store_unref(store);
    store = store_file_open(path, STORE_OPEN_READ_ONLY, NULL);
    on_worker(submit_one_write, 1);
    ck_assert_int_lt(slots[0].io.result, 0);
    ck_assert_uint_eq(store_size(store), 0);
    stop();
}
END_TEST

static void sleep_run(WorkerMessage *message)
{
    g_usleep(50000);
    g_free(message);
}

static void read_few_and_sleep(WorkerMessage *message)
{
    for (unsigned i = 0; i < FEW; i++) {
        slot_submit(i, STORE_IO_READ);
    }
    WorkerMessage *nap = g_new(WorkerMessage, 1);
    nap->run = sleep_run;
    worker_post(worker, nap); /* runs after the end of this turn has submitted */
}

/* The kernel hands over only so many completions in one call and does not wake us for the others
 * again. */
START_TEST(aio_takes_all_that_completed_while_the_worker_was_busy)
{
    start(back_ends[_i]);
    uint8_t *memory = g_malloc0(SLOTS * SLOT_SIZE);
    ck_assert_int_eq(store_write(store, memory, SLOTS * SLOT_SIZE, 0), 0);
    for (unsigned i = 0; i < SLOTS; i++) {
        slots[i].data = memory + i * SLOT_SIZE;
    }
    drop_page_cache();
    on_worker(read_few_and_sleep, FEW);
    g_free(memory);
    stop();
}
END_TEST

/* A chain of transfers, each begun when the one before is done. */
static void chain_done(StoreIo *io)
{
    Slot *slot = (Slot *)io;
    ck_assert_int_eq(io->result, 0);
    latch_down(&latch);
    if (io->offset < 1000) {
        slot->iov[0] = (struct iovec){slot->data, 1};
        io->offset++;
        store_submit(io);
    }
}

static void submit_chain(WorkerMessage *message)
{
    slots[0].iov[0] = (struct iovec){slots[0].data, 1};
    slots[0].io = (StoreIo){.kind = STORE_IO_WRITE,
                            .store = store,
                            .iov = slots[0].iov,
                            .iov_count = 1,
                            .offset = 1,
                            .length = 1,
                            .done = chain_done};
    store_submit(&slots[0].io);
}

START_TEST(aio_done_may_submit_again)
{
    uint8_t data[1] = {1};
    start(back_ends[_i]);
    slots[0].data = data;
    on_worker(submit_chain, 1000);
    ck_assert_uint_eq(store_size(store), 1001);
    stop();
}
END_TEST

/* From here on this process gets EPERM from io_uring_setup, as in many containers. */
static void refuse_uring(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {G_N_ELEMENTS(filter), filter};
    ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ck_assert_int_eq(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), 0);
}

/* The exit status of a child without io_uring that runs function. */
static int in_child_without_uring(void (*function)(void))
{
    fflush(NULL);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        refuse_uring();
        function();
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void use_what_there_is(void)
{
    start(NULL);
    on_worker(ask_name, 1);
    if (strcmp(name_used, "pool") != 0) {
        _exit(2);
    }
    transfers_round_trip();
    stop();
}

static void insist_on_uring(void)
{
    start_threads("uring");
    on_worker(ask_name, 1);
}

START_TEST(aio_falls_back_to_the_pool_where_seccomp_refuses_the_ring)
{
    ck_assert_int_eq(in_child_without_uring(use_what_there_is), 0);
}
END_TEST

START_TEST(aio_forced_to_uring_ends_loudly_where_it_is_refused)
{
    ck_assert_int_eq(in_child_without_uring(insist_on_uring), EXIT_FAILURE);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("aio");
    tcase_set_timeout(tcase, 120);
    /* First those that fork, while this process has never had a thread. */
    tcase_add_test(tcase, aio_falls_back_to_the_pool_where_seccomp_refuses_the_ring);
    tcase_add_test(tcase, aio_forced_to_uring_ends_loudly_where_it_is_refused);
    tcase_add_loop_test(tcase, aio_moves_many_transfers, 0, G_N_ELEMENTS(back_ends));
    tcase_add_loop_test(tcase, aio_takes_all_that_completed_while_the_worker_was_busy, 0,
                        G_N_ELEMENTS(back_ends));
    tcase_add_loop_test(tcase, aio_reports_errors, 0, G_N_ELEMENTS(back_ends));
    tcase_add_loop_test(tcase, aio_done_may_submit_again, 0, G_N_ELEMENTS(back_ends));
    return suite_run("aio", tcase);
}
