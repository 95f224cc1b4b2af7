/*
 * cownbd fold: brings what the kernel has written in snapshot mode into the image.
 *
 * The work is fastpath/fold.c's; here are the options, the line of progress on a terminal, and what
 * is said at the end.
 */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/fold-progress.h"
#include "cli/options.h"
#include "cli/output.h"
#include "fastpath/fold.h"

static void print_json(const char *path, const FoldResult *result)
{
    JsonObject *object = json_object_new();
    output_add_string(object, "filename", path);
    json_object_set_int_member(object, "chunks", result->chunks);
    json_object_set_int_member(object, "chunk-size", result->chunk_size);
    json_object_set_int_member(object, "bytes", result->bytes);
    json_object_set_int_member(object, "zero-bytes", result->zero_bytes);
    json_object_set_boolean_member(object, "found", result->found);
    json_object_set_boolean_member(object, "resumed", result->resumed);
    json_object_set_boolean_member(object, "incomplete", result->invalid);
    JsonNode *root = json_node_init_object(json_node_alloc(), object);
    json_object_unref(object);
    output_json(root);
}

int cli_fold(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "fold",
        .arguments = "IMAGE [STORE]",
        .summary = "Brings what the kernel has written in snapshot mode, which lies in\n"
                   "IMAGE.cownbd-cow, into the image. It can be cut off at any time and begun\n"
                   "again. A store of an image that was changed meanwhile is refused.",
        .example = "  cownbd fold disk.qcow2\n"
                   "  cownbd fold --keep disk.qcow2",
        .flags = CLI_FLAG_FORMAT | CLI_FLAG_JSON | CLI_FLAG_ALLOW,
    };
    gboolean keep = FALSE;
    const GOptionEntry own[] = {
        {"keep", 'k', 0, G_OPTION_ARG_NONE, &keep,
         "Do not remove the store when all is in the image: add .folded to its name", NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2 && argc != 3) {
        return cli_fail_usage(&usage, "%d files given: must be an image and perhaps its store",
                              argc - 1);
    }
    FoldOptions options = {.keep = keep, .progress = fold_progress_print};
    FoldResult result;
    if (!cli_image_open(&common, &options.how, &error) ||
        !fold_image(argv[1], argc == 3 ? argv[2] : NULL, &options, &result, &error)) {
        return cli_fail(error);
    }
    if (common.json) {
        print_json(argv[1], &result);
    } else {
        fold_print_result(argv[1], &result);
    }
    return output_finish(0);
}
