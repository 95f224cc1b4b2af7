/*
 * cownbd detach: takes a block device down that cownbd attach made.
 *
 * The server of the image does it, and leaves when it was started by attach. Where the server has
 * died, a new one adopts the device first: what waits in it is done, not lost.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/fold-progress.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/remote.h"
#include "control/control.h"
#include "fastpath/attachment.h"

typedef struct DetachOptions {
    CliCommon common;
    char *control;
    gboolean no_fold;
} DetachOptions;

static void detach_options_clear(DetachOptions *o)
{
    cli_common_clear(&o->common);
    g_free(o->control);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(DetachOptions, detach_options_clear)

static const CliUsage usage = {
    .command = "detach",
    .arguments = "DEVICE|IMAGE",
    .summary = "Flushes and takes down a block device that cownbd attach made. Refuses while "
               "somebody uses it, and\nwhat cownbd did not make.",
    .example = "  cownbd detach /dev/mapper/disk.qcow2\n"
               "  cownbd detach disk.qcow2",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
};

/* The real path of the image that the argument means. */
static char *find_image(const char *argument, GError **error)
{
    char *image = attach_server_argument(argument, error);
    g_autofree char *device = image != NULL ? attachment_find(image) : NULL;
    if (image != NULL && device == NULL) {
        error_set(error, ENODEV, "%s: is not attached", image);
        g_clear_pointer(&image, g_free);
    }
    return image;
}

/* A server that adopts what a dead one left; its control socket. */
static char *start_server(const DetachOptions *o, const char *image, GError **error)
{
    g_autoptr(GPtrArray) options = g_ptr_array_new_with_free_func(g_free);
    attach_server_add_adopt(options, image);
    attach_server_add_common(options, &o->common);
    g_autofree char *device = attach_server_start(image, options, error);
    if (device == NULL) {
        g_prefix_error(error,
                       "no server lives, and a new one cannot take over (cownbd rescue gives "
                       "the device up): ");
        return NULL;
    }
    return attach_server_file(image, ".sock", error);
}

static bool wait_for_the_end(JsonObject *answer, const char *image, GError **error)
{
    int pid = json_object_get_int_member_with_default(answer, "pid", 0);
    bool leaves = json_object_get_boolean_member_with_default(answer, "leaves", false);
    return !leaves || pid <= 0 || attach_server_wait(pid) ||
           error_set(error, ETIMEDOUT, "%s: detached, but its server (process %d) does not end",
                     image, pid);
}

/* After snapshot mode: what was written comes into the image. */
static bool fold(const DetachOptions *o, const char *image, GError **error)
{
    FoldOptions how = {.progress = fold_progress_print};
    FoldResult result;
    if (!cli_image_open(&o->common, &how.how, error) ||
        !fold_image(image, NULL, &how, &result, error)) {
        g_prefix_error(error, "detached, but not folded (cownbd fold does it later): ");
        return false;
    }
    fold_print_result(image, &result);
    return true;
}

static bool detach_image(const DetachOptions *o, const char *image, GError **error)
{
    g_autofree char *server = attach_server_find(o->control, image, error);
    if (server == NULL && *error == NULL) {
        server = start_server(o, image, error);
    }
    if (server == NULL) {
        return false;
    }
    g_autoptr(JsonObject) arguments = json_object_new();
    output_add_string(arguments, "image", image);
    g_autoptr(JsonObject) answer = control_call(server, "detach", arguments, error);
    if (answer == NULL) {
        return false;
    }
    const char *mode = json_object_get_string_member_with_default(answer, "fast-path", "");
    bool folds = strcmp(mode, "snapshot") == 0 && !o->no_fold;
    return wait_for_the_end(answer, image, error) && (!folds || fold(o, image, error));
}

int cli_detach(int argc, char **argv)
{
    g_auto(DetachOptions) o = {0};
    g_autoptr(GError) error = NULL;
    const GOptionEntry entries[] = {
        {"no-fold", 0, 0, G_OPTION_ARG_NONE, &o.no_fold,
         "Fast path snapshot: leave the store beside the image, for cownbd fold", NULL},
        REMOTE_ENTRY(&o.control),
        {NULL},
    };
    if (!cli_parse(&usage, entries, &o.common, &argc, &argv, &error) ||
        !attach_server_check_common(&o.common, &error)) {
        return cli_fail(error);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, argc < 2 ? "no device given" : "one device at a time");
    }
    g_autofree char *image = find_image(argv[1], &error);
    if (image == NULL) {
        return cli_fail(error);
    }
    int lock = attach_server_lock(image);
    bool done = detach_image(&o, image, &error);
    attach_server_unlock(image, lock);
    return done ? output_finish(0) : cli_fail(error);
}
