/*
 * What is served: images, their disks, their exports.
 */
#include <stdlib.h>
#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "cli/attach-server.h"
#include "cli/serve-impl.h"
#include "engine/journal.h"
#include "map/image.h"

/* Opens the image for writing if that is wanted; one whose format cannot be written is served
 * read-only. */
static Image *open_image(const char *path, ImageOpen *how, GError **error)
{
    g_autoptr(GError) refusal = NULL;
    Image *image = image_open(path, how, &refusal);
    if (image == NULL && how->write && refusal->code == ENOTSUP) {
        how->write = false;
        image = image_open(path, how, NULL);
        if (image != NULL) {
            log_warning("%s: %s images cannot be written: served read-only (say -r to confirm)",
                        path, image->format->name);
        }
    }
    if (image == NULL) {
        g_propagate_error(error, g_steal_pointer(&refusal));
    }
    return image;
}

static char *real_path_of(const char *path)
{
    char *resolved = realpath(path, NULL);
    char *result = g_strdup(resolved != NULL ? resolved : path);
    free(resolved);
    return result;
}

/* What a server of this image that died had answered and not flushed. */
static bool take_over_journal(const Serve *serve, const ServedImage *served, GError **error)
{
    Worker *worker = g_ptr_array_index(serve->workers, 0);
    g_autofree char *path = attach_server_file(served->real_path, ATTACH_JOURNAL, NULL);
    if (path == NULL) {
        return true;
    }
    return served->write ? journal_replay(served->disk, worker, path, error)
                         : journal_check_empty(path, error);
}

/* Opens the image of path, with its disk. */
static bool open_served(Serve *serve, ServedImage *served, GError **error)
{
    const ServeOptions *o = &serve->options;
    ImageOpen how = {.write = !o->read_only, .metadata_cache = o->metadata_cache};
    if (!cli_image_open(&o->common, &how, error)) {
        return false;
    }
    g_autoptr(Image) image = open_image(served->path, &how, error);
    if (image == NULL) {
        return false;
    }
    bool guard = image->format_guessed && strcmp(image->format->name, "raw") == 0;
    served->write = image->write;
    served->image = image;
    served->disk = disk_new(image, serve->pool, guard);
    return take_over_journal(serve, served, error);
}

/* Opens one image and makes it an export. */
static bool add_image(Serve *serve, const char *path, const char *name, const char *description,
                      GError **error)
{
    ServedImage *served = g_new0(ServedImage, 1);
    served->path = path;
    served->real_path = real_path_of(path);
    g_ptr_array_add(serve->images, served);
    if (!open_served(serve, served, error)) {
        return false;
    }
    served->export = export_table_add(serve->exports, name, description, disk_node(served->disk),
                                      !served->write, error);
    return served->export != NULL;
}

bool serve_images_open(Serve *serve, GError **error)
{
    const ServeOptions *o = &serve->options;
    unsigned names = o->names != NULL ? g_strv_length(o->names) : 0;
    unsigned descriptions = o->descriptions != NULL ? g_strv_length(o->descriptions) : 0;
    for (unsigned i = 0; o->images[i] != NULL; i++) {
        g_autofree char *base = g_path_get_basename(o->images[i]);
        if (!add_image(serve, o->images[i], i < names ? o->names[i] : base,
                       i < descriptions ? o->descriptions[i] : NULL, error)) {
            return false;
        }
    }
    return true;
}

static bool close_disk(ServedImage *served)
{
    int r = served->disk != NULL ? disk_close(served->disk) : 0;
    served->disk = NULL;
    served->image = NULL;
    if (r != 0) {
        log_error("%s: the last flush failed: %s", served->path, g_strerror(-r));
    }
    return r == 0;
}

bool serve_images_suspend(Serve *serve)
{
    bool ok = true;
    for (unsigned i = 0; i < serve->images->len; i++) {
        ok &= close_disk(g_ptr_array_index(serve->images, i));
    }
    return ok;
}

bool serve_images_reopen(Serve *serve, GError **error)
{
    for (unsigned i = 0; i < serve->images->len; i++) {
        ServedImage *served = g_ptr_array_index(serve->images, i);
        if (!open_served(serve, served, error)) {
            return false;
        }
        served->export->node = disk_node(served->disk); /* nobody looks at it: all is still */
    }
    return true;
}

bool serve_images_close(Serve *serve)
{
    bool ok = true;
    for (unsigned i = 0; i < serve->images->len; i++) {
        ServedImage *served = g_ptr_array_index(serve->images, i);
        ok &= close_disk(served);
        if (served->mend) {
            serve_leaks_mend(serve, served->real_path);
        }
        g_free(served->real_path);
        g_free(served);
    }
    g_ptr_array_set_size(serve->images, 0);
    return ok;
}

ServedImage *serve_images_find(const Serve *serve, const char *real_path)
{
    for (unsigned i = 0; i < serve->images->len; i++) {
        ServedImage *served = g_ptr_array_index(serve->images, i);
        if (strcmp(served->real_path, real_path) == 0) {
            return served;
        }
    }
    return NULL;
}
