/*
 * Exports that come and go while others are served.
 *
 *      add       opens an image, which is an export from then on
 *      remove    nobody new finds it; --mode says what becomes of those who have it:
 *                  safe   there must be none
 *                  hide   they may stay, the image is closed when the last has gone
 *                  hard   they are sent away once their requests in flight are done
 *      kick      sends clients away, the export stays
 *      reload    the same from a configuration, see serve-reload.c
 *
 * All of it happens on main, between its waits: requests of other exports do not notice. What must
 * stay true: an image is closed only when its export is removed and nobody has it pinned.
 */
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "cli/output.h"
#include "cli/serve-impl.h"
#include "formats/format.h"
#include "map/image.h"
#include "nbd/server-clients.h"

#define CLOSE_SECONDS 30 /* for the clients of --mode=hard to go, which takes few */

/* add */

typedef struct Addition {
    ServedHow how;
    JsonObject *answer;
    GError *error;
} Addition;

static void add_job(Serve *serve, void *argument)
{
    Addition *addition = argument;
    const ServedImage *image = serve_images_add(serve, &addition->how, &addition->error);
    if (image == NULL) {
        return;
    }
    log_info("%s: is served as '%s'", image->how.path, image->how.name);
    output_add_string(addition->answer, "name", image->how.name);
    output_add_string(addition->answer, "image", image->real_path);
    json_object_set_string_member(addition->answer, "format", image->image->format->name);
    json_object_set_int_member(addition->answer, "size", image->export->node->size);
    json_object_set_boolean_member(addition->answer, "read-only", image->export->read_only);
}

static const char *const add_keys[] = {"image",     "name",     "format",      "description",
                                       "read-only", "snapshot", "secret-file", NULL};

/* Ours is not the directory in which they were written down. */
static bool check_secret_files(char *const *files, GError **error)
{
    for (; files != NULL && *files != NULL; files++) {
        if (!g_path_is_absolute(secret_text_source(*files))) {
            return error_set(error, EINVAL,
                             "secret-file is '%s': must be [IMAGE=]FILE, FILE being an absolute "
                             "path",
                             *files);
        }
    }
    return true;
}

static bool add_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    const char *image = NULL, *name = NULL, *format = NULL, *description = NULL, *snapshot = NULL;
    g_auto(GStrv) secret_files = NULL;
    Serve *serve = context;
    bool read_only = false;
    if (!control_get_string(arguments, "image", &image, error) ||
        !control_get_string(arguments, "name", &name, error) ||
        !control_get_string(arguments, "format", &format, error) ||
        !control_get_string(arguments, "description", &description, error) ||
        !control_get_string(arguments, "snapshot", &snapshot, error) ||
        !control_get_strings(arguments, "secret-file", &secret_files, error) ||
        !control_get_bool(arguments, "read-only", &read_only, error) ||
        !check_secret_files(secret_files, error)) {
        return false;
    }
    if (image == NULL || !g_path_is_absolute(image)) {
        return error_set(error, EINVAL, "image is '%s': must be the absolute path of an image",
                         image != NULL ? image : "");
    }
    g_autofree char *base = g_path_get_basename(image);
    Addition addition = {.how = {.name = (char *)(name != NULL ? name : base),
                                 .path = (char *)image,
                                 .format = (char *)format,
                                 .description = (char *)description,
                                 .snapshot = (char *)snapshot,
                                 .secret_files = secret_files,
                                 .read_only = read_only,
                                 .origin = SERVED_GIVEN},
                         .answer = answer};
    if (!serve_on_main(serve, add_job, &addition)) {
        return serve_is_ending(error);
    }
    if (addition.error != NULL) {
        g_propagate_error(error, addition.error);
        return false;
    }
    return true;
}

/* remove */

typedef enum { REMOVE_SAFE, REMOVE_HIDE, REMOVE_HARD } RemoveMode;

static const char *const mode_names[] = {"safe", "hide", "hard", NULL};

/* Of an image on its way out; on the stack of who waits for it. */
struct ServeRemoval {
    const char *name;
    RemoveMode mode;
    ServedImage *image; /* valid until closed */
    unsigned clients;
    bool closed, flushed; /* job_lock */
    GError *error;
};

static bool take_out(Serve *serve, ServedImage *image, RemoveMode mode, GError **error)
{
    if (serve_attach_has(serve, image)) {
        return error_set(error, EBUSY, "export '%s' is a block device: detach it first",
                         image->how.name);
    }
    if (mode != REMOVE_SAFE) {
        export_table_remove(serve->exports, image->export);
    } else if (!export_table_remove_unused(serve->exports, image->export)) {
        return error_set(error, EBUSY,
                         "export '%s' has clients: --mode=hide lets them finish, --mode=hard sends "
                         "them away",
                         image->how.name);
    }
    image->leaving = true;
    return true;
}

static void remove_job(Serve *serve, void *argument)
{
    ServeRemoval *removal = argument;
    ServedImage *image = serve_images_named(serve, removal->name);
    if (image == NULL) {
        error_set(&removal->error, ENOENT, "no export is called '%s': cownbd list shows them",
                  removal->name);
        return;
    }
    if (!take_out(serve, image, removal->mode, &removal->error)) {
        return;
    }
    image->removal = removal;
    removal->image = image;
    NbdCounts counts;
    nbd_server_get_counts(serve->server, image->export, &counts);
    removal->clients = counts.connections;
    if (removal->mode == REMOVE_HARD) {
        nbd_server_kick(serve->server, 0, image->export);
    }
    serve_images_reap(serve);
}

void serve_removal_done(Serve *serve, ServedImage *image, bool flushed)
{
    with_mutex(&serve->job_lock);
    if (image->removal != NULL) {
        image->removal->closed = true;
        image->removal->flushed = flushed;
        pthread_cond_broadcast(&serve->job_changed);
    }
}

/* Waits for the image to be closed where that does not take until its clients choose to go. */
static void await_close(Serve *serve, ServeRemoval *removal)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += CLOSE_SECONDS;
    with_mutex(&serve->job_lock);
    int r = 0;
    while (removal->mode == REMOVE_HARD && !removal->closed && !serve->leaving && r == 0) {
        r = pthread_cond_timedwait(&serve->job_changed, &serve->job_lock, &end);
    }
    if (!removal->closed) {
        removal->image->removal = NULL;
    }
}

static bool parse_mode(const char *name, RemoveMode *mode, GError **error)
{
    *mode = REMOVE_SAFE;
    for (unsigned i = 0; mode_names[i] != NULL; i++) {
        if (name != NULL && strcmp(mode_names[i], name) == 0) {
            *mode = i;
            return true;
        }
    }
    return name == NULL ||
           error_set(error, EINVAL, "mode is '%s': must be safe, hide or hard", name);
}

static const char *const remove_keys[] = {"name", "mode", NULL};

static bool remove_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    Serve *serve = context;
    const char *mode = NULL;
    ServeRemoval removal = {0};
    if (!control_get_string(arguments, "name", &removal.name, error) ||
        !control_get_string(arguments, "mode", &mode, error) ||
        !parse_mode(mode, &removal.mode, error)) {
        return false;
    }
    if (removal.name == NULL) {
        return error_set(error, EINVAL, "name is missing: must be the name of an export");
    }
    if (!serve_on_main(serve, remove_job, &removal)) {
        return serve_is_ending(error);
    }
    if (removal.error != NULL) {
        g_propagate_error(error, removal.error);
        return false;
    }
    await_close(serve, &removal);
    if (removal.closed && !removal.flushed) {
        return error_set(error, EIO,
                         "export '%s' is removed, but its last flush failed: see the log",
                         removal.name);
    }
    output_add_string(answer, "name", removal.name);
    json_object_set_int_member(answer, "clients", removal.clients);
    json_object_set_boolean_member(answer, "closed", removal.closed);
    return true;
}

/* kick */

typedef struct Kick {
    const char *export;
    uint64_t client;
    unsigned kicked;
    GError *error;
} Kick;

static void kick_job(Serve *serve, void *argument)
{
    Kick *kick = argument;
    const ServedImage *image =
        kick->export != NULL ? serve_images_named(serve, kick->export) : NULL;
    if (kick->export != NULL && image == NULL) {
        error_set(&kick->error, ENOENT, "no export is called '%s': cownbd list shows them",
                  kick->export);
        return;
    }
    kick->kicked =
        nbd_server_kick(serve->server, kick->client, image != NULL ? image->export : NULL);
    if (kick->kicked == 0 && kick->client != 0) {
        error_set(&kick->error, ENOENT,
                  "no client has number %" G_GUINT64_FORMAT "%s: cownbd list shows them",
                  kick->client, image != NULL ? " there" : "");
    }
}

static const char *const kick_keys[] = {"client", "export", NULL};

static bool kick_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    Serve *serve = context;
    Kick kick = {0};
    if (!control_get_uint(arguments, "client", &kick.client, error) ||
        !control_get_string(arguments, "export", &kick.export, error)) {
        return false;
    }
    if (kick.client == 0 && kick.export == NULL) {
        return error_set(error, EINVAL, "kick: name a client by its number, or an export");
    }
    if (!serve_on_main(serve, kick_job, &kick)) {
        return serve_is_ending(error);
    }
    if (kick.error != NULL) {
        g_propagate_error(error, kick.error);
        return false;
    }
    json_object_set_int_member(answer, "clients", kick.kicked);
    return true;
}

/* reload */

typedef struct ReloadRun {
    JsonObject *answer;
    GError *error;
} ReloadRun;

static void reload_job(Serve *serve, void *argument)
{
    ReloadRun *run = argument;
    serve_reload(serve, run->answer, &run->error);
}

static bool reload_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    ReloadRun run = {.answer = answer};
    if (!serve_on_main(context, reload_job, &run)) {
        return serve_is_ending(error);
    }
    if (run.error != NULL) {
        g_propagate_error(error, run.error);
        return false;
    }
    return true;
}

static void wake_main(void *context)
{
    const Serve *serve = context;
    eventfd_write(serve->job_fd, 1);
}

void serve_exports_start(Serve *serve)
{
    export_table_set_idle(serve->exports, wake_main, serve);
    if (serve->control != NULL) {
        control_add_verb(serve->control, "add", add_keys, add_verb, serve);
        control_add_verb(serve->control, "remove", remove_keys, remove_verb, serve);
        control_add_verb(serve->control, "reload", NULL, reload_verb, serve);
        control_add_verb(serve->control, "kick", kick_keys, kick_verb, serve);
    }
}
