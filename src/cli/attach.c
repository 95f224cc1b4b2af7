/*
 * cownbd attach: an image as a block device of the kernel.
 *
 *      attached, and its server lives      says where
 *      a server serves the image           that one attaches it
 *      else                                a server is started, in the background; it adopts what a
 *                                          dead one left
 */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/nbdtab.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/remote.h"
#include "control/control.h"
#include "fastpath/attachment.h"

#define NOT_SAID INT_MIN /* the server's default counts */

typedef struct AttachOptions {
    CliCommon common;
    char *mode, *name, *control;
    int lines, dead_timeout, request_timeout; /* or NOT_SAID */
    gboolean read_only, persist;
    const char *device;
} AttachOptions;

static void attach_options_clear(AttachOptions *o)
{
    cli_common_clear(&o->common);
    g_free(o->mode);
    g_free(o->name);
    g_free(o->control);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(AttachOptions, attach_options_clear)

static const CliUsage usage = {
    .command = "attach",
    .arguments = "IMAGE [/dev/nbdN]",
    .summary = "Shows an image as a block device of the kernel, and prints its path. A running "
               "server that serves the\nimage does it; otherwise one is started in the "
               "background, and ends with cownbd detach. An image that\nis attached already stays "
               "where it is.",
    .example = "  cownbd attach disk.qcow2\n"
               "  mount /dev/mapper/disk.qcow2 /mnt\n"
               "  umount /mnt; cownbd detach disk.qcow2",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
};

static bool check_number(const char *option, int value, int maximum, GError **error)
{
    return value == NOT_SAID || (value >= 1 && value <= maximum) ||
           error_set(error, EINVAL, "%s is %d: must be 1 to %d", option, value, maximum);
}

static bool parse_options(AttachOptions *o, int *argc, char ***argv, GError **error)
{
    const GOptionEntry entries[] = {
        {"fast-path", 0, 0, G_OPTION_ARG_STRING, &o->mode,
         "What the kernel does itself: auto (default), off, linear or snapshot", "MODE"},
        {"fast-path-lines", 0, 0, G_OPTION_ARG_INT, &o->lines,
         "Lines of a device-mapper table at most (default: 1000)", "N"},
        {"read-only", 'r', 0, G_OPTION_ARG_NONE, &o->read_only, "The device refuses writes", NULL},
        {"name", 'n', 0, G_OPTION_ARG_STRING, &o->name,
         "Name in /dev/mapper (default: base name of the file)", "NAME"},
        {"dead-timeout", 0, 0, G_OPTION_ARG_INT, &o->dead_timeout,
         "Seconds without a server until the device fails (default: 3600)", "SECONDS"},
        {"request-timeout", 0, 0, G_OPTION_ARG_INT, &o->request_timeout,
         "Seconds until the kernel sends an unanswered request again (default: 5)", "SECONDS"},
        {"persist-nbdtab", 0, 0, G_OPTION_ARG_NONE, &o->persist,
         "Add the device to /etc/nbdtab, so that nbd-client connects it after a boot", NULL},
        REMOTE_ENTRY(&o->control),
        {NULL},
    };
    if (!cli_parse(&usage, entries, &o->common, argc, argv, error)) {
        return false;
    }
    return check_number("--fast-path-lines", o->lines, ATTACHMENT_LINES_MAX, error) &&
           check_number("--dead-timeout", o->dead_timeout, ATTACHMENT_DEAD_TIMEOUT_MAX, error) &&
           check_number("--request-timeout", o->request_timeout, ATTACHMENT_REQUEST_TIMEOUT_MAX,
                        error) &&
           attach_server_check_common(&o->common, error);
}

static void add_number(JsonObject *arguments, const char *key, int value)
{
    if (value != NOT_SAID) {
        json_object_set_int_member(arguments, key, value);
    }
}

static void add_text(JsonObject *arguments, const char *key, const char *value)
{
    if (value != NULL) {
        output_add_string(arguments, key, value);
    }
}

/* Asks the server at this socket. */
static char *attach_there(const AttachOptions *o, const char *server, const char *image,
                          GError **error)
{
    g_autoptr(JsonObject) arguments = json_object_new();
    add_text(arguments, "image", image);
    add_text(arguments, "fast-path", o->mode);
    add_text(arguments, "name", o->name);
    add_text(arguments, "device", o->device);
    add_number(arguments, "lines", o->lines);
    add_number(arguments, "dead-timeout", o->dead_timeout);
    add_number(arguments, "request-timeout", o->request_timeout);
    if (o->read_only) {
        json_object_set_boolean_member(arguments, "read-only", true);
    }
    g_autoptr(JsonObject) answer = control_call(server, "attach", arguments, error);
    return answer == NULL
               ? NULL
               : g_strdup(json_object_get_string_member_with_default(answer, "device", ""));
}

static void add_option(GPtrArray *options, const char *name, const char *value)
{
    if (value != NULL) {
        g_ptr_array_add(options, g_strconcat(name, "=", value, NULL));
    }
}

static void add_count(GPtrArray *options, const char *name, int value)
{
    if (value != NOT_SAID) {
        g_ptr_array_add(options, g_strdup_printf("%s=%d", name, value));
    }
}

/* Starts a server of our own; adopts where a device is left. */
static char *attach_here(const AttachOptions *o, const char *image, bool left, GError **error)
{
    g_autoptr(GPtrArray) options = g_ptr_array_new_with_free_func(g_free);
    attach_server_add_common(options, &o->common);
    add_option(options, "--fast-path", o->mode);
    add_option(options, "--attach-name", o->name);
    add_option(options, "--attach-device", o->device);
    add_count(options, "--fast-path-lines", o->lines);
    add_count(options, "--dead-timeout", o->dead_timeout);
    add_count(options, "--request-timeout", o->request_timeout);
    if (o->read_only) {
        g_ptr_array_add(options, g_strdup("--read-only"));
    }
    if (left) {
        attach_server_add_adopt(options, image);
    }
    return attach_server_start(image, options, error);
}

static char *attach_image(AttachOptions *o, const char *image, GError **error)
{
    g_autofree char *left = attachment_find(image);
    g_autofree char *server = attach_server_find(o->control, image, error);
    if (*error != NULL) {
        return NULL;
    }
    if (server == NULL && o->control != NULL) {
        g_autoptr(JsonObject) there = control_call(o->control, "hello", NULL, error);
        if (there != NULL) {
            error_set(error, ENOENT, "%s: the server at %s does not serve it", image, o->control);
        }
        return NULL;
    }
    if (o->persist && !nbdtab_check(server, image, error)) {
        return NULL;
    }
    char *device = server != NULL ? attach_there(o, server, image, error)
                                  : attach_here(o, image, left != NULL, error);
    if (device != NULL && o->persist && !nbdtab_add(server, image, error)) {
        g_clear_pointer(&device, g_free);
    }
    return device;
}

int cli_attach(int argc, char **argv)
{
    g_auto(AttachOptions)
        o = {.lines = NOT_SAID, .dead_timeout = NOT_SAID, .request_timeout = NOT_SAID};
    g_autoptr(GError) error = NULL;
    if (!parse_options(&o, &argc, &argv, &error)) {
        return cli_fail(error);
    }
    if (argc < 2 || argc > 3) {
        return cli_fail_usage(&usage, argc < 2 ? "no image given" : "one image at a time");
    }
    if (access(argv[1], R_OK) != 0) {
        error_set_errno(&error, errno, "%s", argv[1]);
        return cli_fail(error);
    }
    g_autofree char *image = attach_server_image(argv[1]);
    o.device = argc == 3 ? argv[2] : NULL;
    int lock = attach_server_lock(image);
    g_autofree char *device = attach_image(&o, image, &error);
    attach_server_unlock(image, lock);
    if (device == NULL) {
        return cli_fail(error);
    }
    printf("%s\n", device);
    return output_finish(0);
}
