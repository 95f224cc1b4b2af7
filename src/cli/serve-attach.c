/*
 * Kernel devices of a server: its images as /dev/nbdN or /dev/mapper/NAME (fastpath/attachment.h).
 *
 *      --attach, --adopt        at the start, every image
 *      verbs attach, detach     later, one image
 *
 * At the end, devices that nobody uses are detached; one that is in use stays in the kernel, for
 * the next server to adopt: its user waits meanwhile.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/shield.h"
#include "cli/attach-server.h"
#include "cli/output.h"
#include "cli/serve-attach-stats.h"
#include "cli/serve-impl.h"
#include "engine/journal.h"
#include "fastpath/attachment.h"
#include "map/encryption.h"

#define CONNECTIONS_MAX 16

/* Of the command line; defaults of the verb. */
static struct {
    gboolean attach, adopt, leave_after_detach, image_control;
    char *mode_name, *device, *name, *log_path;
    int lines, dead_timeout, request_timeout, connections;
    AttachMode mode;
} options = {
    .lines = ATTACHMENT_LINES_DEFAULT,
    .dead_timeout = ATTACHMENT_DEAD_TIMEOUT_DEFAULT,
    .request_timeout = ATTACHMENT_REQUEST_TIMEOUT_DEFAULT,
    .connections = 1,
};

struct ServeAttach {
    pthread_mutex_t lock;   /* attaching and detaching, one at a time */
    GPtrArray *attachments; /* Attachment *, lock */
    GPtrArray *targets;     /* Target *, of all that ever was attached, lock */
};

const GOptionEntry *serve_attach_entries(void)
{
    static const GOptionEntry entries[] = {
        {"attach", 0, 0, G_OPTION_ARG_NONE, &options.attach,
         "Show every image as a block device of the kernel", NULL},
        {"adopt", 0, 0, G_OPTION_ARG_NONE, &options.adopt,
         "Go on with the block devices that a server of these images left", NULL},
        {"fast-path", 0, 0, G_OPTION_ARG_STRING, &options.mode_name,
         "What the kernel does itself: auto, off, linear or snapshot (default: auto)", "MODE"},
        {"fast-path-lines", 0, 0, G_OPTION_ARG_INT, &options.lines,
         "Lines of a device-mapper table at most (default: 1000)", "N"},
        {"attach-name", 0, 0, G_OPTION_ARG_STRING, &options.name,
         "Name in /dev/mapper (default: base name of the file)", "NAME"},
        {"attach-device", 0, 0, G_OPTION_ARG_FILENAME, &options.device,
         "Which nbd device (default: any that is free)", "/dev/nbdN"},
        {"dead-timeout", 0, 0, G_OPTION_ARG_INT, &options.dead_timeout,
         "Seconds without a server until a block device fails (default: 3600)", "SECONDS"},
        {"request-timeout", 0, 0, G_OPTION_ARG_INT, &options.request_timeout,
         "Seconds until the kernel sends an unanswered request again (default: 5)", "SECONDS"},
        {"connections", 0, 0, G_OPTION_ARG_INT, &options.connections,
         "Sockets of a block device (default: 1; see docs/attach.md before asking for more)", "N"},
        {"image-control", 0, 0, G_OPTION_ARG_NONE, &options.image_control,
         "Put the control socket where attach and detach of the image find it", NULL},
        {"leave-after-detach", 0, 0, G_OPTION_ARG_NONE, &options.leave_after_detach,
         "End when the last block device is detached", NULL},
        {"background-log", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &options.log_path,
         "When ready, log to PATH and say no more on stdout", "PATH"},
        {NULL},
    };
    return entries;
}

bool serve_attach_is_wanted(void)
{
    return options.attach || options.adopt || options.image_control;
}

static bool check_number(const char *option, int value, int maximum, GError **error)
{
    return (value >= 1 && value <= maximum) ||
           error_set(error, EINVAL, "serve: %s is %d: must be 1 to %d", option, value, maximum);
}

static bool parse_mode(const char *name, AttachMode *mode, GError **error)
{
    return name == NULL || attachment_parse_mode(name, mode) ||
           error_set(error, EINVAL, "fast path is '%s': must be auto, off, linear or snapshot",
                     name);
}

/* A socket that the first image's path alone tells. */
static bool choose_control(ServeOptions *o, GError **error)
{
    if (!options.image_control) {
        return true;
    }
    if (o->control != NULL) {
        return error_set(error, EINVAL, "serve: --image-control and --control: choose one");
    }
    if (o->images[0] == NULL) {
        return error_set(error, EINVAL, "serve: --image-control: needs an image");
    }
    g_autofree char *image = attach_server_image(o->images[0]);
    o->control = attach_server_file(image, ".sock", error);
    return o->control != NULL;
}

static bool check_name(const char *name, GError **error)
{
    g_autofree char *safe = name != NULL ? attachment_safe_name(name) : NULL;
    return name == NULL || strcmp(safe, name) == 0 ||
           error_set(error, EINVAL, "name is '%s': must be at most 64 letters, digits and . _ + -",
                     name);
}

/* Snapshot mode, wanted or left by an earlier server: what is written goes to the store beside the
 * image, and the image itself is only read. */
static bool check_snapshot(Serve *serve, GError **error)
{
    for (char **image = serve->options.images; options.adopt && *image != NULL; image++) {
        g_autofree char *path = attach_server_image(*image), *name = NULL;
        if (attachment_find_mode(path, &name) == ATTACH_SNAPSHOT) {
            options.mode = ATTACH_SNAPSHOT;
        }
    }
    if (options.mode != ATTACH_SNAPSHOT) {
        return true;
    }
    serve->options.read_only = TRUE;
    return g_strv_length(serve->options.images) <= 1 ||
           error_set(error, EINVAL, "serve: an image in snapshot mode needs a server of its own");
}

bool serve_attach_check(Serve *serve, GError **error)
{
    unsigned images = g_strv_length(serve->options.images);
    options.adopt = options.adopt || serve->takeover != NULL;
    if (images != 1 && (options.name != NULL || options.device != NULL)) {
        return error_set(error, EINVAL,
                         "serve: --attach-name and --attach-device are for a single image");
    }
    if (!choose_control(&serve->options, error) ||
        !parse_mode(options.mode_name, &options.mode, error) || !check_name(options.name, error) ||
        !check_number("--fast-path-lines", options.lines, ATTACHMENT_LINES_MAX, error) ||
        !check_number("--dead-timeout", options.dead_timeout, ATTACHMENT_DEAD_TIMEOUT_MAX, error) ||
        !check_number("--request-timeout", options.request_timeout, ATTACHMENT_REQUEST_TIMEOUT_MAX,
                      error) ||
        !check_number("--connections", options.connections, CONNECTIONS_MAX, error)) {
        return false;
    }
    return check_snapshot(serve, error);
}

/* Where one image's connections go. Lives as long as the server. */
typedef struct Target {
    NbdServer *server;
    Export *export;
    AttachmentOptions how; /* without strings */
} Target;

static void serve_socket(void *argument, int fd, void (*gone)(void *), void *gone_argument)
{
    Target *target = argument;
    nbd_server_attach(target->server, target->export, fd, gone, gone_argument);
}

static Attachment *find_attachment(const Serve *serve, const char *path)
{
    GPtrArray *all = serve->attach->attachments;
    for (unsigned i = 0; i < all->len; i++) {
        if (strcmp(attachment_path(g_ptr_array_index(all, i)), path) == 0) {
            return g_ptr_array_index(all, i);
        }
    }
    return NULL;
}

static AttachmentOptions default_options(const ServedImage *image)
{
    return (AttachmentOptions){
        .mode = options.mode,
        .path = image->real_path,
        .name = options.name,
        .device = options.device,
        .read_only = !image->write && options.mode != ATTACH_SNAPSHOT,
        .lines_max = options.lines,
        .dead_timeout = options.dead_timeout,
        .request_timeout = options.request_timeout,
        .connections = options.connections,
        .serve_socket = serve_socket,
    };
}

/* The kernel is a client that does not notice when a server is replaced. */
static bool start_journal(const ServedImage *image, GError **error)
{
    g_autofree char *path = attach_server_file(image->real_path, ATTACH_JOURNAL, error);
    return path != NULL && journal_start(image->disk, path, error);
}

/* One whose nbd device somebody else has disconnected. */
static bool forget(Serve *serve, Attachment *attachment, GError **error)
{
    if (!attachment_detach(attachment, error)) {
        return false;
    }
    g_ptr_array_remove(serve->attach->attachments, attachment);
    return true;
}

/* What the kernel writes by itself in mode linear would be missing in bitmaps that follow what is written. */
static bool keep_bitmaps(const ServedImage *image, AttachmentOptions *how, GError **error)
{
    if (!image->image->marks || how->read_only || how->mode == ATTACH_SNAPSHOT) {
        return true;
    }
    if (how->mode == ATTACH_LINEAR) {
        return error_set(
            error, EINVAL,
            "%s: has bitmaps that follow what is written, which the kernel's own writes "
            "would not be in: attach with --fast-path=off, or disable them (cownbd "
            "bitmap disable)",
            image->real_path);
    }
    if (how->mode == ATTACH_AUTO) {
        log_warning("%s: attached without a fast path, for its bitmaps follow what is written",
                    image->real_path);
        how->mode = ATTACH_OFF;
    }
    return true;
}

/* The kernel cannot read an encrypted image by itself. */
static void keep_encrypted(const ServedImage *image, AttachmentOptions *how)
{
    if (how->mode == ATTACH_AUTO && chain_is_encrypted(image->image)) {
        log_info("%s: attached without a fast path, for it is encrypted", image->real_path);
        how->mode = ATTACH_OFF;
    }
}

static bool check_no_sandbox(const Serve *serve, GError **error)
{
    return !serve->options.confine ||
           error_set(error, EPERM,
                     "this server runs in a sandbox, which has no block devices: start it with "
                     "--sandbox=off");
}

/* Attaches the image if it is not attached here already. lock is held. */
static Attachment *attach(Serve *serve, ServedImage *image, AttachmentOptions *how, GError **error)
{
    Attachment *attachment = find_attachment(serve, image->real_path);
    if (attachment != NULL && attachment_is_alive(attachment)) {
        return attachment;
    }
    if (attachment != NULL && !forget(serve, attachment, error)) {
        return NULL;
    }
    keep_encrypted(image, how);
    if (!check_no_sandbox(serve, error) || !keep_bitmaps(image, how, error) ||
        !start_journal(image, error)) {
        return NULL;
    }
    shield_memory();
    Target *target = g_new(Target, 1);
    *target = (Target){serve->server, image->export, *how};
    target->how.name = target->how.device = NULL;
    g_ptr_array_add(serve->attach->targets, target);
    how->argument = target;
    attachment = attachment_new(image->disk, how, error);
    if (attachment != NULL) {
        g_ptr_array_add(serve->attach->attachments, attachment);
        image->mend = how->adopt && image->write;
        log_info("%s: attached as %s", image->real_path, attachment_device(attachment));
    }
    return attachment;
}

/* The verbs */

static const char *const attach_keys[] = {"image",        "fast-path",       "name",
                                          "device",       "lines",           "read-only",
                                          "dead-timeout", "request-timeout", NULL};

static bool get_limited(JsonObject *arguments, const char *key, unsigned maximum, unsigned *value,
                        GError **error)
{
    uint64_t number = *value;
    if (!control_get_uint(arguments, key, &number, error)) {
        return false;
    }
    *value = number;
    return (number >= 1 && number <= maximum) ||
           error_set(error, EINVAL, "%s is %" G_GUINT64_FORMAT ": must be 1 to %u", key, number,
                     maximum);
}

static bool options_of_arguments(JsonObject *arguments, AttachmentOptions *how, GError **error)
{
    const char *mode = NULL;
    return control_get_string(arguments, "fast-path", &mode, error) &&
           parse_mode(mode, &how->mode, error) &&
           control_get_string(arguments, "name", &how->name, error) &&
           check_name(how->name, error) &&
           control_get_string(arguments, "device", &how->device, error) &&
           control_get_bool(arguments, "read-only", &how->read_only, error) &&
           get_limited(arguments, "lines", ATTACHMENT_LINES_MAX, &how->lines_max, error) &&
           get_limited(arguments, "dead-timeout", ATTACHMENT_DEAD_TIMEOUT_MAX, &how->dead_timeout,
                       error) &&
           get_limited(arguments, "request-timeout", ATTACHMENT_REQUEST_TIMEOUT_MAX,
                       &how->request_timeout, error);
}

static bool attach_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    Serve *serve = context;
    g_autoptr(ServedImage) image = serve_image_argument(serve, arguments, error);
    if (image == NULL) {
        return false;
    }
    AttachmentOptions how = default_options(image);
    if (!options_of_arguments(arguments, &how, error)) {
        return false;
    }
    if (how.mode == ATTACH_SNAPSHOT && image->write) {
        return error_set(error, EINVAL,
                         "%s: is served for writing: snapshot needs a server of its own (end this "
                         "one, then cownbd attach --fast-path=snapshot)",
                         image->real_path);
    }
    how.read_only = how.mode != ATTACH_SNAPSHOT && (how.read_only || !image->write);
    with_mutex(&serve->attach->lock);
    Attachment *attachment = attach(serve, image, &how, error);
    if (attachment == NULL) {
        return false;
    }
    output_add_string(answer, "device", attachment_device(attachment));
    return true;
}

static const char *const detach_keys[] = {"image", NULL};

static bool detach_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    Serve *serve = context;
    g_autoptr(ServedImage) image = serve_image_argument(serve, arguments, error);
    if (image == NULL) {
        return false;
    }
    with_mutex(&serve->attach->lock);
    GPtrArray *all = serve->attach->attachments;
    Attachment *attachment = find_attachment(serve, image->real_path);
    if (attachment == NULL) {
        return error_set(error, ENODEV, "%s: is not attached", image->real_path);
    }
    AttachmentStats stats;
    attachment_get_stats(attachment, &stats);
    json_object_set_string_member(answer, "fast-path", attachment_mode_name(stats.mode));
    output_add_string(answer, "device", stats.device);
    json_object_set_int_member(answer, "pid", getpid());
    if (!attachment_detach(attachment, error)) {
        return false;
    }
    g_ptr_array_remove(all, attachment);
    bool leaves = options.leave_after_detach && all->len == 0;
    json_object_set_boolean_member(answer, "leaves", leaves);
    if (leaves) {
        serve_leave(serve);
    }
    return true;
}

bool serve_attach_has(Serve *serve, const ServedImage *image)
{
    if (serve->attach == NULL) {
        return false;
    }
    with_mutex(&serve->attach->lock);
    return find_attachment(serve, image->real_path) != NULL;
}

void serve_attach_forget(Serve *serve, const ServedImage *image)
{
    if (serve->attach == NULL) {
        return;
    }
    with_mutex(&serve->attach->lock);
    GPtrArray *targets = serve->attach->targets;
    for (unsigned i = targets->len; i-- > 0;) {
        const Target *target = g_ptr_array_index(targets, i);
        if (target->export == image->export) {
            g_ptr_array_remove_index(targets, i);
        }
    }
}

bool serve_attach_resized(Serve *serve, const ServedImage *image, GError **error)
{
    with_mutex(&serve->attach->lock);
    Attachment *attachment = find_attachment(serve, image->real_path);
    return attachment == NULL || attachment_resized(attachment, error);
}

/* What list and stats say of an image that is attached. */
static void describe(const ServedImage *image, bool stats, JsonObject *object, void *context)
{
    Serve *serve = context;
    with_mutex(&serve->attach->lock);
    Attachment *attachment = find_attachment(serve, image->real_path);
    if (attachment == NULL) {
        return;
    }
    AttachmentStats now;
    attachment_get_stats(attachment, &now);
    output_add_string(object, "device", now.device);
    if (!stats) {
        return;
    }
    json_object_set_object_member(object, "fast-path", serve_attach_stats(&now));
}

/* Start and end */

static bool attach_at_start(Serve *serve, ServedImage *image, GError **error)
{
    AttachmentOptions how = default_options(image);
    g_autofree char *left = attachment_find(image->real_path);
    how.adopt = options.adopt;
    if (left != NULL && !options.adopt && image->write) {
        return error_set(error, EBUSY,
                         "%s: a block device of it is left (%s), which the kernel may be writing "
                         "to: say --adopt, or detach it first (cownbd detach)",
                         image->real_path, left);
    }
    bool wanted = options.attach || (options.adopt && left != NULL);
    return !wanted || attach(serve, image, &how, error) != NULL;
}

/* How the image was attached here last, or by the process whose work this one takes over. */
static bool options_before(const Serve *serve, const ServedImage *image, AttachmentOptions *how,
                           GError **error)
{
    *how = default_options(image);
    GPtrArray *targets = serve->attach->targets;
    for (unsigned i = 0; i < targets->len; i++) {
        const Target *target = g_ptr_array_index(targets, i);
        if (target->export == image->export) {
            *how = target->how;
        }
    }
    how->name = how->device = NULL; /* they are what they are */
    JsonObject *told = serve_takeover_attachment(serve, image->real_path);
    return told == NULL || options_of_arguments(told, how, error);
}

/* Whatever an image has in the kernel, be it attached at the start or later. */
static bool adopt_left(Serve *serve, ServedImage *image, GError **error)
{
    AttachmentOptions how;
    g_autofree char *left = attachment_find(image->real_path);
    if (left == NULL) {
        return true;
    }
    if (!options_before(serve, image, &how, error)) {
        return false;
    }
    how.adopt = true;
    return attach(serve, image, &how, error) != NULL;
}

bool serve_attach_start(Serve *serve, GError **error)
{
    serve->attach = g_new0(ServeAttach, 1);
    pthread_mutex_init(&serve->attach->lock, NULL);
    serve->attach->attachments = g_ptr_array_new();
    serve->attach->targets = g_ptr_array_new_with_free_func(g_free);
    {
        with_mutex(&serve->attach->lock);
        for (unsigned i = 0; i < serve->images->len; i++) {
            ServedImage *image = g_ptr_array_index(serve->images, i);
            bool ok = serve->takeover != NULL ? adopt_left(serve, image, error)
                                              : attach_at_start(serve, image, error);
            if (!ok) {
                return false;
            }
        }
    }
    if (serve->control != NULL) {
        serve->describe = describe;
        serve->describe_context = serve;
        control_add_verb(serve->control, "attach", attach_keys, attach_verb, serve);
        control_add_verb(serve->control, "detach", detach_keys, detach_verb, serve);
    }
    return true;
}

/* The device stays, and with it the image is still in use. */
static void leave(Serve *serve, Attachment *attachment)
{
    serve_images_find(serve, attachment_path(attachment))->mend = false;
    attachment_leave(attachment);
}

/* The arguments of the verb that would attach it like that. */
static JsonObject *tell(const Serve *serve, const Attachment *attachment)
{
    JsonObject *object = json_object_new();
    AttachmentOptions how;
    options_before(serve, serve_images_find(serve, attachment_path(attachment)), &how, NULL);
    output_add_string(object, "image", attachment_path(attachment));
    json_object_set_string_member(object, "fast-path", attachment_mode_name(how.mode));
    json_object_set_boolean_member(object, "read-only", how.read_only);
    json_object_set_int_member(object, "lines", how.lines_max);
    json_object_set_int_member(object, "dead-timeout", how.dead_timeout);
    json_object_set_int_member(object, "request-timeout", how.request_timeout);
    return object;
}

JsonArray *serve_attach_suspend(Serve *serve)
{
    JsonArray *told = json_array_new();
    with_mutex(&serve->attach->lock);
    GPtrArray *all = serve->attach->attachments;
    for (unsigned i = 0; i < all->len; i++) {
        json_array_add_object_element(told, tell(serve, g_ptr_array_index(all, i)));
        leave(serve, g_ptr_array_index(all, i));
    }
    g_ptr_array_set_size(all, 0);
    return told;
}

void serve_attach_resume(Serve *serve)
{
    with_mutex(&serve->attach->lock);
    for (unsigned i = 0; i < serve->images->len; i++) {
        g_autoptr(GError) error = NULL;
        if (!adopt_left(serve, g_ptr_array_index(serve->images, i), &error)) {
            log_error("%s: say serve --adopt", error->message);
        }
    }
}

/* Who started us in the background reads until here. */
static void go_to_background(void)
{
    autofd int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    autofd int log = open(options.log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    fflush(stdout);
    if (null >= 0) {
        dup2(null, STDOUT_FILENO);
        dup2(log >= 0 ? log : null, STDERR_FILENO);
    }
}

void serve_attach_ready(Serve *serve)
{
    with_mutex(&serve->attach->lock);
    for (unsigned i = 0; i < serve->attach->attachments->len; i++) {
        Attachment *attachment = g_ptr_array_index(serve->attach->attachments, i);
        printf("attached %s\n", attachment_device(attachment));
    }
    fflush(stdout);
    if (options.log_path != NULL) {
        go_to_background();
    }
}

static void detach_or_leave(Serve *serve, Attachment *attachment)
{
    g_autoptr(GError) error = NULL;
    if (!attachment_detach(attachment, &error)) {
        log_warning("%s: the device stays, for the next server (serve --adopt)", error->message);
        leave(serve, attachment);
    }
}

void serve_attach_stop(Serve *serve)
{
    ServeAttach *attach = serve->attach;
    if (attach == NULL) {
        return;
    }
    serve->attach = NULL;
    for (unsigned i = 0; i < attach->attachments->len; i++) {
        detach_or_leave(serve, g_ptr_array_index(attach->attachments, i));
    }
    g_ptr_array_unref(attach->attachments);
    g_ptr_array_unref(attach->targets);
    pthread_mutex_destroy(&attach->lock);
    g_free(attach);
}
