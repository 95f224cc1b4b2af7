/*
 * The store file of a snapshot: made, opened, locked, grown.
 *
 * What must stay true:
 *  1. Every byte that the loop device shows has space on the host. A write that the host refused
 *     would make the kernel give up the whole snapshot, and with it all that was written; a store
 *     that is used up only makes it refuse new writes. So space is taken first, then the file
 *     becomes longer, then the device.
 *  2. The device never ends just before an area (exceptions_fit_size).
 *  3. A store appears under its name only when its header is complete.
 *
 * The lock lies on the open file, which the loop device keeps: it lasts as long as the kernel uses
 * the store, whoever lives.
 */
#include "fastpath/snapshot-store.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "fastpath/cowstore.h"
#include "fastpath/exceptions.h"
#include "store/store-file.h"
#include "store/store-lock.h"

#define CHUNK_MIN      (16u << 10)
#define CHUNK_MAX      COWSTORE_BASE
#define EXCEPTIONS_TOP (1u << 24)  /* of a disk written all over: 512 MiB of kernel memory */
#define FIRST_SIZE     (4u << 20)  /* bytes of a new store, before it grows */
#define HOST_KEEPS     (64u << 20) /* bytes that are left to the host: a fold needs half of them */

/* Small chunks copy little for a small write: a random write of 4 KiB reads 12 KiB of the origin and
 * writes 16, and the records of an area as many again. But each chunk that was written takes 32
 * bytes of the kernel's memory for as long as the device is there. */
uint32_t snapshot_store_chunk(uint64_t disk_size)
{
    uint32_t chunk = CHUNK_MIN;
    while (chunk < CHUNK_MAX && disk_size / chunk > EXCEPTIONS_TOP) {
        chunk *= 2;
    }
    return chunk;
}

/* A Store on the same open file: the lock is that of fd. */
static Store *store_on(int fd, const char *path, GError **error)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
        error_set_errno(error, errno, "%s: cannot open", path);
        return NULL;
    }
    return store_file_from_fd(copy, path, STORE_OPEN_WRITE | STORE_OPEN_NO_LOCK, error);
}

static bool sync_folder(const char *path, GError **error)
{
    g_autofree char *folder = g_path_get_dirname(path);
    autofd int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return (fd >= 0 && fsync(fd) == 0) ||
           error_set_errno(error, errno, "%s: cannot make its files durable", folder);
}

/* Takes space for [from, to) of the file and leaves its length alone. 0 or -errno. */
static int take_space(int fd, uint64_t from, uint64_t to)
{
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, from, to - from) == 0) {
        return 0;
    }
    /* A filesystem that cannot: the C library writes to every block instead. */
    return errno == EOPNOTSUPP ? -posix_fallocate(fd, from, to - from) : -errno;
}

/* Rule 1, without the device. size: bytes of the kernel's part. */
static int extend_file(SnapshotStore *store, uint64_t size)
{
    int r = take_space(store->fd, COWSTORE_BASE + store->size, COWSTORE_BASE + size);
    if (r == 0 && ftruncate(store->fd, COWSTORE_BASE + size) != 0) {
        r = -errno;
    }
    if (r == 0) {
        store->size = size;
    }
    return r;
}

/* ---- making and opening -------------------------------------------------------------------- */

static bool fill_new(SnapshotStore *store, Image *image, GError **error)
{
    CowstoreHeader header = {.state = COWSTORE_OPEN, .chunk = store->chunk};
    if (!cowstore_origin(image, &header.origin, error)) {
        return false;
    }
    uint64_t first = exceptions_fit_size(min_u64(FIRST_SIZE, store->size_limit), store->chunk);
    int r = extend_file(store, first);
    g_autoptr(Store) file = r == 0 ? store_on(store->fd, store->path, error) : NULL;
    if (r == 0 && !file) {
        return false;
    }
    r = r == 0 ? cowstore_write_header(file, &header) : r;
    return r == 0 || error_set_errno(error, -r, "%s: cannot be made", store->path);
}

static bool make(SnapshotStore *store, Image *image, GError **error)
{
    g_autofree char *draft = g_strconcat(store->path, ".new", NULL);
    unlink(draft); /* of an attach that was cut off */
    store->created = true;
    store->size_limit = exceptions_full_size(image->size, store->chunk);
    store->fd = open(draft, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (store->fd < 0) {
        return error_set_errno(error, errno, "%s: cannot be made", draft);
    }
    bool made = store_lock(store->fd, draft, true, error) && fill_new(store, image, error);
    if (made && rename(draft, store->path) != 0) {
        made = error_set_errno(error, errno, "%s: cannot be made", store->path);
    }
    if (!made) {
        unlink(draft);
    }
    return made && sync_folder(store->path, error);
}

/* What the header says, and the size of the file. */
static bool take_header(SnapshotStore *store, Image *image, CowstoreHeader *header, Store *file,
                        GError **error)
{
    struct stat status;
    if (!cowstore_read_header(file, header, error)) {
        return false;
    }
    if (fstat(store->fd, &status) != 0 || status.st_size < COWSTORE_BASE) {
        return error_set(error, EUCLEAN, "%s: was cut short: a store begins at %u", store->path,
                         COWSTORE_BASE);
    }
    store->chunk = header->chunk;
    store->size = status.st_size - COWSTORE_BASE;
    store->size_limit = exceptions_full_size(image->size, store->chunk);
    return true;
}

/* Rule 1 for a file that has come from elsewhere: a copy may have holes. */
static bool fill_holes(SnapshotStore *store, GError **error)
{
    int r = store->size > 0 ? take_space(store->fd, COWSTORE_BASE, COWSTORE_BASE + store->size) : 0;
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot have the space that it needs", store->path);
}

/* The kernel believes what it reads there, so it is looked at first. */
static bool check_exceptions(SnapshotStore *store, Store *file, uint64_t disk_size, GError **error)
{
    Exceptions list;
    if (!exceptions_read(file, COWSTORE_BASE, disk_size, &list, error)) {
        return false;
    }
    uint32_t chunk = list.chunk;
    bool valid = list.valid;
    exceptions_clear(&list);
    if (chunk != 0 && chunk != store->chunk) {
        return error_set(error, EUCLEAN,
                         "%s: has chunks of %u bytes: must be %u as its header says", store->path,
                         chunk, store->chunk);
    }
    return valid || error_set(error, EIO,
                              "%s: the kernel has given it up: bring what is there into the image "
                              "with 'cownbd fold'",
                              store->path);
}

static bool reopen(SnapshotStore *store, Image *image, GError **error)
{
    CowstoreHeader header;
    if (!store_lock(store->fd, store->path, true, error)) {
        return false;
    }
    g_autoptr(Store) file = store_on(store->fd, store->path, error);
    if (!file || !take_header(store, image, &header, file, error)) {
        return false;
    }
    if (header.state != COWSTORE_OPEN) {
        return error_set(error, EBUSY,
                         "%s: a fold into %s was cut off: finish it first with 'cownbd fold'",
                         store->path, image->path);
    }
    return cowstore_check_origin(file, &header, image, error) &&
           check_exceptions(store, file, image->size, error) && fill_holes(store, error);
}

bool snapshot_store_open(SnapshotStore *store, const char *path, Image *image, uint32_t chunk,
                         GError **error)
{
    *store = (SnapshotStore){.path = cowstore_path(path), .fd = -1, .loop = {.fd = -1}};
    store->chunk = chunk ? chunk : snapshot_store_chunk(image->size);
    store->fd = open(store->path, O_RDWR | O_CLOEXEC);
    bool ready;
    if (store->fd >= 0) {
        ready = reopen(store, image, error);
    } else if (errno == ENOENT) {
        ready = make(store, image, error);
    } else {
        ready = error_set_errno(error, errno, "%s: cannot be opened", store->path);
    }
    if (!ready || !loop_open(&store->loop, store->fd, COWSTORE_BASE, store->path, error)) {
        snapshot_store_close(store, ready);
        return false;
    }
    return true;
}

bool snapshot_store_adopt(SnapshotStore *store, const char *path, Image *image, dev_t device,
                          GError **error)
{
    *store = (SnapshotStore){.path = cowstore_path(path), .fd = -1, .loop = {.fd = -1}};
    CowstoreHeader header;
    store->fd = open(store->path, O_RDWR | O_CLOEXEC);
    if (store->fd < 0) {
        error_set_errno(error, errno, "%s: cannot be opened", store->path);
        snapshot_store_close(store, false);
        return false;
    }
    g_autoptr(Store) file = store_on(store->fd, store->path, error);
    g_autoptr(GError) changed = NULL;
    if (!file || !take_header(store, image, &header, file, error) ||
        !loop_adopt(&store->loop, device, store->fd, COWSTORE_BASE, error)) {
        snapshot_store_close(store, false);
        return false;
    }
    if (!cowstore_check_origin(file, &header, image, &changed)) {
        log_error("%s", changed->message);
    }
    return true;
}

/* ---- use ----------------------------------------------------------------------------------- */

/* What the host has left, but for a little: who else writes there needs some too. */
static uint64_t host_share(const SnapshotStore *store)
{
    struct statvfs fs;
    uint64_t free = fstatvfs(store->fd, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;
    return free > HOST_KEEPS ? free - HOST_KEEPS : 0;
}

int snapshot_store_grow(SnapshotStore *store, uint64_t wanted)
{
    uint64_t share = host_share(store), most = store->size + share;
    wanted = min_u64(wanted, store->size_limit);
    uint64_t size = exceptions_fit_size(min_u64(wanted, most), store->chunk);
    int r = most < wanted ? -ENOSPC : 0;
    if (size > store->size) {
        int extended = extend_file(store, size);
        r = extended < 0 ? extended : r;
    }
    g_autoptr(GError) error = NULL;
    if (store->loop.size < store->size && !loop_grow(&store->loop, &error)) {
        log_limited(LOG_LEVEL_ERROR, "%s: %s", store->path, error->message);
        return -EIO;
    }
    return r;
}

int snapshot_store_sync(SnapshotStore *store)
{
    return fdatasync(store->fd) == 0 ? 0 : -errno;
}

void snapshot_store_close(SnapshotStore *store, bool remove)
{
    if (remove && store->created) {
        unlink(store->path);
    }
    loop_close(&store->loop);
    cleanup_fd(&store->fd);
    store->fd = -1;
    g_free(store->path);
    store->path = NULL;
}
