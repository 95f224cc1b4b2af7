/*
 * The store on a host file or a block device.
 *
 * Reads and writes go through the page cache. The two _nowait functions are the path of nearly
 * every request of the server: one system call, no lock, no allocation.
 *
 * Reading without waiting is RWF_NOWAIT. Writing without waiting is that too where the file system
 * knows it; where it does not (ext4), a write of whole pages is a copy into the page cache and a
 * plain pwritev does it, unless the host throttles its writers because too much is dirty. That
 * shows in the time a write takes. But a write is slow, too, when others had the processor
 * meanwhile: so a slow write only makes the store watch whether the next slow one has slept. If it
 * has, the store asks for asynchronous writes for a while, then tries again.
 *
 * What must stay true: size never lies below what this store wrote; an error of a sync is never
 * forgotten.
 */
#include "store/store-file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "store/aio.h"
#include "store/store-lock.h"
#include "store/store-replace.h"
#include "store/fdio.h"

#define PAGE 4096u
#define DIRECT_MIN \
    (64u << 10) /* below, a copy is cheaper than what the file system does for each write */
#define INLINE_WRITE_MAX (4u << 20) /* copying more would keep the worker from its other clients */
#define MS               G_GINT64_CONSTANT(1000000)
#define SLOW_WRITE_NS    (2 * MS)
#define SLOW_MIB_NS      (4 * MS) /* for each MiB of a large write */
#define THROTTLE_NS      (100 * MS)
#define WATCH_NS         (3 * THROTTLE_NS) /* lasts beyond the throttling that it led to */

typedef struct StoreFile {
    Store store; /* first: a Store * is a StoreFile * */
    int fd;
    bool is_device;
    atomic_bool no_read_nowait; /* the file system does not know RWF_NOWAIT for reads */
    atomic_bool no_write_nowait;
    atomic_bool no_direct;           /* nor O_DIRECT, or not in pages */
    atomic_int direct_fd;            /* with O_DIRECT, from the first use on; -1 */
    _Atomic int64_t watch_until;     /* CLOCK_MONOTONIC, ns: a write was slow */
    _Atomic int64_t throttled_until; /* the same: a write has slept */
    atomic_int sync_error;           /* of the first sync that failed: negative errno */
} StoreFile;

static StoreFile *file_of(Store *store)
{
    return (StoreFile *)store;
}

static int file_preadv(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    return fdio_read(file_of(store)->fd, iov, count, offset);
}

static int file_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    uint64_t end;
    int result = fdio_write(file_of(store)->fd, iov, count, offset, &end);
    if (end > offset) {
        store_raise_size(store, end);
    }
    return result;
}

static bool is_refusal(int err)
{
    return err == EOPNOTSUPP || err == ENOSYS;
}

static int file_read_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    StoreFile *file = file_of(store);
    if (atomic_load_explicit(&file->no_read_nowait, memory_order_relaxed)) {
        return -EAGAIN;
    }
    ssize_t n = preadv2(file->fd, iov, count, offset, RWF_NOWAIT);
    if (n < 0) {
        if (is_refusal(errno)) {
            atomic_store_explicit(&file->no_read_nowait, true, memory_order_relaxed);
            return -EAGAIN;
        }
        return errno == EINTR ? -EAGAIN : -errno;
    }
    if ((uint64_t)n == iov_length(iov, count)) {
        return 0;
    }
    if (offset + n < store_size(store)) {
        return -EAGAIN; /* the rest is not in memory */
    }
    iov_zero_from(iov, count, n);
    return 0;
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * G_GINT64_CONSTANT(1000000000) + now.tv_nsec;
}

/* How often this thread has slept: waited, not been pushed aside. */
static long times_slept(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nvcsw : 0;
}

/* A plain write from the worker, with an eye on the clock. */
static int write_timed(StoreFile *file, const struct iovec *iov, int count, uint64_t offset,
                       uint64_t length)
{
    int64_t start = now_ns();
    if (start < atomic_load_explicit(&file->throttled_until, memory_order_relaxed)) {
        return -EAGAIN;
    }
    bool watching = start < atomic_load_explicit(&file->watch_until, memory_order_relaxed);
    long slept = watching ? times_slept() : 0;
    int result = file_pwritev(&file->store, iov, count, offset);
    int64_t end = now_ns();
    if (end - start > (int64_t)max_u64(SLOW_WRITE_NS, SLOW_MIB_NS * length >> 20)) {
        atomic_store_explicit(&file->watch_until, end + WATCH_NS, memory_order_relaxed);
        if (watching && times_slept() > slept) {
            atomic_store_explicit(&file->throttled_until, end + THROTTLE_NS, memory_order_relaxed);
        }
    }
    return result;
}

static int write_inline(StoreFile *file, const struct iovec *iov, int count, uint64_t offset,
                        uint64_t length)
{
    if (((offset | length) & (PAGE - 1)) != 0 || length > INLINE_WRITE_MAX) {
        return -EAGAIN; /* a part of a page may have to be read from the disk first */
    }
    return write_timed(file, iov, count, offset, length);
}

static int file_write_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    StoreFile *file = file_of(store);
    uint64_t length = iov_length(iov, count);
    if (atomic_load_explicit(&file->no_write_nowait, memory_order_relaxed)) {
        return write_inline(file, iov, count, offset, length);
    }
    ssize_t n = pwritev2(file->fd, iov, count, offset, RWF_NOWAIT);
    if (n < 0 && is_refusal(errno)) {
        atomic_store_explicit(&file->no_write_nowait, true, memory_order_relaxed);
        return write_inline(file, iov, count, offset, length);
    }
    if (n < 0) {
        return errno == EINTR ? -EAGAIN : -errno;
    }
    store_raise_size(store, offset + n);
    return (uint64_t)n == length ? 0 : -EAGAIN;
}

/* -1 where the file system has none. */
static int direct_fd(StoreFile *file)
{
    int fd = atomic_load_explicit(&file->direct_fd, memory_order_acquire);
    if (fd < 0) {
        g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", file->fd);
        int none = -1;
        fd = open(path, O_WRONLY | O_CLOEXEC | O_DIRECT);
        if (fd >= 0 && !atomic_compare_exchange_strong(&file->direct_fd, &none, fd)) {
            close(fd);
            fd = none;
        }
    }
    return fd;
}

static bool is_in_pages(const struct iovec *iov, int count, uint64_t offset)
{
    for (int i = 0; i < count; i++) {
        offset |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
    }
    return (offset & (PAGE - 1)) == 0;
}

static int file_write_direct(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    StoreFile *file = file_of(store);
    uint64_t length = iov_length(iov, count), end = offset;
    if (length < DIRECT_MIN || !is_in_pages(iov, count, offset) ||
        atomic_load_explicit(&file->no_direct, memory_order_relaxed)) {
        return -EAGAIN;
    }
    int fd = direct_fd(file);
    int r = fd < 0 ? -EINVAL : fdio_write(fd, iov, count, offset, &end);
    if (end > offset) {
        store_raise_size(store, end);
    }
    if (r == -EINVAL) {
        atomic_store_explicit(&file->no_direct, true, memory_order_relaxed);
        return -EAGAIN;
    }
    return r;
}

static void file_submit(StoreIo *io)
{
    aio_submit(io, file_of(io->store)->fd);
}

static int file_fallocate(StoreFile *file, int mode, uint64_t offset, uint64_t length)
{
    while (fallocate(file->fd, mode | FALLOC_FL_KEEP_SIZE, offset, length) != 0) {
        /* A device says EINVAL to a range that does not consist of its blocks. */
        if (errno == ENOSYS || errno == ENODEV || (errno == EINVAL && file->is_device)) {
            return -ENOTSUP;
        }
        if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

static int file_punch(Store *store, uint64_t offset, uint64_t length, StorePunch how)
{
    StoreFile *file = file_of(store);
    if (how == STORE_PUNCH_FREE) {
        int result = file_fallocate(file, FALLOC_FL_PUNCH_HOLE, offset, length);
        if (result != -ENOTSUP) {
            return result;
        }
    }
    return file_fallocate(file, FALLOC_FL_ZERO_RANGE, offset, length);
}

static int file_next_data(Store *store, uint64_t offset, uint64_t length, bool *data, uint64_t *run)
{
    int fd = file_of(store)->fd;
    *data = true;
    *run = length;
    off_t start = lseek(fd, offset, SEEK_DATA);
    if (start < 0 && errno != ENXIO) {
        return 0; /* cannot tell */
    }
    if (start < 0 || (uint64_t)start > offset) {
        *data = false;
        *run = start < 0 ? length : min_u64(length, start - offset);
        return 0;
    }
    off_t end = lseek(fd, offset, SEEK_HOLE);
    if (end > start) {
        *run = min_u64(length, end - offset);
    }
    return 0;
}

static int file_truncate(Store *store, uint64_t size)
{
    StoreFile *file = file_of(store);
    if (file->is_device) {
        uint64_t have = store_size(store);
        return size == have ? 0 : size > have ? -ENOSPC : -ENOTSUP;
    }
    if (size > INT64_MAX) {
        return -EFBIG;
    }
    while (ftruncate(file->fd, size) != 0) {
        if (errno != EINTR) {
            return -errno;
        }
    }
    atomic_store_explicit(&store->size, size, memory_order_release);
    return 0;
}

static int file_sync(Store *store)
{
    StoreFile *file = file_of(store);
    int result = atomic_load_explicit(&file->sync_error, memory_order_acquire);
    if (result != 0 || store->read_only) {
        return result;
    }
    while (result == 0 && fdatasync(file->fd) != 0) {
        if (errno != EINTR) {
            result = -errno;
        }
    }
    if (result != 0) {
        int none = 0;
        atomic_compare_exchange_strong(&file->sync_error, &none, result);
    }
    /* A sync beside this one may have been told of a page that was this one's to report. */
    return atomic_load_explicit(&file->sync_error, memory_order_acquire);
}

/* The number of the descriptor stays, so a sync beside this one has the old file or the new one. */
static int file_replace(Store *store, const void *bytes, uint64_t length)
{
    StoreFile *file = file_of(store);
    autofd int fd = -1;
    int r = store_replace_file(store->name, file->fd, bytes, length, &fd);
    if (fd >= 0) {
        while (dup3(fd, file->fd, O_CLOEXEC) < 0 && (errno == EBUSY || errno == EINTR)) {
        }
        atomic_store_explicit(&store->size, length, memory_order_release);
    }
    return r;
}

/* Starts writeback only: an error of it stays with the pages' file and is told to fdatasync. */
static void file_start_sync(Store *store, uint64_t offset, uint64_t length)
{
    sync_file_range(file_of(store)->fd, offset, length, SYNC_FILE_RANGE_WRITE);
}

static uint64_t file_allocated_bytes(Store *store)
{
    StoreFile *file = file_of(store);
    struct stat st;
    if (file->is_device || fstat(file->fd, &st) != 0) {
        return store_size(store);
    }
    return (uint64_t)st.st_blocks * 512;
}

static void file_close(Store *store)
{
    StoreFile *file = file_of(store);
    if (file->direct_fd >= 0) {
        close(file->direct_fd);
    }
    close(file->fd);
}

static const StoreOps file_ops = {
    .name = "file",
    .preadv = file_preadv,
    .pwritev = file_pwritev,
    .read_nowait = file_read_nowait,
    .write_nowait = file_write_nowait,
    .write_direct = file_write_direct,
    .submit = file_submit,
    .punch = file_punch,
    .next_data = file_next_data,
    .truncate = file_truncate,
    .replace = file_replace,
    .sync = file_sync,
    .start_sync = file_start_sync,
    .allocated_bytes = file_allocated_bytes,
    .close = file_close,
};

static bool refuse_type(GError **error, const char *path, mode_t mode)
{
    const char *what = S_ISDIR(mode)    ? "a directory"
                       : S_ISCHR(mode)  ? "a character device"
                       : S_ISFIFO(mode) ? "a pipe"
                       : S_ISSOCK(mode) ? "a socket"
                                        : "no file";
    return error_set(error, S_ISDIR(mode) ? EISDIR : EINVAL,
                     "%s: is %s: an image must be a regular file or a block device", path, what);
}

/* Finds what fd is and how long. */
static bool look_at(int fd, const char *path, bool *is_device, uint64_t *size, GError **error)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return error_set_errno(error, errno, "%s: cannot be examined", path);
    }
    *is_device = S_ISBLK(st.st_mode);
    *size = st.st_size;
    if (!S_ISREG(st.st_mode) && !*is_device) {
        return refuse_type(error, path, st.st_mode);
    }
    if (*is_device && ioctl(fd, BLKGETSIZE64, size) != 0) {
        return error_set_errno(error, errno, "%s: cannot get the size of the device", path);
    }
    return true;
}

static bool refuse_read_only(GError **error, const char *path, int err)
{
    return error_set(error, err,
                     "%s: the file is read-only: make it writable, or open it read-only", path);
}

/* The descriptor must be able to do what flags ask for. */
static bool check_access(int fd, const char *path, StoreOpenFlags flags, bool is_device,
                         GError **error)
{
    int status = fcntl(fd, F_GETFL);
    int access = status & O_ACCMODE;
    int device_read_only = 0;
    if (status < 0 || access == O_WRONLY || (status & O_PATH) != 0) {
        return error_set(error, EBADF, "%s: the descriptor is not open for reading", path);
    }
    if ((flags & STORE_OPEN_WRITE) != 0) {
        if (is_device && ioctl(fd, BLKROGET, &device_read_only) != 0) {
            device_read_only = 0;
        }
        if (access != O_RDWR || device_read_only != 0) {
            return refuse_read_only(error, path, EROFS);
        }
    }
    /* O_NONBLOCK would make io_uring give up where it should wait; O_APPEND would ignore offsets. */
    if ((status & (O_NONBLOCK | O_APPEND)) != 0 &&
        fcntl(fd, F_SETFL, status & ~(O_NONBLOCK | O_APPEND)) != 0) {
        return error_set_errno(error, errno, "%s: cannot set the mode of the descriptor", path);
    }
    return true;
}

Store *store_file_from_fd(int taken_fd, const char *path, StoreOpenFlags flags, GError **error)
{
    autofd int fd = taken_fd;
    bool write = (flags & STORE_OPEN_WRITE) != 0;
    bool is_device = false;
    uint64_t size = 0;
    if (!look_at(fd, path, &is_device, &size, error) ||
        !check_access(fd, path, flags, is_device, error)) {
        return NULL;
    }
    if ((flags & STORE_OPEN_NO_LOCK) == 0 && !store_lock(fd, path, write, error)) {
        return NULL;
    }
    /* The size may have changed while somebody else had the lock. */
    if (!look_at(fd, path, &is_device, &size, error)) {
        return NULL;
    }
    StoreFile *file = g_new0(StoreFile, 1);
    file->is_device = is_device;
    file->fd = fd_steal(&fd);
    file->direct_fd = -1;
    store_init(&file->store, &file_ops, path, !write, size);
    return &file->store;
}

static bool refuse_open(GError **error, const char *path, bool write, int err)
{
    if (write && (err == EROFS || err == EACCES || err == EPERM || err == ETXTBSY) &&
        access(path, R_OK) == 0) {
        return refuse_read_only(error, path, err);
    }
    if (err == EISDIR) {
        return refuse_type(error, path, S_IFDIR);
    }
    if (err == ENXIO) { /* a socket, or a pipe without a reader */
        return error_set(error, EINVAL,
                         "%s: is no file: an image must be a regular file or a block device", path);
    }
    return error_set_errno(error, err, "%s: cannot open", path);
}

Store *store_file_open(const char *path, StoreOpenFlags flags, GError **error)
{
    bool write = (flags & STORE_OPEN_WRITE) != 0;
    /* O_NONBLOCK: a pipe must not hold us up before we have seen what it is. */
    int fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        refuse_open(error, path, write, errno);
        return NULL;
    }
    return store_file_from_fd(fd, path, flags, error);
}

Store *store_file_create(const char *path, bool replace, GError **error)
{
    /* Not O_TRUNC: what another one uses must not be emptied before its lock was seen. */
    int fd = open(
        path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (replace ? 0 : O_EXCL), 0666);
    if (fd < 0) {
        error_set_errno(error, errno, "%s: cannot create", path);
        return NULL;
    }
    g_autoptr(Store) store = store_file_from_fd(fd, path, STORE_OPEN_WRITE, error);
    if (store == NULL) {
        return NULL;
    }
    int result = file_of(store)->is_device ? 0 : store_truncate(store, 0);
    if (result != 0) {
        error_set_errno(error, -result, "%s: cannot empty the file", path);
        return NULL;
    }
    return g_steal_pointer(&store);
}

int store_file_reopen(Store *store)
{
    if (store->ops != &file_ops) {
        errno = ENOTSUP;
        return -1;
    }
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file_of(store)->fd);
    store_share(store);
    return open(path, (store->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
}

bool store_file_same(const Store *a, const Store *b)
{
    struct stat x, y;
    if (a == b || a->ops != &file_ops || b->ops != &file_ops) {
        return a == b;
    }
    return fstat(((const StoreFile *)a)->fd, &x) == 0 &&
           fstat(((const StoreFile *)b)->fd, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}
