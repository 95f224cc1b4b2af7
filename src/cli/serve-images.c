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
            log_warning("%s: this %s image cannot be written: served read-only (say -r to confirm)",
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

/* Read when it is opened first: what opens it again may be in a sandbox by then. */
static bool read_secrets(const Serve *serve, ServedImage *served, GError **error)
{
    char **files = served->how.secret_files;
    if (files == NULL || served->secrets != NULL) {
        return true;
    }
    g_autoptr(Secrets) secrets = secrets_new(serve->options.common.secrets);
    for (char **text = files; *text != NULL; text++) {
        if (!secrets_add_file(secrets, *text, error)) {
            serve_sandbox_explain(serve, error);
            return false;
        }
    }
    served->secrets = g_steal_pointer(&secrets);
    return true;
}

/* Opens the image, with its disk. */
static bool open_served(Serve *serve, ServedImage *served, GError **error)
{
    const ServeOptions *o = &serve->options;
    bool write = !served->how.read_only && !o->read_only && !o->common.snapshot;
    ImageOpen how = {.write = write, .metadata_cache = o->metadata_cache};
    if (!cli_image_open(&o->common, &how, error) || !read_secrets(serve, served, error)) {
        return false;
    }
    if (served->secrets != NULL) {
        how.secrets = served->secrets;
    }
    if (served->how.format != NULL) {
        how.format = cli_format(served->how.format, error);
        if (how.format == NULL) {
            return false;
        }
    }
    if (served->how.snapshot != NULL) {
        how.snapshot = served->how.snapshot;
    }
    g_autoptr(Image) image = open_image(served->how.path, &how, error);
    if (image == NULL) {
        serve_sandbox_explain(serve, error);
        return false;
    }
    bool guard = image->format_guessed && strcmp(image->format->name, "raw") == 0;
    served->write = image->write;
    served->image = image;
    served->disk = disk_new(image, serve->pool, guard);
    return take_over_journal(serve, served, error);
}

/* An image that is written is in one place only; the locks would refuse it, but know no names. */
static bool check_alone(const Serve *serve, const ServedImage *served, GError **error)
{
    for (unsigned i = 0; i < serve->images->len; i++) {
        const ServedImage *other = g_ptr_array_index(serve->images, i);
        if (strcmp(other->real_path, served->real_path) == 0 &&
            (other->write || !served->how.read_only)) {
            return error_set(error, EBUSY,
                             "%s: is served as '%s' already%s: an image that is written can be "
                             "served once only",
                             served->how.path, other->how.name,
                             other->leaving ? ", until its last client has gone" : "");
        }
    }
    return true;
}

bool serve_image_suspend(ServedImage *served)
{
    int r = served->disk != NULL ? disk_close(served->disk) : 0;
    served->disk = NULL;
    served->image = NULL;
    if (r != 0) {
        log_error("%s: the last flush failed: %s", served->how.path, g_strerror(-r));
    }
    return r == 0;
}

bool serve_image_resume(Serve *serve, ServedImage *served, GError **error)
{
    if (!open_served(serve, served, error)) {
        return false;
    }
    served->export->node = disk_node(served->disk); /* nobody looks at it: all is still */
    serve_bitmaps_offer(served);
    return true;
}

bool serve_image_close(Serve *serve, ServedImage *served)
{
    g_ptr_array_remove(serve->images, served);
    bool ok = serve_image_suspend(served);
    if (served->mend) {
        serve_leaks_mend(serve, served->real_path);
    }
    serve_removal_done(serve, served, ok);
    if (served->export != NULL) {
        serve_attach_forget(serve, served);
        serve_stats_keep(serve, served);
        export_free(served->export);
    }
    g_free(served->how.name);
    g_free(served->how.path);
    g_free(served->how.format);
    g_free(served->how.description);
    g_free(served->how.snapshot);
    g_strfreev(served->how.secret_files);
    secrets_free(served->secrets);
    g_strfreev(served->how.access.allow);
    g_free(served->real_path);
    g_free(served);
    return ok;
}

ServedImage *serve_image_open(Serve *serve, const ServedHow *how, GError **error)
{
    ServedImage *served = g_new0(ServedImage, 1);
    served->how = (ServedHow){.name = g_strdup(how->name),
                              .path = g_strdup(how->path),
                              .format = g_strdup(how->format),
                              .description = g_strdup(how->description),
                              .snapshot = g_strdup(how->snapshot),
                              .secret_files = g_strdupv(how->secret_files),
                              .read_only = how->read_only || how->snapshot != NULL,
                              .access = {g_strdupv(how->access.allow), how->access.require_tls},
                              .origin = how->origin};
    served->real_path = real_path_of(how->path);
    if (!check_alone(serve, served, error) || !open_served(serve, served, error)) {
        serve_image_close(serve, served);
        return NULL;
    }
    g_ptr_array_add(serve->images, served);
    return served;
}

bool serve_image_publish(Serve *serve, ServedImage *served, GError **error)
{
    const ServedHow *how = &served->how;
    g_autoptr(AccessRules) rules = serve_tls_rules(&serve->options, &how->access);
    export_table_set_access(serve->exports, rules); /* there are never any others for this one */
    served->export = export_table_add(serve->exports, how->name, how->description,
                                      disk_node(served->disk), !served->write, error);
    if (served->export != NULL) {
        serve_bitmaps_offer(served);
    }
    return served->export != NULL;
}

ServedImage *serve_images_add(Serve *serve, const ServedHow *how, GError **error)
{
    ServedImage *served = serve_image_open(serve, how, error);
    if (served != NULL && !serve_image_publish(serve, served, error)) {
        serve_image_close(serve, served);
        return NULL;
    }
    return served;
}

static bool add_declared(Serve *serve, GError **error)
{
    const Config *config = serve->options.config;
    for (unsigned i = 0; config != NULL && i < config->exports->len; i++) {
        ServedHow how = serve_declared_how(g_ptr_array_index(config->exports, i));
        if (serve_images_add(serve, &how, error) == NULL) {
            return false;
        }
    }
    return true;
}

bool serve_images_open(Serve *serve, GError **error)
{
    const ServeOptions *o = &serve->options;
    if (serve->takeover != NULL) {
        return serve_takeover_open(serve, error);
    }
    unsigned names = o->names != NULL ? g_strv_length(o->names) : 0;
    unsigned descriptions = o->descriptions != NULL ? g_strv_length(o->descriptions) : 0;
    for (unsigned i = 0; o->images[i] != NULL; i++) {
        g_autofree char *base = g_path_get_basename(o->images[i]);
        ServedHow how = {.name = i < names ? o->names[i] : base,
                         .path = o->images[i],
                         .description = i < descriptions ? o->descriptions[i] : NULL,
                         .origin = SERVED_GIVEN};
        if (serve_images_add(serve, &how, error) == NULL) {
            return false;
        }
    }
    return add_declared(serve, error);
}

bool serve_images_suspend(Serve *serve)
{
    bool ok = true;
    for (unsigned i = 0; i < serve->images->len; i++) {
        ok &= serve_image_suspend(g_ptr_array_index(serve->images, i));
    }
    return ok;
}

bool serve_images_reopen(Serve *serve, GError **error)
{
    for (unsigned i = 0; i < serve->images->len; i++) {
        if (!serve_image_resume(serve, g_ptr_array_index(serve->images, i), error)) {
            return false;
        }
    }
    return true;
}

bool serve_images_reap(Serve *serve)
{
    bool ok = true;
    for (unsigned i = serve->images->len; i-- > 0;) {
        ServedImage *served = g_ptr_array_index(serve->images, i);
        bool is_left = served->how.origin == SERVED_FOUND && !served->leaving &&
                       !serve_attach_has(serve, served) &&
                       export_table_remove_unused(serve->exports, served->export);
        if (is_left || (served->leaving && export_users(served->export) == 0)) {
            log_info("%s: is not served any more", served->how.path);
            ok &= serve_image_close(serve, served);
        }
    }
    return ok;
}

bool serve_images_close(Serve *serve)
{
    bool ok = true;
    while (serve->images->len > 0) {
        ServedImage *served = g_ptr_array_index(serve->images, 0);
        if (!served->leaving && served->export != NULL) {
            export_table_remove(serve->exports, served->export);
        }
        ok &= serve_image_close(serve, served);
    }
    return ok;
}

ServedImage *serve_images_named(const Serve *serve, const char *name)
{
    for (unsigned i = 0; i < serve->images->len; i++) {
        ServedImage *served = g_ptr_array_index(serve->images, i);
        if (!served->leaving && strcmp(served->how.name, name) == 0) {
            return served;
        }
    }
    return NULL;
}

ServedImage *serve_images_find(const Serve *serve, const char *real_path)
{
    ServedImage *found = NULL;
    for (unsigned i = 0; i < serve->images->len; i++) {
        ServedImage *served = g_ptr_array_index(serve->images, i);
        if (strcmp(served->real_path, real_path) == 0 && (found == NULL || found->leaving)) {
            found = served;
        }
    }
    return found;
}

/* For other threads */

typedef struct Search {
    const char *real_path;
    ServedImage *found;
} Search;

static void search_job(Serve *serve, void *argument)
{
    Search *search = argument;
    ServedImage *found = serve_images_find(serve, search->real_path);
    if (found != NULL && !found->leaving) {
        export_get(found->export);
        search->found = found;
    }
}

ServedImage *serve_images_get(Serve *serve, const char *real_path)
{
    Search search = {.real_path = real_path};
    serve_on_main(serve, search_job, &search);
    return search.found;
}

ServedImage *serve_image_argument(Serve *serve, JsonObject *arguments, GError **error)
{
    const char *path = NULL;
    if (!control_get_string(arguments, "image", &path, error)) {
        return NULL;
    }
    ServedImage *image = path != NULL ? serve_images_get(serve, path) : NULL;
    if (path == NULL) {
        error_set(error, EINVAL, "image is missing: must be the real path of an image");
    } else if (image == NULL) {
        error_set(error, ENOENT, "%s: is not served here: cownbd list shows what is", path);
    }
    return image;
}

void serve_image_put(ServedImage *image)
{
    export_put(image->export);
}
