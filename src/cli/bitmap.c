/*
 * cownbd bitmap: persistent dirty bitmaps of an image that nobody uses.
 *
 *     cownbd bitmap VERB IMAGE NAME [SOURCE]     list, add, remove, clear, enable, disable, merge
 *     cownbd bitmap --add --disable ... IMAGE NAME   one or more, as qemu-img bitmap says it
 */
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/bitmap-list.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "formats/format.h"
#include "formats/option.h"

/* The command line, parsed. */
typedef struct Order {
    GArray *changes; /* BitmapChange; empty: list */
    const char *image, *name;
} Order;

static const struct {
    const char *name;
    BitmapVerb verb;
} verbs[] = {
    {"add", BITMAP_ADD},       {"remove", BITMAP_REMOVE},   {"clear", BITMAP_CLEAR},
    {"enable", BITMAP_ENABLE}, {"disable", BITMAP_DISABLE}, {"merge", BITMAP_MERGE},
};

static const CliUsage usage = {
    .command = "bitmap",
    .arguments = "list|add|remove|clear|enable|disable|merge IMAGE [NAME [SOURCE]]",
    .summary = "Persistent dirty bitmaps: which parts of a disk were written since a moment\n"
               "(qcow2). merge adds what SOURCE has, a bitmap of the image or of --source-file.\n"
               "qemu-img's --add, --remove, --clear, --enable, --disable and --merge do as well.",
    .example = "  cownbd bitmap add --granularity 64K disk.qcow2 monday\n"
               "  cownbd bitmap merge disk.qcow2 week monday\n"
               "  nbdinfo --map=qemu:dirty-bitmap:monday nbd://localhost/disk.qcow2",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_JSON | CLI_FLAG_SHARE,
};

static void add_change(Order *order, BitmapVerb verb, const char *source)
{
    BitmapChange change = {.verb = verb, .source_name = source};
    g_array_append_val(order->changes, change);
}

/* ---- the command line ---- */

static GPtrArray
    *flags_given; /* "verb" or "merge=SOURCE"; GOption gives a callback nothing of ours */

static gboolean note_flag(const char *option, const char *value, void *data, GError **error)
{
    const char *verb = option + strspn(option, "-");
    g_ptr_array_add(flags_given, value ? g_strdup_printf("%s=%s", verb, value) : g_strdup(verb));
    return TRUE;
}

static bool parse_verb(Order *order, const char *text, const char *source, GError **error)
{
    size_t length = strcspn(text, "=");
    for (unsigned i = 0; i < G_N_ELEMENTS(verbs); i++) {
        if (strlen(verbs[i].name) == length && strncmp(verbs[i].name, text, length) == 0) {
            add_change(order, verbs[i].verb, source);
            return true;
        }
    }
    return error_set(error, EINVAL,
                     "'%s': must be list, add, remove, clear, enable, disable or merge", text);
}

/* VERB IMAGE NAME [SOURCE] */
static bool parse_words(Order *order, int argc, char **argv, GError **error)
{
    if (argc < 2) {
        return error_set(error, EINVAL, "no verb given");
    }
    bool list = strcmp(argv[1], "list") == 0, merge = strcmp(argv[1], "merge") == 0;
    int wanted = list ? 3 : merge ? 5 : 4;
    if (!list && !parse_verb(order, argv[1], argc > 4 ? argv[4] : NULL, error)) {
        return false;
    }
    if (argc != wanted) {
        return error_set(error, EINVAL, "%s takes an image%s%s", argv[1],
                         list ? "" : " and a bitmap", merge ? " and the bitmap to add" : "");
    }
    order->image = argv[2];
    order->name = list ? NULL : argv[3];
    return true;
}

static bool parse_flags(Order *order, int argc, char **argv, GError **error)
{
    for (guint i = 0; i < flags_given->len; i++) {
        const char *flag = g_ptr_array_index(flags_given, i), *equals = strchr(flag, '=');
        if (!parse_verb(order, flag, equals ? equals + 1 : NULL, error)) {
            return false;
        }
    }
    if (argc != 3) {
        return error_set(error, EINVAL, "give an image and a bitmap");
    }
    order->image = argv[1];
    order->name = argv[2];
    return true;
}

static bool set_options(Order *order, const char *granularity, bool disabled, Image *source,
                        GError **error)
{
    uint64_t bytes = 0;
    if (granularity && !option_parse_size(granularity, &bytes)) {
        return error_set(error, EINVAL, "--granularity is '%s': must be a size", granularity);
    }
    for (guint i = 0; i < order->changes->len; i++) {
        BitmapChange *change = &g_array_index(order->changes, BitmapChange, i);
        bool add = change->verb == BITMAP_ADD;
        if ((granularity || disabled) && !add && order->changes->len == 1) {
            return error_set(error, EINVAL, "--granularity and --disabled are for add");
        }
        change->name = order->name;
        change->granularity = add ? bytes : 0;
        change->disabled = add && disabled;
        change->source = change->verb == BITMAP_MERGE ? source : NULL;
    }
    return true;
}

/* ---- the work ---- */

static void print_bitmap(JsonObject *bitmap)
{
    JsonArray *flags = json_object_get_array_member(bitmap, "flags");
    g_autoptr(GString) state = g_string_new(NULL);
    for (guint i = 0; i < json_array_get_length(flags); i++) {
        g_string_append_printf(state, "%s%s", i > 0 ? "," : "",
                               json_array_get_string_element(flags, i));
    }
    g_autofree char *granularity = output_size(json_object_get_int_member(bitmap, "granularity"));
    printf("%-24s %-12s %s\n", json_object_get_string_member(bitmap, "name"), granularity,
           state->str);
}

static int print_list(const Image *image, bool json)
{
    g_autoptr(JsonArray) bitmaps = bitmap_list(image);
    if (json) {
        output_json(json_node_init_array(json_node_alloc(), bitmaps));
    } else if (json_array_get_length(bitmaps) > 0) {
        printf("%-24s %-12s %s\n", "NAME", "GRANULARITY", "FLAGS");
        for (guint i = 0; i < json_array_get_length(bitmaps); i++) {
            print_bitmap(json_array_get_object_element(bitmaps, i));
        }
    }
    return output_finish(0);
}

static bool change_image(Image *image, const Order *order, GError **error)
{
    if (!image->format->bitmap_change) {
        return error_set(error, ENOTSUP, "%s: format %s has no bitmaps: only qcow2 has",
                         image->path, image->format->name);
    }
    bool ok = true;
    for (guint i = 0; ok && i < order->changes->len; i++) {
        const BitmapChange *change = &g_array_index(order->changes, BitmapChange, i);
        ok = image->format->bitmap_change(image, change, error);
    }
    int r = image_finish(image); /* also after a failure: the bitmaps go on being good */
    return ok &&
           (r == 0 || error_set_errno(error, -r, "%s: cannot be closed in order", image->path));
}

static Image *open_source(const char *file, const char *format, GError **error)
{
    ImageOpen how = {.no_backing = true, .format = format ? cli_format(format, error) : NULL};
    return format && !how.format ? NULL : image_open(file, &how, error);
}

static int run(const Order *order, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    bool write = order->changes->len > 0;
    ImageOpen how = {.write = write, .no_backing = true};
    if ((write && !attach_server_not_attached(order->image, &error)) ||
        !cli_image_open(common, &how, &error)) {
        return cli_fail(error);
    }
    g_autoptr(Image) image = image_open(order->image, &how, &error);
    if (!image || (write && !change_image(image, order, &error))) {
        return cli_fail(error);
    }
    return write && !common->json ? 0 : print_list(image, common->json);
}

typedef struct Options {
    char *granularity, *source_file, *source_format;
    gboolean disabled;
} Options;

static int go(Order *order, const Options *options, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) source = NULL;
    if (options->source_file) {
        source = open_source(options->source_file, options->source_format, &error);
        if (!source) {
            return cli_fail(error);
        }
    }
    if (!set_options(order, options->granularity, options->disabled, source, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    return run(order, common);
}

int cli_bitmap(int argc, char **argv)
{
    Options options = {0};
    const GOptionEntry own[] = {
        {"granularity", 'g', 0, G_OPTION_ARG_FILENAME, &options.granularity,
         "For add: bytes that one bit stands for (default: the cluster size, at least 64K)",
         "SIZE"},
        {"disabled", 0, 0, G_OPTION_ARG_NONE, &options.disabled,
         "For add: does not follow what is written until it is enabled", NULL},
        {"source-file", 'b', 0, G_OPTION_ARG_FILENAME, &options.source_file,
         "For merge: the image that has the bitmap to add (default: the same)", "IMAGE"},
        {"source-format", 'F', 0, G_OPTION_ARG_FILENAME, &options.source_format,
         "Its format (default: found from its first bytes)", "FMT"},
        {"add", 0, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, note_flag, "As the verb add", NULL},
        {"remove", 0, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, note_flag, "As remove", NULL},
        {"clear", 0, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, note_flag, "As clear", NULL},
        {"enable", 0, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, note_flag, "As enable", NULL},
        {"disable", 0, G_OPTION_FLAG_NO_ARG, G_OPTION_ARG_CALLBACK, note_flag, "As disable", NULL},
        {"merge", 0, 0, G_OPTION_ARG_CALLBACK, note_flag, "As merge", "SOURCE"},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    Order order = {.changes = g_array_new(FALSE, FALSE, sizeof(BitmapChange))};
    flags_given = g_ptr_array_new_with_free_func(g_free);
    bool ok = cli_parse(&usage, own, &common, &argc, &argv, &error);
    if (ok) {
        ok = flags_given->len > 0 ? parse_flags(&order, argc, argv, &error)
                                  : parse_words(&order, argc, argv, &error);
    }
    if (ok && order.changes->len > 0 && common.force_share) {
        ok = error_set(&error, EINVAL, "--force-share: an image in use must not change");
    }
    int status = ok ? go(&order, &options, &common) : cli_fail_usage(&usage, "%s", error->message);
    g_array_unref(order.changes);
    g_clear_pointer(&flags_given, g_ptr_array_unref);
    g_free(options.granularity);
    g_free(options.source_file);
    g_free(options.source_format);
    return status;
}
