/*
 * The files that create writes.
 *
 *     other files get their names .... sync .... the image's own file gets its name .... sync
 *
 * Where other files are replaced, the old image loses its name first: it would consist of old and
 * new files. But not where that does not matter (exchange).
 *
 * What must stay true: the old file, if there is one, stays write-locked until the new one has its
 * name, so that no server can begin to write it in between; a device keeps its lock for as long as
 * its store is open.
 */
#include "cli/create-target.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "store/store-file.h"
#include "store/store-replace.h"

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

static bool copy_owner(int fd, const char *path, const struct stat *old, GError **error)
{
    int r = store_copy_owner(fd, old);
    return r == 0 || error_set_errno(error, -r, "%s: cannot keep its owner and mode", path);
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

static bool open_at(CreateTarget *target, const char *path, GError **error)
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

static bool is_new(const CreateTarget *target)
{
    return target->nameless || target->new_path;
}

/* ---- the image's other files ---------------------------------------------------------------- */

static void target_free(void *target)
{
    target_clear(target);
    g_free(target);
}

static bool is_taken(const CreateTarget *target, const char *path)
{
    bool taken = strcmp(path, target->path) == 0;
    for (guint i = 0; target->beside && i < target->beside->len; i++) {
        const CreateTarget *other = g_ptr_array_index(target->beside, i);
        taken |= strcmp(path, other->path) == 0;
    }
    return taken;
}

/* FormatFiles.make */
static Store *make_beside(FormatFiles *files, const char *name, GError **error)
{
    CreateTarget *target = (CreateTarget *)((char *)files - offsetof(CreateTarget, files));
    g_autofree char *directory = g_path_get_dirname(target->path);
    g_autofree char *path =
        g_path_is_absolute(name) ? g_strdup(name) : g_build_filename(directory, name, NULL);
    if (!is_new(target)) {
        error_set(error, EINVAL, "%s: is a device: an image of several files must be made of files",
                  target->path);
        return NULL;
    }
    g_autofree CreateTarget *other = g_new0(CreateTarget, 1);
    other->exchange = target->exchange;
    if (!open_at(other, path, error)) {
        target_clear(other);
        return NULL;
    }
    if (is_taken(target, other->path)) {
        error_set(error, EINVAL, "%s: would be two files of one image: give them other names",
                  other->path);
        target_clear(other);
        return NULL;
    }
    if (!target->beside) {
        target->beside = g_ptr_array_new_with_free_func(target_free);
        target->parts = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    }
    g_hash_table_insert(target->parts, g_strdup(name), other->store);
    Store *store = store_ref(other->store);
    g_ptr_array_add(target->beside, g_steal_pointer(&other));
    return store;
}

bool target_open(CreateTarget *target, const char *path, GError **error)
{
    if (!open_at(target, path, error)) {
        return false;
    }
    const char *slash = strrchr(target->path, '/');
    target->files = (FormatFiles){slash ? slash + 1 : target->path, make_beside};
    return true;
}

bool target_is_new(const CreateTarget *target)
{
    bool all_new = is_new(target);
    for (guint i = 0; target->beside && i < target->beside->len; i++) {
        all_new &= is_new(g_ptr_array_index(target->beside, i));
    }
    return all_new;
}

/* ---- names ---------------------------------------------------------------------------------- */

static bool sync_directory(const char *path, GError **error)
{
    int r = store_sync_name(path);
    return r == 0 || error_set_errno(error, -r, "%s: cannot sync the directory", path);
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

static bool give_name(CreateTarget *target, GError **error)
{
    if (!is_new(target)) {
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
    target->named = !target->exchange;
    g_clear_pointer(&target->new_path, g_free);
    return true;
}

/* The old image, when the new one takes other files from it. */
static bool remove_old(const CreateTarget *target, GError **error)
{
    bool replaces = false;
    if (target->exchange) {
        return true;
    }
    for (guint i = 0; i < target->beside->len; i++) {
        const CreateTarget *other = g_ptr_array_index(target->beside, i);
        replaces |= other->old_store != NULL;
    }
    if (!replaces || !target->old_store) {
        return true;
    }
    if (unlink(target->path) < 0) {
        return error_set_errno(error, errno, "%s: cannot remove the old image", target->path);
    }
    return sync_directory(target->path, error);
}

static bool name_beside_files(CreateTarget *target, GError **error)
{
    g_autofree char *synced = NULL;
    if (!target->beside) {
        return true;
    }
    if (!remove_old(target, error)) {
        return false;
    }
    for (guint i = 0; i < target->beside->len; i++) {
        if (!give_name(g_ptr_array_index(target->beside, i), error)) {
            return false;
        }
    }
    for (guint i = 0; i < target->beside->len; i++) {
        const CreateTarget *other = g_ptr_array_index(target->beside, i);
        g_autofree char *directory = g_path_get_dirname(other->path);
        if (g_strcmp0(directory, synced) != 0 && !sync_directory(other->path, error)) {
            return false;
        }
        g_free(synced);
        synced = g_steal_pointer(&directory);
    }
    return true;
}

bool target_commit(CreateTarget *target, GError **error)
{
    bool is_file = is_new(target);
    if (!name_beside_files(target, error) || !give_name(target, error)) {
        return false;
    }
    target->named = false;
    for (guint i = 0; target->beside && i < target->beside->len; i++) {
        CreateTarget *other = g_ptr_array_index(target->beside, i);
        other->named = false;
    }
    return !is_file || sync_directory(target->path, error);
}

void target_clear(CreateTarget *target)
{
    if (target->new_path) {
        unlink(target->new_path);
    }
    if (target->named) {
        unlink(target->path);
    }
    g_clear_pointer(&target->parts, g_hash_table_unref);
    g_clear_pointer(&target->beside, g_ptr_array_unref);
    g_clear_pointer(&target->store, store_unref);
    g_clear_pointer(&target->old_store, store_unref);
    g_clear_pointer(&target->new_path, g_free);
    g_clear_pointer(&target->path, g_free);
}
