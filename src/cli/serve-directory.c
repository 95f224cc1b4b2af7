/*
 * Directories: every image below one is an export, NAME/PATH, opened when a client asks for it and
 * closed when its last client has gone.
 *
 *      [worker] directory_find --> searches --> [main] serve_directory_run --> nbd_search_done
 *
 * What must stay true: a name never leads out of its directory, and not over a symbolic link: it is
 * resolved by the kernel, below the directory, and what was opened by its path must be that very
 * file.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "cli/serve-impl.h"
#include "formats/format.h"
#include "map/image-name.h"
#include "map/image.h"
#include "nbd/search.h"
#include "store/store-file.h"

/* What is behind "NAME/"; NULL: the name is none of this directory. */
static const char *path_below(const ConfigDirectory *directory, const char *name)
{
    size_t length = strlen(directory->name);
    bool below = strncmp(name, directory->name, length) == 0 && name[length] == '/';
    return below && name[length + 1] != '\0' ? name + length + 1 : NULL;
}

static const ConfigDirectory *find_directory(const Config *config, const char *name)
{
    for (unsigned i = 0; config != NULL && i < config->directories->len; i++) {
        const ConfigDirectory *directory = g_ptr_array_index(config->directories, i);
        if (path_below(directory, name) != NULL) {
            return directory;
        }
    }
    return NULL;
}

/* One name a file: no empty parts, no dots that lead nowhere. */
static bool is_plain(const char *path)
{
    g_auto(GStrv) parts = g_strsplit(path, "/", -1);
    for (char **part = parts; *part != NULL; part++) {
        if (**part == '\0' || strcmp(*part, ".") == 0 || strcmp(*part, "..") == 0) {
            return false;
        }
    }
    return true;
}

/* The regular file of that path below the directory, or the one that stands for a directory there, without following
 * links; -1 with errno. */
static int open_below(const ConfigDirectory *directory, const char *path)
{
    autofd int top = open(directory->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct stat st;
    if (top < 0) {
        return -1;
    }
    g_autofree char *in_directory = image_name_in_directory(top, path, NULL);
    autofd int fd =
        image_name_open_beneath(top, in_directory ? in_directory : path, O_PATH | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) {
        return -1;
    }
    if (!S_ISREG(st.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    return fd_steal(&fd);
}

static bool is_file(const ServedImage *image, int fd)
{
    struct stat wanted, opened;
    autofd int own = store_file_reopen(image->image->store);
    return own >= 0 && fstat(fd, &wanted) == 0 && fstat(own, &opened) == 0 &&
           wanted.st_dev == opened.st_dev && wanted.st_ino == opened.st_ino;
}

/* Without a list: whatever tells its format by its first bytes. */
bool serve_directory_declares(const ConfigDirectory *directory, const char *format)
{
    return directory->formats != NULL
               ? g_strv_contains((const char *const *)directory->formats, format)
               : strcmp(format, "raw") != 0;
}

static bool check(const ConfigDirectory *directory, const ServedImage *image, int fd,
                  GError **error)
{
    const char *format = image->image->format->name;
    if (!is_file(image, fd)) {
        return error_set(error, EAGAIN, "%s: is another file by now: ask again", image->how.path);
    }
    return serve_directory_declares(directory, format) ||
           error_set(error, EPERM,
                     "%s: is %s: directory '%s' does not serve that: say formats=", image->how.path,
                     format, directory->name);
}

static ServedImage *open_image(Serve *serve, const ConfigDirectory *directory, const char *name,
                               GError **error)
{
    const char *below = path_below(directory, name);
    autofd int fd = is_plain(below) ? open_below(directory, below) : -1;
    if (fd < 0) {
        error_set(error, ENOENT, "no image is called '%s'", name);
        return NULL;
    }
    g_autofree char *path = g_build_filename(directory->path, below, NULL);
    bool one = directory->formats != NULL && directory->formats[1] == NULL;
    ServedHow how = {.name = (char *)name,
                     .path = path,
                     .format = one ? directory->formats[0] : NULL,
                     .secret_files = directory->secret_files,
                     .read_only = directory->read_only,
                     .access = directory->access,
                     .origin = SERVED_FOUND};
    ServedImage *image = serve_image_open(serve, &how, error);
    if (image != NULL &&
        (!check(directory, image, fd, error) || !serve_image_publish(serve, image, error))) {
        serve_image_close(serve, image);
        return NULL;
    }
    return image;
}

/* The export, pinned. It may have come since the search began. */
static Export *find(Serve *serve, const char *name)
{
    Export *export = export_table_get(serve->exports, name, strlen(name));
    const ConfigDirectory *directory = find_directory(serve_config(serve), name);
    if (export != NULL || directory == NULL || serve->handed_over) {
        return export;
    }
    g_autoptr(GError) error = NULL;
    const ServedImage *image = open_image(serve, directory, name, &error);
    if (image == NULL) {
        log_limited(LOG_LEVEL_INFO, "a client asks in vain: %s", error->message);
        return NULL;
    }
    log_info("%s: is served as '%s'", image->how.path, image->how.name);
    return export_get(image->export);
}

static bool take_search(NbdSearch *search, void *context)
{
    Serve *serve = context;
    {
        with_mutex(&serve->job_lock);
        if (!serve->has_directories ||
            (search->name != NULL && !g_utf8_validate(search->name, -1, NULL))) {
            return false;
        }
        g_queue_push_tail(&serve->searches, search);
    }
    eventfd_write(serve->job_fd, 1);
    return true;
}

static NbdSearch *next_search(Serve *serve)
{
    with_mutex(&serve->job_lock);
    return g_queue_pop_head(&serve->searches);
}

void serve_directory_run(Serve *serve, bool open)
{
    NbdSearch *search;
    while ((search = next_search(serve)) != NULL) {
        if (search->name == NULL) {
            nbd_search_listed(search, open ? serve_listing(serve) : NULL);
        } else {
            nbd_search_done(search, open ? find(serve, search->name) : NULL);
        }
    }
}

void serve_directory_changed(Serve *serve)
{
    const Config *config = serve_config(serve);
    serve_listing_forget(serve);
    with_mutex(&serve->job_lock);
    serve->has_directories = config != NULL && config->directories->len > 0;
}

void serve_directory_start(Serve *serve)
{
    serve_directory_changed(serve);
    nbd_server_set_finder(serve->server, take_search, serve);
}
