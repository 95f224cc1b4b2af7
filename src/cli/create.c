/*
 * cownbd create: makes a new, empty image.
 *
 * The image is written into a file of another name beside the target, synced, and renamed over it:
 * whoever looks sees the old file or the whole new one, and a creation that fails leaves nothing
 * behind. A target that somebody uses is not replaced. A block device is written in place.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/create-options.h"
#include "cli/create-target.h"
#include "cli/fold-progress.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/preallocate.h"
#include "cli/tool-options.h"
#include "formats/option.h"

typedef struct CreateCommand {
    const Format *format;
    const char *path;
    char *backing_name, *backing_format;
    char **option_lists;
    GHashTable *options;
    const char *size_text; /* NULL: not given */
    uint64_t size;
    bool size_known;
    Image *backing; /* opened, or NULL */
    char *preallocation_name;
    Preallocation preallocation;
    gboolean quiet, no_backing_check;
} CreateCommand;

static void create_command_clear(CreateCommand *command)
{
    g_free(command->backing_name);
    g_free(command->backing_format);
    g_free(command->preallocation_name);
    image_unref(command->backing);
    g_strfreev(command->option_lists);
    g_clear_pointer(&command->options, g_hash_table_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CreateCommand, create_command_clear)

/* The backing must open, all the way down, and gives the size when none was said. */
static bool look_at_backing(CreateCommand *command, const CliCommon *common, GError **error)
{
    if (!command->backing_name || command->no_backing_check) {
        return true;
    }
    CliCommon look = *common; /* only its size is wanted, for which no secret is needed */
    look.secrets = NULL;
    command->backing = tool_open_backing(command->path, command->backing_name,
                                         command->backing_format, &look, error);
    if (!command->backing) {
        return false;
    }
    command->size = command->backing->size;
    command->size_known = true;
    return true;
}

static bool decide_size(CreateCommand *command, GError **error)
{
    g_autofree char *option_size = NULL;
    if (!create_option_take(command->options, "size", &option_size, error)) {
        return false;
    }
    const char *text = command->size_text ? command->size_text : option_size;
    if (!text) {
        return command->size_known ||
               error_set(error, EINVAL, "%s: no size given: say it after the name, as 10G%s",
                         command->path, command->backing_name ? "" : ", or name a backing file");
    }
    if (!option_parse_size(text, &command->size)) {
        return error_set(error, EINVAL,
                         "size is '%s': must be a number of bytes, or one with K, M, G, T, P or E",
                         text);
    }
    return true;
}

/* The new image gets its space, before it has its name. */
static bool allocate_image(const CreateCommand *command, const CliCommon *common,
                           const CreateTarget *target, GError **error)
{
    if (command->preallocation == PREALLOCATE_OFF) {
        return true;
    }
    ImageOpen how = {
        .format = command->format,
        .write = true,
        .parts = target->parts,
        .secret = secrets_find(common->secrets, command->path),
    };
    g_autoptr(Image) image = image_open_store(target->store, &how, NULL, error);
    bool shows = !command->quiet && !common->json;
    if (!image || !preallocate_check(image, command->preallocation, error) ||
        !preallocate(image, 0, command->preallocation, shows ? fold_progress_print : NULL, error)) {
        return false;
    }
    int r = image_finish(image);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write metadata", image->path);
}

static bool write_image(const CreateCommand *command, const CliCommon *common, GError **error)
{
    g_auto(CreateTarget) target = {0};
    FormatCreate how = {
        .size = command->size,
        .backing_name = command->backing_name,
        .backing_format = command->backing_format,
        .backing = command->backing,
        .secret = secrets_find(common->secrets, command->path),
        .options = command->options,
        .files = &target.files,
    };
    return target_open(&target, command->path, error) &&
           command->format->create(target.store, &how, error) &&
           allocate_image(command, common, &target, error) && target_commit(&target, error);
}

static void print_human(const CreateCommand *command)
{
    printf("Formatting '%s', fmt=%s size=%" PRIu64, command->path, command->format->name,
           command->size);
    if (command->backing_name) {
        printf(" backing_file=%s backing_fmt=%s", command->backing_name, command->backing_format);
    }
    const FormatOption *option = command->format->create_options;
    for (; option->name; option++) {
        const char *value = option_lookup(command->options, option->name);
        if (value) {
            printf(" %s=%s", option->name, value);
        }
    }
    printf("\n");
}

static void print_json(const CreateCommand *command)
{
    JsonObject *object = json_object_new();
    output_add_string(object, "filename", command->path);
    json_object_set_string_member(object, "format", command->format->name);
    json_object_set_int_member(object, "virtual-size", command->size);
    if (command->backing_name) {
        output_add_string(object, "backing-filename", command->backing_name);
        output_add_string(object, "backing-filename-format", command->backing_format);
    }
    const FormatOption *option = command->format->create_options;
    for (; option->name; option++) {
        const char *value = option_lookup(command->options, option->name);
        if (value) {
            output_add_string(object, option->name, value);
        }
    }
    JsonNode *root = json_node_init_object(json_node_alloc(), object);
    json_object_unref(object);
    output_json(root);
}

static bool create_image(CreateCommand *command, const CliCommon *common, GError **error)
{
    return create_options_check(command->format, command->options, error) &&
           create_backing_take(command->options, &command->backing_name, &command->backing_format,
                               error) &&
           preallocation_take(command->options, command->backing_name, &command->preallocation_name,
                              &command->preallocation, error) &&
           look_at_backing(command, common, error) && decide_size(command, error) &&
           write_image(command, common, error);
}

static int run(CreateCommand *command, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    if (!create_image(command, common, &error)) {
        g_prefix_error(&error, "create: ");
        return cli_fail(error);
    }
    if (command->preallocation_name) { /* for who prints the options */
        g_hash_table_insert(command->options, g_strdup("preallocation"),
                            g_steal_pointer(&command->preallocation_name));
    }
    if (common->json) {
        print_json(command);
    } else if (!command->quiet) {
        print_human(command);
    }
    return output_finish(0);
}

int cli_create(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "create",
        .arguments = "IMAGE [SIZE]",
        .summary = "Makes a new, empty image. Without SIZE it is as large as its backing file.\n"
                   "A file that is there already is replaced, unless somebody uses it.",
        .example =
            "  cownbd create -f qcow2 disk.qcow2 10G\n"
            "  cownbd create -f qcow2 -b base.img -F raw -o cluster_size=128k overlay.qcow2\n"
            "  cownbd create -f qcow2 -o help",
        .flags =
            CLI_FLAG_FORMAT | CLI_FLAG_JSON | CLI_FLAG_SHARE | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
    };
    g_auto(CreateCommand) command = {.options = cli_option_table()};
    const GOptionEntry own[] = {
        {"backing", 'b', 0, G_OPTION_ARG_FILENAME, &command.backing_name,
         "Backing file, written into the image as given", "FILE"},
        {"backing-format", 'F', 0, G_OPTION_ARG_FILENAME, &command.backing_format,
         "Format of the backing file", "FMT"},
        {"option", 'o', 0, G_OPTION_ARG_FILENAME_ARRAY, &command.option_lists,
         "Options of the format (repeatable); -o help lists them", "K=V,..."},
        {"unsafe", 'u', 0, G_OPTION_ARG_NONE, &command.no_backing_check,
         "Do not look at the backing file; SIZE must be given", NULL},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &command.quiet, "Say nothing", NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error) ||
        !cli_option_lists(command.option_lists, command.options, &error) ||
        !(command.format = create_format(common.format, &error))) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (g_hash_table_contains(command.options, "help")) {
        return create_options_help(command.format);
    }
    if (argc < 2 || argc > 3) {
        return cli_fail_usage(&usage, "%d arguments given: must be IMAGE and perhaps SIZE",
                              argc - 1);
    }
    if (!attach_server_not_attached(argv[1], &error)) {
        return cli_fail(error);
    }
    command.path = argv[1];
    command.size_text = argc == 3 ? argv[2] : NULL;
    return run(&command, &common);
}
