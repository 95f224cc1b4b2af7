/*
 * qemu's image locks.
 *
 *      byte   100      101      102            103          200 ... 203
 *             reads    writes   rewrites the   resizes      cannot bear that another
 *                               same bytes                  reads ... resizes
 *
 *      writer  x        x                      x            201, 203
 *      reader  x                                            201, 203
 *
 * So readers share, and a writer goes with nobody. First all locks are taken, then the opposite
 * bytes are looked at: of two that come together at least one sees the other. Shared locks alone
 * are used, for those need no writable descriptor.
 */
#include "store/store-lock.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/log.h"

enum {
    PERM_CONSISTENT_READ = 1 << 0,
    PERM_WRITE = 1 << 1,
    PERM_WRITE_UNCHANGED = 1 << 2,
    PERM_RESIZE = 1 << 3,
    PERM_COUNT = 4,
};

#define USED_BASE     100
#define UNSHARED_BASE 200

/* Takes a shared lock on the byte of each permission in perms. 0 or -errno. */
static int take_bytes(int fd, unsigned perms, off_t base)
{
    for (int bit = 0; bit < PERM_COUNT; bit++) {
        struct flock lock = {
            .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = base + bit, .l_len = 1};
        if ((perms & 1U << bit) != 0 && fcntl(fd, F_OFD_SETLK, &lock) != 0) {
            return -errno;
        }
    }
    return 0;
}

/* *found: the first permission among perms whose byte another holds, or -1. 0 or -errno. */
static int find_conflict(int fd, unsigned perms, off_t base, int *found)
{
    *found = -1;
    for (int bit = 0; bit < PERM_COUNT; bit++) {
        struct flock lock = {
            .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + bit, .l_len = 1};
        if ((perms & 1U << bit) == 0) {
            continue;
        }
        if (fcntl(fd, F_OFD_GETLK, &lock) != 0) {
            return -errno;
        }
        if (lock.l_type != F_UNLCK) {
            *found = bit;
            return 0;
        }
    }
    return 0;
}

static bool refuse(GError **error, const char *path, bool write, int bit, bool they_use)
{
    static const char *const uses[] = {"reads", "writes", "rewrites", "resizes"};
    static const char *const bears[] = {"reading", "writing", "rewriting", "resizing"};
    if (they_use) {
        return error_set(error, EBUSY,
                         "%s: is in use by another process, which %s it: stop that process first",
                         path, uses[bit]);
    }
    return error_set(error, EBUSY,
                     "%s: is in use by another process, which does not allow %s it: stop that "
                     "process first%s",
                     path, bears[bit], write ? ", or open the image read-only" : "");
}

/* A file system without locks: a reader goes on, a writer must not. */
static bool cannot_lock(GError **error, const char *path, bool write, int err)
{
    if (write) {
        return error_set_errno(error, err, "%s: cannot lock the file for writing", path);
    }
    log_info("%s: read without a lock: %s", path, g_strerror(err));
    return true;
}

bool store_lock(int fd, const char *path, bool write, GError **error)
{
    const unsigned used = PERM_CONSISTENT_READ | (write ? PERM_WRITE | PERM_RESIZE : 0);
    const unsigned unshared = PERM_WRITE | PERM_RESIZE;
    int err = take_bytes(fd, used, USED_BASE);
    if (err == 0) {
        err = take_bytes(fd, unshared, UNSHARED_BASE);
    }
    if (err == -EAGAIN ||
        err == -EACCES) { /* somebody locks the bytes exclusively: not qemu's way */
        return error_set(error, EBUSY, "%s: is in use by another process: stop that process first",
                         path);
    }
    int in_use = -1, objection = -1;
    if (err == 0) {
        err = find_conflict(fd, unshared, USED_BASE, &in_use);
    }
    if (err == 0 && in_use < 0) {
        err = find_conflict(fd, used, UNSHARED_BASE, &objection);
    }
    if (err != 0) {
        return cannot_lock(error, path, write, -err);
    }
    if (in_use >= 0) {
        return refuse(error, path, write, in_use, true);
    }
    return objection < 0 || refuse(error, path, write, objection, false);
}
