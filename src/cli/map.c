/*
 * cownbd map: the merged map of a chain, with the keys and the meanings of qemu-img map.
 *
 * A line is an extent: "depth" is the image of the chain that decides what is read there, "present"
 * whether that image has it (false: no image has it, and it reads as zeroes), "data" and "zero"
 * what it holds, "offset" where in the host file. Holes of raw files are asked of the host.
 * Neighbours that say the same are one line.
 *
 * --dm: the same map as the table of a device-mapper device, as `cownbd attach` makes it.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "base/bytes.h"
#include "base/errors.h"
#include "fastpath/dmtable.h"
#include "formats/option.h"
#include "map/encryption.h"

#define EXTENTS_AT_ONCE 256
#define LINES_DEFAULT   1000
#define LINES_MAX       (1 << 20) /* of a table: the kernel's limit */

typedef struct MapLine {
    uint64_t start, length;
    uint64_t host_offset;
    const char *file; /* NULL: there is no offset at which the guest's bytes could be read */
    unsigned depth;
    bool present, zero, data, compressed;
} MapLine;

typedef struct MapPrinter {
    bool json;
    bool first;
    MapLine line; /* the last one, not yet printed: it may grow; length 0: none */
} MapPrinter;

static void print_json(const MapLine *line, bool first)
{
    printf("%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %u, \"present\": %s, "
           "\"zero\": %s, \"data\": %s, \"compressed\": %s",
           first ? "" : ",\n", line->start, line->length, line->depth,
           line->present ? "true" : "false", line->zero ? "true" : "false",
           line->data ? "true" : "false", line->compressed ? "true" : "false");
    if (line->file) {
        g_autofree char *name = output_json_string(line->file);
        printf(", \"offset\": %" PRIu64 ", \"filename\": %s", line->host_offset, name);
    }
    printf("}");
}

static void print_human(const MapLine *line)
{
    if (!line->data || line->zero) {
        return;
    }
    printf("%#-16" PRIx64 "%#-16" PRIx64, line->start, line->length);
    if (line->file) {
        printf("%#-16" PRIx64 "%s\n", line->host_offset, line->file);
    } else {
        printf("%s\n", line->compressed ? "compressed" : "encrypted");
    }
}

static void printer_flush(MapPrinter *printer)
{
    if (printer->line.length == 0) {
        return;
    }
    if (printer->json) {
        print_json(&printer->line, printer->first);
    } else {
        print_human(&printer->line);
    }
    printer->first = false;
    printer->line.length = 0;
}

static bool goes_on(const MapLine *a, const MapLine *b)
{
    return a->length > 0 && a->depth == b->depth && a->present == b->present &&
           a->zero == b->zero && a->data == b->data && a->compressed == b->compressed &&
           g_strcmp0(a->file, b->file) == 0 &&
           (!a->file || a->host_offset + a->length == b->host_offset);
}

static void printer_add(MapPrinter *printer, const MapLine *line)
{
    if (goes_on(&printer->line, line)) {
        printer->line.length += line->length;
        return;
    }
    printer_flush(printer);
    printer->line = *line;
}

/* What the host knows about a range that may have holes. A hole of a raw file is no data; in a
 * format that keeps its own map the range stays data, and reads as zero. */
static int add_sparse(MapPrinter *printer, const Extent *extent, MapLine line)
{
    for (uint64_t done = 0; done < extent->length;) {
        bool data = true;
        uint64_t run = extent->length - done;
        int result = store_next_data(extent->store, extent->host_offset + done,
                                     extent->length - done, &data, &run);
        if (result < 0) {
            return result;
        }
        line.start = extent->offset + done;
        line.host_offset = extent->host_offset + done;
        line.length = run;
        line.zero = !data;
        line.data = data || extent->image->format != &format_raw;
        printer_add(printer, &line);
        done += run;
    }
    return 0;
}

static int add_extent(void *argument, const Extent *extent)
{
    MapPrinter *printer = argument;
    bool placed = (extent->type == EXTENT_DATA && !extent_is_encrypted(extent)) ||
                  (extent->type == EXTENT_ZERO && extent->flags & EXTENT_HAS_HOST);
    MapLine line = {
        .start = extent->offset,
        .length = extent->length,
        .host_offset = extent->host_offset,
        .file = placed ? extent->store->name : NULL,
        .depth = extent->depth,
        .present = extent->image != NULL,
        .zero = extent->type == EXTENT_ZERO,
        .data = extent->type != EXTENT_ZERO,
        .compressed = extent->type == EXTENT_ENCODED,
    };
    if (extent->type == EXTENT_DATA && extent->flags & EXTENT_SPARSE) {
        return add_sparse(printer, extent, line);
    }
    printer_add(printer, &line);
    return 0;
}

typedef int MapEach(void *argument, const Extent *extent);

/* Calls each for the extents of the disk from *at to end; 0 or what each, or the map, answered. *at:
 * where it came to an end. */
static int map_range(Image *image, uint64_t *at, uint64_t end, MapEach *each, void *argument)
{
    ExtentList list;
    int result = 0;
    extent_list_init(&list);
    while (*at < end && result == 0) {
        extent_list_reset(&list);
        result = chain_map(image, *at, end - *at, EXTENTS_AT_ONCE, &list);
        for (unsigned i = 0; i < list.count && result == 0; i++) {
            result = each(argument, &list.items[i]);
            *at = result == 0 ? extent_end(&list.items[i]) : list.items[i].offset;
        }
    }
    extent_list_clear(&list);
    return result;
}

static int fail_at(const Image *image, uint64_t offset, int result)
{
    fflush(stdout);
    fprintf(stderr, "cownbd: %s: cannot map offset %" PRIu64 ": %s\n", image->path, offset,
            g_strerror(-result));
    return 1;
}

typedef struct MapOptions {
    gboolean dm, read_only;
    int lines;
    char *start_text, *length_text;
    uint64_t start, length; /* of the disk */
} MapOptions;

static void map_options_clear(MapOptions *options)
{
    g_free(options->start_text);
    g_free(options->length_text);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(MapOptions, map_options_clear)

static int print_map(Image *image, const MapOptions *options, bool json)
{
    MapPrinter printer = {.json = json, .first = true};
    uint64_t at = options->start;
    if (at > image->size) {
        g_autoptr(GError) error = NULL;
        error_set(&error, EINVAL,
                  "map: --start-offset is %" PRIu64 ": must lie inside the disk, which has %" PRIu64
                  " bytes",
                  at, image->size);
        return cli_fail(error);
    }
    uint64_t end = at + min_u64(options->length, image->size - at);
    if (json) {
        printf("[");
    } else {
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    }
    int result = map_range(image, &at, end, add_extent, &printer);
    if (result < 0) {
        return fail_at(image, at, result);
    }
    printer_flush(&printer);
    if (json) {
        printf("]\n");
    }
    return output_finish(0);
}

static int plan_extent(void *plan, const Extent *extent)
{
    dmplan_add(plan, extent);
    return 0;
}

static int print_dm(Image *image, const MapOptions *options)
{
    /* As who attaches it for writing sees it: what may be written in place. Nothing is written. */
    image->write = !options->read_only;
    DmTableOptions how = {
        .size = image->size,
        .unit = options->read_only ? 1 : image->allocation_unit,
        .alignment = 512,
        .lines_max = options->lines,
        .fixed = options->read_only,
    };
    DmPlan *plan = dmplan_new(&how);
    DmTable table;
    RangeSet none = {0};
    uint64_t at = 0;
    int result = map_range(image, &at, image->size, plan_extent, plan);
    dmplan_finish(plan, &none, &table, NULL);
    g_autoptr(GString) text = g_string_new(NULL);
    dmtable_print(&table, text);
    dmtable_clear(&table);
    if (result < 0) {
        return fail_at(image, at, result);
    }
    fputs(text->str, stdout);
    return output_finish(0);
}

static const CliUsage usage = {
    .command = "map",
    .arguments = "IMAGE",
    .summary = "Shows which parts of the disk are data, zero or not there, and where they lie.\n"
               "With --dm as a device-mapper table, as attach --fast-path=linear makes it: NBD "
               "stands for the\nserver's device, LOOP0, LOOP1 ... for loop devices on the files "
               "that the first lines name.",
    .example = "  cownbd map overlay.qcow2\n"
               "  cownbd map --json overlay.qcow2 | jq 'map(select(.data)) | length'\n"
               "  cownbd map --dm disk.qcow2 | sed 's|NBD|/dev/nbd0|; s|LOOP0|/dev/loop0|'",
    .flags = CLI_FLAG_FORMAT | CLI_FLAG_VHD_SIZE | CLI_FLAG_JSON | CLI_FLAG_SHARE | CLI_FLAG_ALLOW |
             CLI_FLAG_SNAPSHOT,
};

/* A number of bytes, when there is one. */
static bool parse_bytes(const char *name, const char *text, uint64_t *bytes, GError **error)
{
    return !text || option_parse_size(text, bytes) ||
           error_set(error, EINVAL,
                     "--%s is '%s': must be a number of bytes, or one with K, M, G, T, P or E",
                     name, text);
}

static bool check_options(MapOptions *options, const CliCommon *common, GError **error)
{
    if (options->dm && (common->json || options->start_text || options->length_text)) {
        return error_set(error, EINVAL, "--dm: is of all of the disk, and no --json");
    }
    if (!options->dm && (options->read_only || options->lines != LINES_DEFAULT)) {
        return error_set(error, EINVAL, "--read-only and --fast-path-lines: only with --dm");
    }
    if (options->lines < 1 || options->lines > LINES_MAX) {
        return error_set(error, EINVAL, "--fast-path-lines is %d: must be 1 to %d", options->lines,
                         LINES_MAX);
    }
    options->length = UINT64_MAX;
    return parse_bytes("start-offset", options->start_text, &options->start, error) &&
           parse_bytes("max-length", options->length_text, &options->length, error);
}

static bool parse_options(MapOptions *options, CliCommon *common, int *argc, char ***argv,
                          GError **error)
{
    const GOptionEntry entries[] = {
        {"start-offset", 's', 0, G_OPTION_ARG_FILENAME, &options->start_text,
         "Begin at this byte of the disk (default: 0)", "OFFSET"},
        {"max-length", 'l', 0, G_OPTION_ARG_FILENAME, &options->length_text,
         "Show so much of the disk at most (default: all)", "SIZE"},
        {"dm", 0, 0, G_OPTION_ARG_NONE, &options->dm, "Print a device-mapper table", NULL},
        {"read-only", 'r', 0, G_OPTION_ARG_NONE, &options->read_only,
         "--dm: the table of a read-only device, in which data of backing files and zeroes need no "
         "server",
         NULL},
        {"fast-path-lines", 0, 0, G_OPTION_ARG_INT, &options->lines,
         "--dm: lines of the table at most (default: 1000)", "N"},
        {NULL},
    };
    options->lines = LINES_DEFAULT;
    return cli_parse(&usage, entries, common, argc, argv, error) &&
           check_options(options, common, error);
}

int cli_map(int argc, char **argv)
{
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    g_auto(MapOptions) options = {0};
    if (!parse_options(&options, &common, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, "%d images given: must be one", argc - 1);
    }
    ImageOpen how = {0};
    if (!cli_image_open(&common, &how, &error)) {
        return cli_fail(error);
    }
    g_autoptr(Image) image = image_open(argv[1], &how, &error);
    if (!image) {
        return cli_fail(error);
    }
    return options.dm ? print_dm(image, &options) : print_map(image, &options, common.json);
}
