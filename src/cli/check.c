/*
 * cownbd check: finds damage in the metadata of an image, and mends it.
 *
 * Output, JSON keys and exit status are those of qemu-img check: 0 clean, 1 could not check, 2
 * corrupt, 3 leaks. After a repair everything is looked at once more, so that what is reported as
 * left is what is left.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "base/errors.h"

enum { EXIT_CLEAN, EXIT_NOT_CHECKED, EXIT_CORRUPT, EXIT_LEAKS };

static void print_finding(void *opaque, const char *text)
{
    fprintf(stderr, "%s\n", text);
}

static bool parse_repair(const char *text, CheckRepair *repair, GError **error)
{
    if (!text) {
        *repair = CHECK_REPORT_ONLY;
    } else if (strcmp(text, "leaks") == 0) {
        *repair = CHECK_REPAIR_LEAKS;
    } else if (strcmp(text, "all") == 0) {
        *repair = CHECK_REPAIR_ALL;
    } else {
        return error_set(error, EINVAL, "--repair is '%s': must be leaks or all", text);
    }
    return true;
}

static int exit_status(const CheckResult *result)
{
    if (result->check_errors > 0) {
        return EXIT_NOT_CHECKED;
    }
    if (result->corruptions > 0) {
        return EXIT_CORRUPT;
    }
    return result->leaks > 0 ? EXIT_LEAKS : EXIT_CLEAN;
}

static void add_count(JsonObject *object, const char *name, uint64_t count)
{
    if (count > 0) {
        json_object_set_int_member(object, name, count);
    }
}

static void print_json(const Image *image, const CheckResult *result)
{
    JsonObject *object = json_object_new();
    add_count(object, "image-end-offset", result->image_end_offset);
    add_count(object, "total-clusters", result->total_clusters);
    json_object_set_int_member(object, "check-errors", result->check_errors);
    add_count(object, "allocated-clusters", result->allocated_clusters);
    add_count(object, "fragmented-clusters", result->fragmented_clusters);
    add_count(object, "compressed-clusters", result->compressed_clusters);
    add_count(object, "corruptions", result->corruptions);
    add_count(object, "leaks", result->leaks);
    add_count(object, "corruptions-fixed", result->corruptions_fixed);
    add_count(object, "leaks-fixed", result->leaks_fixed);
    output_add_string(object, "filename", image->path);
    json_object_set_string_member(object, "format", image->format->name);
    JsonNode *root = json_node_init_object(json_node_alloc(), object);
    json_object_unref(object);
    output_json(root);
}

static void print_verdict(const CheckResult *result)
{
    if (result->corruptions == 0 && result->leaks == 0 && result->check_errors == 0) {
        printf("No errors were found on the image.\n");
    }
    if (result->corruptions > 0) {
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               result->corruptions);
    }
    if (result->leaks > 0) {
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               result->leaks);
    }
    if (result->check_errors > 0) {
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n",
               result->check_errors);
    }
}

static double percent(uint64_t part, uint64_t whole)
{
    return part * 100.0 / whole;
}

static void print_human(const CheckResult *result)
{
    print_verdict(result);
    if (result->total_clusters > 0 && result->allocated_clusters > 0) {
        printf("%" PRIu64 "/%" PRIu64 " = %0.2f%% allocated, %0.2f%% fragmented, "
               "%0.2f%% compressed clusters\n",
               result->allocated_clusters, result->total_clusters,
               percent(result->allocated_clusters, result->total_clusters),
               percent(result->fragmented_clusters, result->allocated_clusters),
               percent(result->compressed_clusters, result->allocated_clusters));
    }
    if (result->image_end_offset > 0) {
        printf("Image end offset: %" PRIu64 "\n", result->image_end_offset);
    }
}

static void print_repaired(const CheckResult *result)
{
    printf("The following inconsistencies were found and repaired:\n\n"
           "    %" PRIu64 " leaked clusters\n"
           "    %" PRIu64 " corruptions\n\n"
           "Double checking the fixed image now...\n",
           result->leaks_fixed, result->corruptions_fixed);
}

/* The check; after a repair that changed something, another one, which counts. */
static bool check_image(Image *image, CheckRepair repair, bool tell, CheckResult *result,
                        GError **error)
{
    *result = (CheckResult){.message = print_finding};
    if (!image->format->check(image, repair, result, error)) {
        return false;
    }
    if (result->leaks_fixed == 0 && result->corruptions_fixed == 0) {
        return true;
    }
    if (tell) {
        print_repaired(result);
        fflush(stdout);
    }
    CheckResult again = {.message = print_finding};
    if (!image->format->check(image, CHECK_REPORT_ONLY, &again, error)) {
        return false;
    }
    again.leaks_fixed = result->leaks_fixed;
    again.corruptions_fixed = result->corruptions_fixed;
    *result = again;
    return true;
}

static char *checked_formats(void)
{
    GString *names = g_string_new(NULL);
    for (const Format *const *format = formats; *format; format++) {
        if ((*format)->check) {
            g_string_append_printf(names, "%s%s", names->len > 0 ? ", " : "", (*format)->name);
        }
    }
    return g_string_free(names, FALSE);
}

typedef enum { PRINT_HUMAN, PRINT_JSON, PRINT_NOTHING } Print;

static int run(Image *image, CheckRepair repair, Print print)
{
    g_autoptr(GError) error = NULL;
    CheckResult result;
    if (!image->format->check) {
        g_autofree char *names = checked_formats();
        error_set(&error, ENOTSUP, "%s: format %s cannot be checked: must be one of %s",
                  image->path, image->format->name, names);
        return cli_fail(error);
    }
    if (!check_image(image, repair, print == PRINT_HUMAN, &result, &error)) {
        return cli_fail(error);
    }
    if (print == PRINT_JSON) {
        print_json(image, &result);
    } else if (print == PRINT_HUMAN) {
        print_human(&result);
    }
    return output_finish(exit_status(&result));
}

int cli_check(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "check",
        .arguments = "IMAGE",
        .summary = "Finds damage in the metadata of an image, and mends it.\n"
                   "Exit status: 0 clean, 1 could not check, 2 corrupt, 3 space is leaked.",
        .example = "  cownbd check disk.qcow2\n"
                   "  cownbd check --repair=leaks disk.qcow2",
        .flags = CLI_FLAG_CACHE | CLI_FLAG_FORMAT | CLI_FLAG_JSON | CLI_FLAG_SHARE,
    };
    g_autofree char *repair_text = NULL;
    gboolean quiet = FALSE;
    const GOptionEntry own[] = {
        {"repair", 'r', 0, G_OPTION_ARG_FILENAME, &repair_text,
         "Mend: leaks (space that nothing uses), or all", "WHAT"},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &quiet,
         "Print only what is wrong: the exit status tells", NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    CheckRepair repair = CHECK_REPORT_ONLY;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error) ||
        !parse_repair(repair_text, &repair, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, "%d images given: must be one", argc - 1);
    }
    if (repair != CHECK_REPORT_ONLY && common.force_share) {
        return cli_fail_usage(&usage,
                              "--force-share with --repair: an image in use must not change");
    }
    bool write = repair != CHECK_REPORT_ONLY;
    ImageOpen how = {.no_backing = true, .write = write, .repair = true};
    if ((write && !attach_server_not_attached(argv[1], &error)) ||
        !cli_image_open(&common, &how, &error)) {
        return cli_fail(error);
    }
    g_autoptr(Image) image = image_open(argv[1], &how, &error);
    Print print = common.json ? PRINT_JSON : quiet ? PRINT_NOTHING : PRINT_HUMAN;
    return image ? run(image, repair, print) : cli_fail(error);
}
