/*
 * The other files of an image, which it names: opened, made, removed.
 *
 * An image on a store has those that it was given (ImageOpen.parts), one on a path finds them by their names.
 */
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/errors.h"
#include "map/image-name.h"
#include "store/store-file.h"
#include "store/store-replace.h"

Store *image_open_named(Image *image, const char *name, bool write, char **resolved, GError **error)
{
    Store *open_already = image->parts ? g_hash_table_lookup(image->parts, name) : NULL;
    if (open_already) {
        if (resolved) {
            *resolved = g_strdup(open_already->name);
        }
        return store_ref(open_already);
    }
    g_autofree char *path = NULL;
    int fd = image_name_open(image, "part", name, write, &path, error);
    if (fd < 0) {
        return NULL;
    }
    Store *store = store_file_from_fd(fd, path, image_store_flags(write, image->no_lock), error);
    if (store && resolved) {
        *resolved = g_steal_pointer(&path);
    }
    return store;
}

static Store *take_part(const Image *image, const char *name, GError **error)
{
    Store *store = g_hash_table_lookup(image->parts, name);
    int r = store ? store_truncate(store, 0) : -EACCES;
    return r == 0 ? store_ref(store)
                  : (error_set_errno(error, -r, "%s: cannot make its part '%s'", image->path, name),
                     NULL);
}

/* Whoever may not read the image may not read what it gains. */
static bool like_image(const Image *image, int fd, const char *path, GError **error)
{
    struct stat st;
    int r = stat(image->path, &st) == 0 ? store_copy_owner(fd, &st) : -errno;
    return r == 0 || error_set_errno(error, -r, "%s: cannot have the owner and mode of %s", path,
                                     image->path);
}

Store *image_make_named(Image *image, const char *name, char **resolved, GError **error)
{
    if (image->parts) {
        *resolved = g_strdup(name);
        return take_part(image, name, error);
    }
    g_autofree char *path = NULL;
    int fd = image_name_make(image, "part", name, &path, error);
    if (fd < 0) {
        return NULL;
    }
    Store *store = like_image(image, fd, path, error)
                       ? store_file_from_fd(fd, path, STORE_OPEN_WRITE, error)
                       : (close(fd), NULL);
    if (store) {
        *resolved = g_steal_pointer(&path);
    } else {
        (void)unlink(path);
    }
    return store;
}

void image_remove_named(const Image *image, Store *store, const char *resolved)
{
    if (image->parts) {
        (void)store_truncate(store, 0);
    } else {
        (void)unlink(resolved);
    }
}
