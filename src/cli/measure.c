/*
 * cownbd measure: how large the file of an image would be, before it is made.
 *
 * Keys and words are those of qemu-img measure. In qcow2 tables are counted for all of the disk, as there.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "cli/cli.h"
#include "cli/create-options.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/preallocate.h"
#include "formats/option.h"
#include "tools/reader.h"

typedef struct Measure {
    char *output_format, *size_text;
    char **option_lists;
    GHashTable *options;
    const Format *format;
    Image *source; /* or size alone */
    uint64_t size;
    int result; /* of counting */
    char *preallocation_name;
    Preallocation preallocation;
} Measure;

static void measure_clear(Measure *measure)
{
    g_free(measure->output_format);
    g_free(measure->size_text);
    g_free(measure->preallocation_name);
    g_strfreev(measure->option_lists);
    g_clear_pointer(&measure->options, g_hash_table_unref);
    image_unref(measure->source);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Measure, measure_clear)

static uint64_t count_data(void *opaque, uint64_t unit)
{
    Measure *measure = opaque;
    uint64_t bytes = 0;
    if (measure->source) {
        measure->result = reader_count_data(measure->source, unit, &bytes);
    }
    return bytes;
}

static bool decide_size(Measure *measure, const char *path, const CliCommon *common, GError **error)
{
    ImageOpen how = {0};
    if (measure->size_text) {
        return option_parse_size(measure->size_text, &measure->size) ||
               error_set(
                   error, EINVAL,
                   "--size is '%s': must be a number of bytes, or one with K, M, G, T, P or E",
                   measure->size_text);
    }
    if (!cli_image_open(common, &how, error)) {
        return false;
    }
    measure->source = image_open(path, &how, error);
    measure->size = measure->source ? measure->source->size : 0;
    return measure->source != NULL;
}

static bool ask_format(Measure *measure, FormatMeasure *answer, GError **error)
{
    FormatCreate how = {.size = measure->size, .options = measure->options};
    answer->data = count_data;
    answer->opaque = measure;
    answer->source = measure->source;
    if (!measure->format->measure) {
        return error_set(error, ENOTSUP, "images of format %s cannot be measured",
                         measure->format->name);
    }
    if (!measure->format->measure(&how, answer, error)) {
        return false;
    }
    if (measure->preallocation >= PREALLOCATE_FALLOC) {
        answer->required = answer->fully_allocated;
    }
    return measure->result == 0 ||
           error_set_errno(error, -measure->result, "%s: cannot map it", measure->source->path);
}

static void print_json(const FormatMeasure *answer)
{
    printf("{\n");
    if (answer->has_bitmaps) {
        printf("    \"bitmaps\": %" PRIu64 ",\n", answer->bitmaps);
    }
    printf("    \"required\": %" PRIu64 ",\n    \"fully-allocated\": %" PRIu64 "\n}\n",
           answer->required, answer->fully_allocated);
}

static void print_human(const FormatMeasure *answer)
{
    printf("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n", answer->required,
           answer->fully_allocated);
    if (answer->has_bitmaps) {
        printf("bitmaps size: %" PRIu64 "\n", answer->bitmaps);
    }
}

static int run(Measure *measure, const char *path, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    FormatMeasure answer = {0};
    if (!decide_size(measure, path, common, &error) || !ask_format(measure, &answer, &error)) {
        g_prefix_error(&error, "measure: ");
        return cli_fail(error);
    }
    if (common->json) {
        print_json(&answer);
    } else {
        print_human(&answer);
    }
    return output_finish(0);
}

int cli_measure(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "measure",
        .arguments = "SRC | --size SIZE",
        .summary = "Tells how many bytes the file of a new image needs: with the data that SRC "
                   "holds, and when all\nof it is allocated.",
        .example = "  cownbd measure -O qcow2 disk.vmdk\n"
                   "  cownbd measure -O qcow2 -o cluster_size=128k --size 1T",
        .flags = CLI_FLAG_FORMAT | CLI_FLAG_VHD_SIZE | CLI_FLAG_JSON | CLI_FLAG_SHARE |
                 CLI_FLAG_ALLOW | CLI_FLAG_SNAPSHOT | CLI_FLAG_LOAD_SNAPSHOT,
    };
    g_auto(Measure) measure = {.options = cli_option_table()};
    const GOptionEntry own[] = {
        {"output-format", 'O', 0, G_OPTION_ARG_FILENAME, &measure.output_format,
         "Format of the new image (default: raw)", "FMT"},
        {"option", 'o', 0, G_OPTION_ARG_FILENAME_ARRAY, &measure.option_lists,
         "Options of that format (repeatable); -o help lists them", "K=V,..."},
        {"size", 0, 0, G_OPTION_ARG_FILENAME, &measure.size_text,
         "Measure an empty disk of that size", "SIZE"},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error) ||
        !cli_option_lists(measure.option_lists, measure.options, &error) ||
        !(measure.format = create_format(measure.output_format, &error))) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (!preallocation_take(measure.options, NULL, &measure.preallocation_name,
                            &measure.preallocation, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (g_hash_table_contains(measure.options, "help")) {
        return create_options_help(measure.format);
    }
    if (!create_options_check(measure.format, measure.options, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != (measure.size_text ? 1 : 2)) {
        return cli_fail_usage(&usage, "either an image must be given, or --size");
    }
    return run(&measure, argv[1], &common);
}
