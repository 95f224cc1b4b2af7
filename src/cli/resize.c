/*
 * cownbd resize: gives a disk another size.
 *
 *      a server has the image      that one does it, and its block device of the kernel follows
 *      else                        here
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
#include "cli/preallocate.h"
#include "cli/remote.h"
#include "cli/size-change.h"
#include "control/control.h"

typedef struct ResizeCommand {
    CliCommon common;
    char *preallocation_name, *control;
    Preallocation preallocation;
    gboolean shrink, quiet;
    const char *size_text;
    SizeChange change;
    uint64_t old_size, size;
} ResizeCommand;

static void resize_command_clear(ResizeCommand *command)
{
    cli_common_clear(&command->common);
    g_free(command->preallocation_name);
    g_free(command->control);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ResizeCommand, resize_command_clear)

static const CliUsage usage = {
    .command = "resize",
    .arguments = "IMAGE [+-]SIZE",
    .summary = "Makes a disk larger or smaller; + and - mean so much more or less. What it gains "
               "reads as zeroes. Where\na server has the image, that does it, and the block device "
               "of cownbd attach gets the new size, too.",
    .example = "  cownbd resize disk.qcow2 +10G\n"
               "  cownbd resize --shrink disk.qcow2 20G",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_JSON | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
};

static bool refuse_loss(const ResizeCommand *command, const char *image, GError **error)
{
    return error_set(error, EPERM,
                     "%s: has %" PRIu64 " bytes: making it %" PRIu64
                     " loses what lies behind: say --shrink to allow it",
                     image, command->old_size, command->size);
}

/* The image's own process has it open. */
static bool resize_there(ResizeCommand *command, const char *server, const char *image,
                         GError **error)
{
    if (command->preallocation != PREALLOCATE_OFF) {
        return error_set(error, ENOTSUP,
                         "%s: a server has it: --preallocation is for images that nobody uses",
                         image);
    }
    g_autoptr(JsonObject) arguments = json_object_new();
    output_add_string(arguments, "image", image);
    output_add_string(arguments, "size", command->size_text);
    json_object_set_boolean_member(arguments, "shrink", command->shrink);
    g_autoptr(JsonObject) answer = control_call(server, "resize", arguments, error);
    if (answer != NULL) {
        command->old_size = json_object_get_int_member_with_default(answer, "old-size", 0);
        command->size = json_object_get_int_member_with_default(answer, "size", 0);
    }
    return answer != NULL;
}

static bool change_size(ResizeCommand *command, Image *image, GError **error)
{
    uint64_t old_size = command->old_size = image->size;
    if (!preallocate_check(image, command->preallocation, error) ||
        !size_change_apply(&command->change, old_size, &command->size, error)) {
        return false;
    }
    if (command->size < old_size && !command->shrink) {
        return refuse_loss(command, image->path, error);
    }
    bool shows = !command->quiet && !command->common.json;
    if (!image_resize(image, command->size, error) ||
        !preallocate(image, old_size, command->preallocation, shows ? fold_progress_print : NULL,
                     error)) {
        return false;
    }
    command->size = image->size;
    return true;
}

static bool resize_here(ResizeCommand *command, const char *path, GError **error)
{
    ImageOpen how = {.write = true};
    if (!attach_server_not_attached(path, error) ||
        !cli_image_open(&command->common, &how, error)) {
        return false;
    }
    g_autoptr(Image) image = image_open(path, &how, error);
    if (image == NULL) {
        return false;
    }
    bool done = change_size(command, image, error);
    int r = image_finish(image);
    return done && (r == 0 || error_set_errno(error, -r, "%s: the last flush failed", path));
}

static bool resize_image(ResizeCommand *command, const char *path, GError **error)
{
    g_autofree char *image = attach_server_image(path);
    G_GNUC_UNUSED autofd int lock = attach_server_lock(image);
    g_autofree char *server = attach_server_find(command->control, image, error);
    if (*error != NULL) {
        return false;
    }
    if (server == NULL && command->control != NULL) {
        return error_set(error, ENOENT, "%s: the server at %s does not serve it", image,
                         command->control);
    }
    return server != NULL ? resize_there(command, server, image, error)
                          : resize_here(command, path, error);
}

static int print_json(const ResizeCommand *command, const char *path)
{
    JsonObject *object = json_object_new();
    output_add_string(object, "filename", path);
    json_object_set_int_member(object, "old-size", command->old_size);
    json_object_set_int_member(object, "virtual-size", command->size);
    return remote_print_json(object);
}

/* "-1G" is no option. Takes the size out of the arguments; NULL: it is not there. */
static const char *take_size(int *argc, char **argv)
{
    const char *last = *argc > 2 ? argv[*argc - 1] : "";
    bool is_size = g_ascii_isdigit(last[0]) ||
                   ((last[0] == '+' || last[0] == '-') && g_ascii_isdigit(last[1]));
    *argc -= is_size;
    return is_size ? last : NULL;
}

static bool parse(ResizeCommand *command, int *argc, char ***argv, GError **error)
{
    const GOptionEntry own[] = {
        {"shrink", 0, 0, G_OPTION_ARG_NONE, &command->shrink,
         "Allow a smaller disk: what lies behind its new end is lost", NULL},
        {"preallocation", 0, 0, G_OPTION_ARG_STRING, &command->preallocation_name,
         "Space for the new part: off (default), metadata, falloc or full", "HOW"},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &command->quiet, "Print nothing but errors", NULL},
        REMOTE_ENTRY(&command->control),
        {NULL},
    };
    command->size_text = take_size(argc, *argv);
    return cli_parse(&usage, own, &command->common, argc, argv, error) &&
           preallocation_parse(command->preallocation_name, &command->preallocation, error) &&
           (command->size_text == NULL ||
            size_change_parse(command->size_text, &command->change, error));
}

int cli_resize(int argc, char **argv)
{
    g_auto(ResizeCommand) command = {0};
    g_autoptr(GError) error = NULL;
    if (!parse(&command, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2 || command.size_text == NULL) {
        return cli_fail_usage(&usage, argc > 2 ? "must be one image, and last its size"
                                      : command.size_text == NULL && argc == 2
                                          ? "no size given: must come last, as 10G or +1G"
                                          : "no image given");
    }
    if (!resize_image(&command, argv[1], &error)) {
        return cli_fail(error);
    }
    if (command.common.json) {
        return print_json(&command, argv[1]);
    }
    if (!command.quiet) {
        g_autofree char *size = output_size(command.size);
        printf("%s: %s (%" PRIu64 " bytes)\n", argv[1], size, command.size);
    }
    return output_finish(0);
}
