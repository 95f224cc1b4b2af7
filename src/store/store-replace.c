/*
 * Host files that get other contents all at once.
 *
 *      PATH.XXXXXX written -> synced -> locked -> renamed to PATH -> directory synced
 *
 * A cut leaves the old file under the name or the new one, and at worst a file PATH.XXXXXX.
 */
#include "store/store-replace.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "store/fdio.h"
#include "store/store-lock.h"

/* Whether path is the file that is open, and may become another. */
static int look_at(const char *path, int old, struct stat *st)
{
    struct stat named;
    if (stat(path, &named) != 0 || fstat(old, st) != 0) {
        return -errno;
    }
    if (named.st_dev != st->st_dev || named.st_ino != st->st_ino) {
        return -ESTALE;
    }
    return !S_ISREG(st->st_mode) ? -ENOTSUP : st->st_nlink > 1 ? -EMLINK : 0;
}

static int lock(int fd, const char *path)
{
    g_autoptr(GError) error = NULL;
    return store_lock(fd, path, true, &error) ? 0 : -error->code;
}

int store_copy_owner(int fd, const struct stat *like)
{
    struct stat st;
    if (fstat(fd, &st) != 0) {
        return -errno;
    }
    bool same_owner = st.st_uid == like->st_uid && st.st_gid == like->st_gid;
    if (!same_owner && fchown(fd, like->st_uid, like->st_gid) != 0 && errno != EPERM) {
        return -errno;
    }
    return fchmod(fd, like->st_mode & 0777) != 0 ? -errno : 0;
}

static int fill(int fd, const struct stat *like, const void *bytes, size_t length)
{
    struct iovec iov = {(void *)bytes, length};
    uint64_t end;
    int r = store_copy_owner(fd, like);
    r = r < 0 ? r : fdio_write(fd, &iov, 1, 0, &end);
    return r < 0 ? r : fsync(fd) != 0 ? -errno : 0;
}

int store_sync_name(const char *path)
{
    g_autofree char *directory = g_path_get_dirname(path);
    autofd int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || (fsync(fd) < 0 && errno != EINVAL) ? -errno : 0;
}

int store_replace_file(const char *path, int old, const void *bytes, size_t length, int *fd)
{
    struct stat st;
    *fd = -1;
    char *real = realpath(path, NULL);
    int r = real ? look_at(real, old, &st) : -errno;
    g_autofree char *draft = g_strconcat(real ? real : path, ".XXXXXX", NULL);
    autofd int new = r == 0 ? mkostemp(draft, O_CLOEXEC) : -1;
    r = r == 0 && new < 0 ? -errno : r;
    if (new >= 0) {
        r = fill(new, &st, bytes, length);
        r = r < 0 ? r : lock(new, path);
        r = r == 0 && rename(draft, real) != 0 ? -errno : r;
        if (r == 0) {
            *fd = fd_steal(&new);
            r = store_sync_name(real);
        } else {
            (void)unlink(draft);
        }
    }
    free(real);
    return r;
}
