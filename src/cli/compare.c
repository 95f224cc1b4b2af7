/*
 * cownbd compare and cownbd diff: whether, and where, two disks read differently.
 *
 * compare speaks and exits as qemu-img compare does: 0 equal, 1 different, 2 could not compare. But the
 * offset that it tells is that of the first byte, not of its sector.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/tool-options.h"
#include "formats/option.h"
#include "tools/differ.h"

enum { EXIT_EQUAL, EXIT_DIFFERENT, EXIT_NOT_COMPARED };

#define GRAIN_DEFAULT (64u << 10)
#define GRAIN_MIN     512
#define GRAIN_MAX     (64u << 20)

typedef struct Compare {
    char *format_b, *grain_text;
    gboolean strict, show_progress, quiet;
    int threads;
    uint64_t grain;
    Image *a, *b;
    GArray *differences;
    Progress progress;
} Compare;

static void compare_clear(Compare *compare)
{
    g_free(compare->format_b);
    g_free(compare->grain_text);
    image_unref(compare->a);
    image_unref(compare->b);
    g_clear_pointer(&compare->differences, g_array_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Compare, compare_clear)

static bool open_both(Compare *compare, CliCommon *common, char **paths, GError **error)
{
    ImageOpen how_a = {0}, how_b = {0};
    if (!cli_image_open(common, &how_a, error)) {
        return false;
    }
    how_b = how_a;
    how_b.format = NULL;
    if (compare->format_b && !(how_b.format = cli_format(compare->format_b, error))) {
        return false;
    }
    compare->a = image_open(paths[0], &how_a, error);
    compare->b = compare->a ? image_open(paths[1], &how_b, error) : NULL;
    return compare->b != NULL;
}

/* first: one difference, to the byte. */
static bool find_differences(Compare *compare, bool first, GError **error)
{
    DifferOptions options = {
        .length = max_u64(compare->a->size, compare->b->size),
        .grain = first ? 1 : compare->grain,
        .first = first,
        .threads = compare->threads,
        .progress = progress_step,
        .context = &compare->progress,
    };
    DifferFailure failure = {0};
    compare->differences = g_array_new(false, false, sizeof(Difference));
    int r = differ_run(compare->a, compare->b, &options, compare->differences, &failure);
    progress_end(&compare->progress);
    if (r == -EINTR) {
        return error_set(error, EINTR, "interrupted");
    }
    if (r < 0 && failure.image) {
        return error_set_errno(error, -r, "%s: cannot read near offset %" PRIu64,
                               failure.image->path, failure.offset);
    }
    return r == 0 || error_set_errno(error, -r, "cannot compare");
}

static int fail_compare(GError *error)
{
    g_prefix_error(&error, "compare: ");
    cli_fail(error);
    g_error_free(error);
    progress_raise_signal();
    return EXIT_NOT_COMPARED;
}

/* ---- compare -------------------------------------------------------------------------------- */

static int print_verdict(const Compare *compare, bool json)
{
    bool sizes_differ = compare->a->size != compare->b->size;
    bool refused = compare->strict && sizes_differ;
    const Difference *first = compare->differences && compare->differences->len > 0
                                  ? &g_array_index(compare->differences, Difference, 0)
                                  : NULL;
    bool equal = !first && !refused;
    if (json) {
        printf("{ \"equal\": %s, \"sizes-equal\": %s", equal ? "true" : "false",
               sizes_differ ? "false" : "true");
        if (first) {
            printf(", \"offset\": %" PRIu64, first->offset);
        }
        printf(" }\n");
    } else if (refused) {
        printf("Strict mode: Image size mismatch!\n");
    } else if (!compare->quiet) {
        bool overlap_equal = !first || first->offset >= MIN(compare->a->size, compare->b->size);
        if (sizes_differ && overlap_equal) {
            printf("Warning: Image size mismatch!\n");
        }
        if (first) {
            printf("Content mismatch at offset %" PRIu64 "!\n", first->offset);
        } else {
            printf("Images are identical.\n");
        }
    }
    int status = output_finish(equal ? EXIT_EQUAL : EXIT_DIFFERENT);
    return status != EXIT_EQUAL && equal ? EXIT_NOT_COMPARED : status;
}

static int usage_status(const CliUsage *usage, const char *text)
{
    cli_fail_usage(usage, "%s", text);
    return EXIT_NOT_COMPARED;
}

int cli_compare(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "compare",
        .arguments = "A B",
        .summary =
            "Tells whether two disks read the same. Where one is longer, the rest of it must "
            "be zeroes.\nExit status: 0 the same, 1 different, 2 could not compare.",
        .example = "  cownbd compare disk.vmdk disk.qcow2\n"
                   "  cownbd compare -s --json a.img b.qcow2",
        .flags = CLI_FLAG_CACHE | CLI_FLAG_FORMAT | CLI_FLAG_VHD_SIZE | CLI_FLAG_JSON |
                 CLI_FLAG_SHARE | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
    };
    g_auto(Compare) compare = {0};
    const GOptionEntry own[] = {
        {"format-b", 'F', 0, G_OPTION_ARG_FILENAME, &compare.format_b,
         "Format of B (default: found from its first bytes); -f: of A", "FMT"},
        {"strict", 's', 0, G_OPTION_ARG_NONE, &compare.strict, "Disks of different sizes differ",
         NULL},
        TOOL_THREADS_OPTION(&compare.threads),
        {"progress", 'p', 0, G_OPTION_ARG_NONE, &compare.show_progress,
         "Show progress also where stderr is no terminal: JSON lines there", NULL},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &compare.quiet, "Say nothing: the exit status tells",
         NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error) ||
        !tool_threads_check(&compare.threads, &error)) {
        return usage_status(&usage, error->message);
    }
    if (argc != 3) {
        return usage_status(&usage, "two images must be given, A and B");
    }
    progress_catch_signals();
    compare.progress.kind =
        progress_kind(compare.show_progress, compare.quiet || common.json, false);
    if (!open_both(&compare, &common, argv + 1, &error)) {
        return fail_compare(g_steal_pointer(&error));
    }
    bool decided = compare.strict && compare.a->size != compare.b->size;
    if (!decided && !find_differences(&compare, true, &error)) {
        return fail_compare(g_steal_pointer(&error));
    }
    return print_verdict(&compare, common.json);
}

/* ---- diff ----------------------------------------------------------------------------------- */

static void print_differences(const GArray *differences, bool json)
{
    if (!json) {
        printf("%-16s%-16s%s\n", "Offset", "Length", "In B");
    } else {
        printf("[");
    }
    for (guint i = 0; i < differences->len; i++) {
        const Difference *d = &g_array_index(differences, Difference, i);
        if (json) {
            printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
                   ", \"zero\": %s, \"data\": %s }",
                   i > 0 ? ",\n" : "", d->offset, d->length, d->zero ? "true" : "false",
                   d->zero ? "false" : "true");
        } else {
            printf("%#-16" PRIx64 "%#-16" PRIx64 "%s\n", d->offset, d->length,
                   d->zero ? "zero" : "data");
        }
    }
    if (json) {
        printf("]\n");
    }
}

static bool parse_grain(Compare *compare, GError **error)
{
    compare->grain = GRAIN_DEFAULT;
    return !compare->grain_text ||
           (option_parse_size(compare->grain_text, &compare->grain) &&
            is_power_of_two(compare->grain) && compare->grain >= GRAIN_MIN &&
            compare->grain <= GRAIN_MAX) ||
           error_set(error, EINVAL, "--granularity is '%s': must be a power of two from 512 to 64M",
                     compare->grain_text);
}

int cli_diff(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "diff",
        .arguments = "A B",
        .summary = "Shows the ranges in which disk B reads differently from disk A, in whole "
                   "blocks:\nwhat must be copied to make an A into a B.",
        .example = "  cownbd diff yesterday.qcow2 today.qcow2\n"
                   "  cownbd diff --json a.img b.img | jq 'map(.length) | add'",
        .flags = CLI_FLAG_CACHE | CLI_FLAG_FORMAT | CLI_FLAG_VHD_SIZE | CLI_FLAG_JSON |
                 CLI_FLAG_SHARE | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
    };
    g_auto(Compare) compare = {0};
    const GOptionEntry own[] = {
        {"format-b", 'F', 0, G_OPTION_ARG_FILENAME, &compare.format_b,
         "Format of B (default: found from its first bytes); -f: of A", "FMT"},
        {"granularity", 'g', 0, G_OPTION_ARG_FILENAME, &compare.grain_text,
         "Size of a block (default: 64k)", "SIZE"},
        TOOL_THREADS_OPTION(&compare.threads),
        {"progress", 'p', 0, G_OPTION_ARG_NONE, &compare.show_progress,
         "Show progress also where stderr is no terminal: JSON lines there", NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error) ||
        !tool_threads_check(&compare.threads, &error) || !parse_grain(&compare, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 3) {
        return cli_fail_usage(&usage, "two images must be given, A and B");
    }
    progress_catch_signals();
    compare.progress.kind = progress_kind(compare.show_progress, common.json, false);
    if (!open_both(&compare, &common, argv + 1, &error) ||
        !find_differences(&compare, false, &error)) {
        g_prefix_error(&error, "diff: ");
        cli_fail(error);
        progress_raise_signal();
        return 1;
    }
    print_differences(compare.differences, common.json);
    return output_finish(0);
}
