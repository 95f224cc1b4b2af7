/*
 * The file that create writes.
 *
 * What must stay true: the old file, if there is one, stays write-locked until the new one has its
 * name, so that no server can begin to write it in between; a device keeps its lock for as long as
 * its store is open.
 */
#include "cli/create-target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "store/store-file.h"

#define NAME_TRIES 16

bool target_is_file(const char *path, const char *other)
{
    struct stat a, b;
    return stat(path, &a) == 0 && stat(other, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* A name that nobody has, beside the target. */
static char *name_beside(const CreateTarget *target)
{
    g_autofree char *directory = g_path_get_dirname(target->path);
    return g_strdup_printf("%s/.cownbd-%08x.new", directory, g_random_int());
}

/* An empty file without a name: whatever kills us, nothing is left of it. -1 where the file system
 * cannot do that. */
static int open_nameless(CreateTarget *target)
{
    g_autofree char *directory = g_path_get_dirname(target->path);
    int fd = open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0666);
    target->nameless = fd >= 0;
    return fd;
}

/* An empty file of a name that nobody has, beside the target. -1 with *error. */
static int open_beside(CreateTarget *target, GError **error)
{
    for (unsigned i = 0; i < NAME_TRIES; i++) {
        g_autofree char *name = name_beside(target);
        int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            target->new_path = g_steal_pointer(&name);
            return fd;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    error_set_errno(error, errno, "%s: cannot create a file in its directory", target->path);
    return -1;
}

/* The new file is its owner's as the old one was, as far as we may. */
static bool copy_owner(int fd, const char *path, const struct stat *old, GError **error)
{
    if (fchown(fd, old->st_uid, old->st_gid) < 0 && errno != EPERM) {
        return error_set_errno(error, errno, "%s: cannot keep its owner", path);
    }
    if (fchmod(fd, old->st_mode & 0777) < 0) {
        return error_set_errno(error, errno, "%s: cannot keep its permissions", path);
    }
    return true;
}

static bool open_new(CreateTarget *target, const struct stat *old, GError **error)
{
    autofd int fd = open_nameless(target);
    fd = fd < 0 ? open_beside(target, error) : fd;
    if (fd < 0 || (old && !copy_owner(fd, target->path, old, error))) {
        return false;
    }
    /* The name in messages is that of the target: the other one means nothing to the user. */
    target->store = store_file_from_fd(fd_steal(&fd), target->path, STORE_OPEN_WRITE, error);
    return target->store != NULL;
}

bool target_open(CreateTarget *target, const char *path, GError **error)
{
    struct stat st;
    char *resolved = realpath(path, NULL);
    target->path = g_strdup(resolved ? resolved : path);
    free(resolved);
    if (stat(target->path, &st) < 0) {
        return errno == ENOENT ? open_new(target, NULL, error)
                               : error_set_errno(error, errno, "%s: cannot look at it", path);
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        return error_set(error, EINVAL, "%s: is no regular file and no block device", path);
    }
    Store *store = store_file_open(target->path, STORE_OPEN_WRITE, error);
    if (!store) {
        return false;
    }
    if (S_ISBLK(st.st_mode)) {
        target->store = store;
        return true;
    }
    target->old_store = store;
    return open_new(target, &st, error);
}

bool target_is_new(const CreateTarget *target)
{
    return target->nameless || target->new_path;
}

static bool sync_directory(const char *path, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);
    autofd int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL)) {
        return error_set_errno(error, errno, "%s: cannot sync the directory", directory);
    }
    return true;
}

/* Gives the nameless file this name. 0, or -errno: -EEXIST where it is taken. */
static int link_as(const CreateTarget *target, const char *path)
{
    autofd int fd = store_file_reopen(target->store);
    if (fd < 0) {
        return -errno;
    }
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

/* A nameless file gets its name at once where nobody has that; else another one, which is then
 * renamed: a link replaces nothing. */
static int name_nameless(CreateTarget *target)
{
    int r = link_as(target, target->path);
    for (unsigned i = 0; r == -EEXIST && i < NAME_TRIES; i++) {
        g_autofree char *name = name_beside(target);
        r = link_as(target, name);
        if (r == 0) {
            target->new_path = g_steal_pointer(&name);
        }
    }
    return r;
}

bool target_commit(CreateTarget *target, GError **error)
{
    if (!target_is_new(target)) {
        return true;
    }
    int r = target->nameless ? name_nameless(target) : 0;
    if (r == 0 && target->new_path && rename(target->new_path, target->path) < 0) {
        r = -errno;
    }
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot give the image its name", target->path);
    }
    target->nameless = false;
    g_clear_pointer(&target->new_path, g_free);
    return sync_directory(target->path, error);
}

void target_clear(CreateTarget *target)
{
    if (target->new_path) {
        unlink(target->new_path);
    }
    g_clear_pointer(&target->store, store_unref);
    g_clear_pointer(&target->old_store, store_unref);
    g_clear_pointer(&target->new_path, g_free);
    g_clear_pointer(&target->path, g_free);
}
