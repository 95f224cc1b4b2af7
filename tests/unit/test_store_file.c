/*
 * src/store/store-file.c, fdio.c, store.c
 *
 * The system calls that the store uses are this program's own: they go to the kernel, short,
 * interrupted, slow or refused where a test asks for it.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/errors.h"
#include "store/store-file.h"
#include "tests/unit/suite.h"

#define MIB (1u << 20)

/* What the system calls below do wrong. Set by the only thread of a test. */
static struct {
    size_t most; /* a transfer moves at most so many bytes and every second one is interrupted; 0:
                    all */
    unsigned calls;   /* transfers so far */
    int sync_error;   /* errno of fdatasync */
    bool no_nowait;   /* the file system does not know RWF_NOWAIT */
    useconds_t delay; /* a write takes so long */
} wrong;

static ssize_t transfer(long call, int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec part;
    if (wrong.most > 0) {
        if (wrong.calls++ % 2 == 0) {
            errno = EINTR;
            return -1;
        }
        while (iov->iov_len == 0 && count > 1) {
            iov++;
            count--;
        }
        part = (struct iovec){iov->iov_base, MIN(iov->iov_len, wrong.most)};
        iov = &part;
        count = 1;
    }
    return syscall(call, fd, iov, count, offset, 0L);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    return transfer(SYS_preadv, fd, iov, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    usleep(wrong.delay);
    return transfer(SYS_pwritev, fd, iov, count, offset);
}

static ssize_t transfer2(long call, int fd, const struct iovec *iov, int count, off_t offset,
                         int flags)
{
    if (wrong.no_nowait) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return syscall(call, fd, iov, count, offset, 0L, flags);
}

ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return transfer2(SYS_preadv2, fd, iov, count, offset, flags);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return transfer2(SYS_pwritev2, fd, iov, count, offset, flags);
}

int fdatasync(int fd)
{
    if (wrong.sync_error != 0) {
        errno = wrong.sync_error;
        return -1;
    }
    return syscall(SYS_fdatasync, fd);
}

static char *folder, *path;
static Store *store;
static uint8_t pattern[MIB];

static void setup(void)
{
    memset(&wrong, 0, sizeof wrong);
    folder = g_dir_make_tmp("cownbd-test-XXXXXX", NULL);
    ck_assert_ptr_nonnull(folder);
    path = g_build_filename(folder, "image", NULL);
    store = store_file_create(path, false, NULL);
    ck_assert_ptr_nonnull(store);
    for (size_t i = 0; i < sizeof pattern; i++) {
        pattern[i] = i * 31 + (i >> 8) + 1;
    }
}

static void teardown(void)
{
    store_unref(store);
    g_unlink(path);
    g_rmdir(folder);
    g_free(path);
    g_free(folder);
}

static void reopen(StoreOpenFlags flags)
{
    store_unref(store);
    store = store_file_open(path, flags, NULL);
    ck_assert_ptr_nonnull(store);
}

static void expect_refusal(Store *opened, GError **error, int code, const char *words)
{
    ck_assert_ptr_null(opened);
    ck_assert_ptr_nonnull(*error);
    ck_assert_msg(g_error_matches(*error, COWNBD_ERROR, code), "%s", (*error)->message);
    ck_assert_msg(strstr((*error)->message, words) != NULL, "%s", (*error)->message);
    ck_assert_msg(g_str_has_prefix((*error)->message, folder), "%s", (*error)->message);
    g_clear_error(error);
}

START_TEST(store_file_refuses_what_is_no_image)
{
    g_autofree char *missing = g_build_filename(folder, "missing", NULL);
    g_autofree char *pipe = g_build_filename(folder, "pipe", NULL);
    g_autoptr(GError) error = NULL;
    ck_assert_int_eq(mkfifo(pipe, 0600), 0);
    for (int flags = STORE_OPEN_READ_ONLY; flags <= STORE_OPEN_WRITE; flags++) {
        expect_refusal(store_file_open(missing, flags, &error), &error, ENOENT, "No such file");
        expect_refusal(store_file_open(folder, flags, &error), &error, EISDIR,
                       "is a directory: an image must be");
        expect_refusal(store_file_open(pipe, flags, &error), &error, EINVAL, "is a pipe: an image");
    }
    g_unlink(pipe);
    expect_refusal(store_file_create(path, false, &error), &error, EEXIST, "File exists");
}
END_TEST

START_TEST(store_file_refuses_a_descriptor_that_cannot_write)
{
    g_autoptr(GError) error = NULL;
    store_unref(store);
    store = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    expect_refusal(store_file_from_fd(fd, path, STORE_OPEN_WRITE, &error), &error, EROFS,
                   "the file is read-only: make it writable");
    ck_assert_int_lt(fcntl(fd, F_GETFD), 0); /* it owned the descriptor */
    fd = open(path, O_WRONLY | O_CLOEXEC);
    expect_refusal(store_file_from_fd(fd, path, 0, &error), &error, EBADF, "not open for reading");
    fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_APPEND);
    store = store_file_from_fd(fd, path, STORE_OPEN_WRITE, &error);
    ck_assert_ptr_nonnull(store);
    ck_assert_int_eq(fcntl(fd, F_GETFL) & (O_NONBLOCK | O_APPEND), 0);
}
END_TEST

START_TEST(store_file_create_replaces_when_asked)
{
    ck_assert_int_eq(store_write(store, pattern, 1000, 0), 0);
    store_unref(store);
    store = store_file_create(path, true, NULL);
    ck_assert_ptr_nonnull(store);
    ck_assert_uint_eq(store_size(store), 0);
}
END_TEST

START_TEST(store_file_write_grows_and_read_past_the_end_gives_zeroes)
{
    uint8_t back[3000];
    memset(back, 0xee, sizeof back);
    ck_assert_int_eq(store_write(store, pattern, 1000, 500), 0);
    ck_assert_uint_eq(store_size(store), 1500);
    ck_assert_int_eq(store_read(store, back, 3000, 0), 0);
    for (unsigned i = 0; i < 3000; i++) {
        ck_assert_uint_eq(back[i], i >= 500 && i < 1500 ? pattern[i - 500] : 0);
    }
    memset(back, 0xee, sizeof back);
    ck_assert_int_eq(store_read(store, back, 10, 1 << 30), 0);
    ck_assert_uint_eq(back[9], 0);
    ck_assert_uint_eq(back[10], 0xee);
    reopen(STORE_OPEN_READ_ONLY);
    ck_assert_uint_eq(store_size(store), 1500);
}
END_TEST

/* More pieces than one system call takes, empty ones among them. */
static void make_pieces(struct iovec *iov, int count, uint8_t *memory)
{
    for (int i = 0; i < count; i++) {
        iov[i] = (struct iovec){memory, i % 7 == 0 ? 0 : i % 50};
        memory += iov[i].iov_len;
    }
}

static void vectors_round_trip(void)
{
    enum { COUNT = 2 * IOV_MAX + 3 };
    static struct iovec iov[COUNT];
    static uint8_t back[MIB];
    make_pieces(iov, COUNT, pattern);
    ck_assert_int_eq(store_writev(store, iov, COUNT, 777), 0);
    memset(back, 0xee, sizeof back);
    make_pieces(iov, COUNT, back);
    ck_assert_int_eq(store_readv(store, iov, COUNT, 777), 0);
    size_t length = store_size(store) - 777;
    ck_assert_uint_gt(length, 20 * IOV_MAX);
    ck_assert_int_eq(memcmp(back, pattern, length), 0);
    ck_assert_uint_eq(back[length], 0xee);
    ck_assert_int_eq(store_readv(store, iov, COUNT, 777 + 1000), 0); /* ends in zeroes */
    ck_assert_int_eq(memcmp(back, pattern + 1000, length - 1000), 0);
    ck_assert_uint_eq(back[length - 1], 0);
}

START_TEST(store_file_moves_long_vectors)
{
    vectors_round_trip();
}
END_TEST

START_TEST(store_file_finishes_short_and_interrupted_transfers)
{
    wrong.most = 13;
    vectors_round_trip();
    ck_assert_uint_gt(wrong.calls, 100);
}
END_TEST

START_TEST(store_file_reads_cached_pages_without_waiting)
{
    static uint8_t back[64 << 10];
    struct iovec iov[] = {{back, 1000}, {back + 1000, sizeof back - 1000}};
    ck_assert_int_eq(store_write(store, pattern, 10000, 0), 0);
    memset(back, 0xee, sizeof back);
    int result = store_read_nowait(store, iov, 2, 0);
    if (result == -EAGAIN) {
        printf("this file system cannot read without waiting\n");
        return;
    }
    ck_assert_int_eq(result, 0);
    ck_assert_int_eq(memcmp(back, pattern, 10000), 0);
    ck_assert_uint_eq(back[10000] | back[sizeof back - 1], 0);
    memset(back, 0xee, sizeof back);
    ck_assert_int_eq(store_read_nowait(store, iov, 1, 1 << 20), 0);
    ck_assert_uint_eq(back[0] | back[999], 0);
    ck_assert_uint_eq(back[1000], 0xee);
}
END_TEST

START_TEST(store_file_never_half_reads_cold_pages)
{
    static uint8_t back[MIB];
    struct iovec iov = {back, MIB};
    ck_assert_int_eq(store_write(store, pattern, MIB, 0), 0);
    ck_assert_int_eq(store_sync(store), 0);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ck_assert_int_eq(pread(fd, back, 4096, 0), 4096); /* some pages come back */
    close(fd);
    int result = store_read_nowait(store, &iov, 1, 0);
    ck_assert(result == 0 || result == -EAGAIN);
    if (result == 0) {
        ck_assert_int_eq(memcmp(back, pattern, MIB), 0);
    }
}
END_TEST

START_TEST(store_file_without_nowait_writes_whole_pages_only)
{
    struct iovec page = {pattern, 4096}, odd = {pattern, 512}, large = {pattern, MIB};
    wrong.no_nowait = true;
    ck_assert_int_eq(store_write_nowait(store, &page, 1, 8192), 0);
    ck_assert_uint_eq(store_size(store), 12288);
    ck_assert_int_eq(store_write_nowait(store, &odd, 1, 4096), -EAGAIN);
    ck_assert_int_eq(store_write_nowait(store, &page, 1, 512), -EAGAIN);
    ck_assert_int_eq(store_write_nowait(store, &large, 1, 0), 0);
    ck_assert_uint_eq(store_size(store), MIB);
    ck_assert_int_eq(store_read_nowait(store, &page, 1, 0), -EAGAIN);
    wrong.no_nowait = false; /* it has learnt */
    ck_assert_int_eq(store_read_nowait(store, &page, 1, 0), -EAGAIN);
    ck_assert_int_eq(store_write_nowait(store, &odd, 1, 4096), -EAGAIN);
}
END_TEST

START_TEST(store_file_writes_past_the_page_cache_in_large_pieces_of_pages)
{
    void *pages;
    static uint8_t back[MIB];
    ck_assert_int_eq(posix_memalign(&pages, 4096, MIB), 0);
    memcpy(pages, pattern, MIB);
    struct iovec iov = {pages, MIB}, small = {pages, 4096}, crooked = {pattern + 1, 65536};
    ck_assert_int_eq(store_write_direct(store, &small, 1, 0), -EAGAIN);
    ck_assert_int_eq(store_write_direct(store, &crooked, 1, 0), -EAGAIN);
    ck_assert_int_eq(store_write_direct(store, &iov, 1, 512), -EAGAIN);
    ck_assert_uint_eq(store_size(store), 0);
    ck_assert_int_eq(store_write(store, back, 4096, 65536),
                     0); /* in the page cache; to be forgotten */
    int result = store_write_direct(store, &iov, 1, 0);
    if (result == -EAGAIN) {
        printf("this file system has no O_DIRECT\n");
    } else {
        ck_assert_int_eq(result, 0);
        ck_assert_uint_eq(store_size(store), MIB);
        ck_assert_int_eq(store_read(store, back, MIB, 0), 0);
        ck_assert_int_eq(memcmp(back, pattern, MIB), 0);
    }
    free(pages);
}
END_TEST

START_TEST(store_file_stops_writing_inline_when_the_host_throttles)
{
    struct iovec page = {pattern, 4096};
    wrong.no_nowait = true;
    wrong.delay = 5000;
    ck_assert_int_eq(store_write_nowait(store, &page, 1, 0), 0); /* once is chance */
    ck_assert_int_eq(store_write_nowait(store, &page, 1, 0), 0);
    ck_assert_int_eq(store_write_nowait(store, &page, 1, 4096), -EAGAIN);
    wrong.delay = 0;
    g_usleep(150000);
    ck_assert_int_eq(store_write_nowait(store, &page, 1, 4096), 0);
}
END_TEST

START_TEST(store_file_write_nowait_is_whole_or_again)
{
    struct iovec iov[] = {{pattern, 4096}, {pattern + 4096, 8192}};
    static uint8_t back[12288];
    int result = store_write_nowait(store, iov, 2, 4096);
    ck_assert(result == 0 || result == -EAGAIN);
    if (result == 0) {
        ck_assert_uint_eq(store_size(store), 16384);
        ck_assert_int_eq(store_read(store, back, 12288, 4096), 0);
        ck_assert_int_eq(memcmp(back, pattern, 12288), 0);
    }
}
END_TEST

START_TEST(store_file_punch_zeroes_and_keeps_the_size)
{
    static uint8_t back[MIB], expected[MIB];
    for (StorePunch how = STORE_PUNCH_FREE; how <= STORE_PUNCH_KEEP_SPACE; how++) {
        ck_assert_int_eq(store_write(store, pattern, MIB, 0), 0);
        ck_assert_int_eq(store_sync(store), 0);
        uint64_t before = store_allocated_bytes(store);
        int result = store_punch(store, 100000, 500000, how);
        if (result == -ENOTSUP) {
            printf("this file system cannot punch (%d)\n", how);
            continue;
        }
        ck_assert_int_eq(result, 0);
        memcpy(expected, pattern, MIB);
        memset(expected + 100000, 0, 500000);
        ck_assert_int_eq(store_read(store, back, MIB, 0), 0);
        ck_assert_int_eq(memcmp(back, expected, MIB), 0);
        if (how == STORE_PUNCH_FREE) {
            ck_assert_uint_lt(store_allocated_bytes(store), before);
        }
        ck_assert_int_eq(store_punch(store, MIB - 10, MIB, how), 0);
        ck_assert_int_eq(store_punch(store, 2 * MIB, MIB, how), 0);
        ck_assert_int_eq(store_punch(store, UINT64_MAX - 5, 5, how), 0);
        ck_assert_int_eq(store_punch(store, 0, 0, how), 0);
        ck_assert_uint_eq(store_size(store), MIB);
    }
}
END_TEST

START_TEST(store_file_tells_data_from_holes)
{
    bool data;
    uint64_t run;
    ck_assert_int_eq(store_truncate(store, 4 * MIB), 0);
    ck_assert_int_eq(store_write(store, pattern, MIB, MIB), 0);
    ck_assert_int_eq(store_next_data(store, 0, 4 * MIB, &data, &run), 0);
    if (!data) {
        ck_assert_uint_eq(run, MIB);
        ck_assert_int_eq(store_next_data(store, 512, 1024, &data, &run), 0);
        ck_assert(!data && run == 1024);
        ck_assert_int_eq(store_next_data(store, 2 * MIB, 2 * MIB, &data, &run), 0);
        ck_assert(!data && run == 2 * MIB);
    }
    ck_assert_int_eq(store_next_data(store, MIB + 5, 4 * MIB, &data, &run), 0);
    ck_assert(data && run >= MIB - 5);
    ck_assert_int_eq(store_next_data(store, MIB + 5, 10, &data, &run), 0);
    ck_assert(data && run == 10);
    ck_assert_int_eq(store_next_data(store, 8 * MIB, MIB, &data, &run), 0);
    ck_assert(!data && run == MIB);
}
END_TEST

START_TEST(store_file_truncates_both_ways)
{
    uint8_t back[100];
    ck_assert_int_eq(store_write(store, pattern, 1000, 0), 0);
    ck_assert_int_eq(store_truncate(store, 50), 0);
    ck_assert_uint_eq(store_size(store), 50);
    ck_assert_int_eq(store_truncate(store, 1000), 0);
    ck_assert_int_eq(store_read(store, back, 100, 0), 0);
    ck_assert_int_eq(memcmp(back, pattern, 50), 0);
    ck_assert_uint_eq(back[50] | back[99], 0);
    ck_assert_int_eq(store_truncate(store, UINT64_MAX), -EFBIG);
    ck_assert_uint_eq(store_size(store), 1000);
}
END_TEST

START_TEST(store_file_read_only_changes_nothing)
{
    struct iovec iov = {pattern, 4096};
    ck_assert_int_eq(store_write(store, pattern, 5000, 0), 0);
    reopen(STORE_OPEN_READ_ONLY);
    ck_assert(store->read_only);
    ck_assert_int_eq(store_write(store, pattern, 1, 0), -EROFS);
    ck_assert_int_eq(store_write_nowait(store, &iov, 1, 0), -EROFS);
    ck_assert_int_eq(store_punch(store, 0, 4096, STORE_PUNCH_FREE), -EROFS);
    ck_assert_int_eq(store_truncate(store, 0), -EROFS);
    ck_assert_int_eq(store_sync(store), 0);
    ck_assert_uint_eq(store_size(store), 5000);
}
END_TEST

START_TEST(store_file_remembers_a_failed_sync)
{
    ck_assert_int_eq(store_sync(store), 0);
    wrong.sync_error = EIO;
    ck_assert_int_eq(store_sync(store), -EIO);
    wrong.sync_error = ENOSPC;
    ck_assert_int_eq(store_sync(store), -EIO);
    wrong.sync_error = 0; /* the kernel reports a lost page only once */
    ck_assert_int_eq(store_sync(store), -EIO);
}
END_TEST

static void *grow(void *argument)
{
    unsigned first = *(unsigned *)argument;
    for (unsigned i = first; i < 2000; i += 4) {
        ck_assert_int_eq(store_write(store, pattern, 100, i * 100), 0);
        ck_assert_uint_ge(store_size(store), (i + 1) * 100);
    }
    return NULL;
}

START_TEST(store_file_size_is_right_when_many_write)
{
    pthread_t threads[4];
    unsigned first[4] = {0, 1, 2, 3};
    for (unsigned i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, grow, &first[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_uint_eq(store_size(store), 200000);
}
END_TEST

static void add_tests(TCase *tcase)
{
    tcase_add_test(tcase, store_file_refuses_what_is_no_image);
    tcase_add_test(tcase, store_file_refuses_a_descriptor_that_cannot_write);
    tcase_add_test(tcase, store_file_create_replaces_when_asked);
    tcase_add_test(tcase, store_file_write_grows_and_read_past_the_end_gives_zeroes);
    tcase_add_test(tcase, store_file_moves_long_vectors);
    tcase_add_test(tcase, store_file_finishes_short_and_interrupted_transfers);
    tcase_add_test(tcase, store_file_reads_cached_pages_without_waiting);
    tcase_add_test(tcase, store_file_never_half_reads_cold_pages);
    tcase_add_test(tcase, store_file_without_nowait_writes_whole_pages_only);
    tcase_add_test(tcase, store_file_writes_past_the_page_cache_in_large_pieces_of_pages);
    tcase_add_test(tcase, store_file_stops_writing_inline_when_the_host_throttles);
    tcase_add_test(tcase, store_file_write_nowait_is_whole_or_again);
    tcase_add_test(tcase, store_file_punch_zeroes_and_keeps_the_size);
    tcase_add_test(tcase, store_file_tells_data_from_holes);
    tcase_add_test(tcase, store_file_truncates_both_ways);
    tcase_add_test(tcase, store_file_read_only_changes_nothing);
    tcase_add_test(tcase, store_file_remembers_a_failed_sync);
    tcase_add_test(tcase, store_file_size_is_right_when_many_write);
}

int main(void)
{
    TCase *tcase = tcase_create("store_file");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    add_tests(tcase);
    return suite_run("store_file", tcase);
}
