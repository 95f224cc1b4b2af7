/*
 * cownbd convert: copies what a disk reads as into a new image, or into one that is there.
 *
 * The new image is a file without a name until it is complete and synced; then it gets its name, or
 * replaces what had it. A conversion that fails, or is killed, leaves what was there. Images that can
 * be made from their front to their end go to stdout, too.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/convert.h"
#include "cli/create-options.h"
#include "cli/create-target.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/tool-options.h"
#include "formats/option.h"
#include "tools/copy.h"
#include "tools/stream.h"

#define GRAIN_DEFAULT 4096
#define GRAIN_MAX     (UINT64_C(1) << 20)

static void convert_clear(Convert *convert)
{
    g_free(convert->output_format);
    g_free(convert->backing_name);
    g_free(convert->backing_format);
    g_free(convert->preallocation_name);
    g_free(convert->range_text);
    g_free(convert->grain_text);
    g_free(convert->rate_text);
    g_free(convert->compression);
    g_strfreev(convert->option_lists);
    g_clear_pointer(&convert->options, g_hash_table_unref);
    image_unref(convert->source);
    image_unref(convert->backing);
    salvage_free(convert->salvage);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Convert, convert_clear)

/* ---- what is asked for ---------------------------------------------------------------------- */

static bool parse_grain(Convert *convert, GError **error)
{
    const char *text = convert->grain_text;
    convert->grain = GRAIN_DEFAULT;
    if (!text || (option_parse_size(text, &convert->grain) && convert->grain == 0)) {
        return true;
    }
    return (option_parse_size(text, &convert->grain) && is_power_of_two(convert->grain) &&
            convert->grain >= 512 && convert->grain <= GRAIN_MAX) ||
           error_set(error, EINVAL, "-S is '%s': must be 0, or a power of two from 512 to 1M",
                     text);
}

static bool parse_range(Convert *convert, GError **error)
{
    const char *text = convert->range_text;
    if (!text) {
        return true;
    }
    g_auto(GStrv) parts = g_strsplit(text, ":", 2);
    return (parts[0] && parts[1] && option_parse_size(parts[0], &convert->offset) &&
            option_parse_size(parts[1], &convert->length) && convert->length > 0) ||
           error_set(error, EINVAL, "--range is '%s': must be OFFSET:LENGTH, as in 1M:64M", text);
}

/* --compression says by a flag what -o compression_type says. */
static bool take_compression(Convert *convert, GError **error)
{
    if (!convert->compression) {
        return true;
    }
    if (g_hash_table_contains(convert->options, "compression_type")) {
        return error_set(error, EINVAL, "compression_type is given twice: by its flag and by -o");
    }
    g_hash_table_insert(convert->options, g_strdup("compression_type"),
                        g_strdup(convert->compression));
    convert->compress = TRUE;
    return true;
}

/* What cannot be said of an image that is there already. */
static bool check_existing(const Convert *convert, GError **error)
{
    if (!convert->existing) {
        return !convert->target_is_zero ||
               error_set(error, EINVAL,
                         "--target-is-zero speaks of an image that is there: say -n, too");
    }
    if (g_hash_table_size(convert->options) > 0 || convert->backing_name) {
        return error_set(error, EINVAL,
                         "-n writes into an image that is there: -o and -b say how to make one");
    }
    return true;
}

/* Bitmaps speak of the whole disk as it is now. */
static bool check_bitmaps(const Convert *convert, const CliCommon *common, GError **error)
{
    if (convert->skip_broken && !convert->bitmaps) {
        return error_set(error, EINVAL, "--skip-broken-bitmaps without --bitmaps");
    }
    return !convert->bitmaps || !(convert->range_text || common->snapshot) ||
           error_set(error, EINVAL,
                     "--bitmaps speak of all of the disk, as it is now: leave out %s",
                     common->snapshot ? "--snapshot" : "--range");
}

static bool check_size(const Convert *convert, GError **error)
{
    return !g_hash_table_contains(convert->options, "size") ||
           error_set(error, EINVAL, "-o size: the new disk has the size of SRC, or of --range");
}

static bool check_compress(const Convert *convert, GError **error)
{
    const Format *format = convert->format;
    if (convert->compress && format && !format->encode && !convert_is_streamed(convert)) {
        return error_set(error, ENOTSUP,
                         "-c: cownbd cannot compress images of format %s: must be qcow2, qcow or "
                         "vmdk with -o subformat=streamOptimized",
                         format->name);
    }
    return true;
}

static bool take_preallocation(Convert *convert, GError **error)
{
    if (!preallocation_take(convert->options, convert->backing_name, &convert->preallocation_name,
                            &convert->preallocation, error)) {
        return false;
    }
    return convert->preallocation == PREALLOCATE_OFF || !convert->compress ||
           error_set(error, EINVAL,
                     "-c with preallocation, which is for plain data: leave out one");
}

static bool check_flags(Convert *convert, const CliCommon *common, GError **error)
{
    return check_bitmaps(convert, common, error) && parse_grain(convert, error) &&
           parse_range(convert, error) && tool_threads_check(&convert->threads, error) &&
           check_existing(convert, error) && take_compression(convert, error) &&
           tool_rate_parse(convert->rate_text, &convert->rate, error) &&
           create_backing_take(convert->options, &convert->backing_name, &convert->backing_format,
                               error) &&
           (convert->existing || create_options_check(convert->format, convert->options, error)) &&
           take_preallocation(convert, error) && check_size(convert, error) &&
           check_compress(convert, error);
}

/* ---- the images ----------------------------------------------------------------------------- */

static bool open_source(Convert *convert, const CliCommon *common, GError **error)
{
    ImageOpen how = {0};
    if (!cli_image_open(common, &how, error)) {
        return false;
    }
    convert->source = image_open(convert->source_path, &how, error);
    return convert->source &&
           (convert_to_stdout(convert) || tool_not_in_chain(convert->source, convert->path, error));
}

static bool decide_range(Convert *convert, GError **error)
{
    uint64_t size = convert->source->size;
    if (!convert->range_text) {
        convert->length = size;
        return true;
    }
    return range_within(convert->offset, convert->length, size) ||
           error_set(error, EINVAL,
                     "--range is '%s': must lie inside the disk, which has %" PRIu64 " bytes",
                     convert->range_text, size);
}

static bool open_backing(Convert *convert, const CliCommon *common, GError **error)
{
    if (!convert->backing_name) {
        return true;
    }
    convert->backing = tool_open_backing(convert->path, convert->backing_name,
                                         convert->backing_format, common, error);
    return convert->backing != NULL;
}

bool convert_fail_copy(const Convert *convert, const char *target, int result,
                       const CopyFailure *failure, GError **error)
{
    if (result == -EINTR) {
        return error_set(error, EINTR, "interrupted: %s is %s", convert->path,
                         convert->existing ? "written in part" : "as it was");
    }
    const char *path = failure->writing ? target : convert->source->path;
    uint64_t offset = failure->offset + (failure->writing ? 0 : convert->offset);
    return error_set_errno(error, -result, "%s: cannot %s near offset %" PRIu64, path,
                           failure->writing ? "write" : "read", offset);
}

/* Fills the opened target. blank: nobody has written to it, and it reads as zeroes. */
static bool fill(Convert *convert, Image *target, bool blank, uint64_t length, GError **error)
{
    if (convert->compress && target->encryption) {
        return error_set(error, ENOTSUP,
                         "-c: compressed clusters are not encrypted: leave out -c, or encryption");
    }
    if (convert->compress && target->plain_only) {
        return error_set(
            error, ENOTSUP,
            "-c: a data file holds no compressed clusters: leave out -c, or data_file");
    }
    CopyOptions options = {
        .source_offset = convert->offset,
        .length = length,
        .grain = convert->grain,
        .blank = blank,
        .compress = convert->compress,
        .backing = convert->backing,
        .threads = convert->threads,
        .rate = convert->rate,
        .salvage = convert->salvage,
        .progress = progress_step,
        .context = &convert->progress,
    };
    CopyFailure failure = {0};
    int r = length > 0 ? copy_disk(convert->source, target, &options, &failure) : 0;
    progress_end(&convert->progress);
    if (r < 0) {
        return convert_fail_copy(convert, target->path, r, &failure, error);
    }
    if (!convert_bitmaps_copy(convert, target, error)) {
        return false;
    }
    r = image_finish(target);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the last of it", target->path);
}

static bool convert_new(Convert *convert, const CliCommon *common, GError **error)
{
    g_auto(CreateTarget) target = {0};
    FormatCreate how = {
        .size = convert->length,
        .backing_name = convert->backing_name,
        .backing_format = convert->backing_format,
        .backing = convert->backing,
        .secret = secrets_find(common->secrets, convert->path),
        .options = convert->options,
        .files = &target.files,
    };
    if (!target_open(&target, convert->path, error) ||
        !convert->format->create(target.store, &how, error)) {
        return false;
    }
    ImageOpen open = {
        .format = convert->format,
        .write = true,
        .parts = target.parts,
        .secret = how.secret,
    };
    g_autoptr(Image) image = image_open_store(target.store, &open, convert->backing, error);
    if (!image || !preallocate_check(image, convert->preallocation, error) ||
        !preallocate(image, 0, convert->preallocation, NULL, error)) {
        return false;
    }
    /* A device holds what it held; over a backing nothing is zero, nor is what a luks image holds at first. */
    bool noise = image->encryption && !image->format->allocate;
    bool blank = target_is_new(&target) && !convert->backing && !noise;
    return fill(convert, image, blank, min_u64(convert->length, image->size), error) &&
           target_commit(&target, error);
}

/* Whether the image that is there can take what is copied. */
static bool check_target(Convert *convert, const Image *image, GError **error)
{
    if (image->size < convert->length) {
        return error_set(error, ENOSPC,
                         "%s: has %" PRIu64 " bytes, the source %" PRIu64
                         ": must be at least as large",
                         convert->path, image->size, convert->length);
    }
    if (convert->target_is_zero && image->backing_name) {
        return error_set(
            error, EINVAL,
            "--target-is-zero: %s has a backing file, which shows where it has nothing",
            convert->path);
    }
    convert->format = image->format;
    return check_compress(convert, error) && convert_bitmaps_check(convert, image, error);
}

static bool convert_existing(Convert *convert, const CliCommon *common, GError **error)
{
    ImageOpen how = {
        .format = convert->format,
        .write = true,
        .allow_paths = (const char *const *)common->allow_paths,
        .secrets = common->secrets,
    };
    g_autoptr(Image) image = image_open(convert->path, &how, error);
    if (!image) {
        return false;
    }
    bool done = check_target(convert, image, error) &&
                fill(convert, image, convert->target_is_zero, image->size, error);
    if (!done) { /* its own bitmaps go on being good */
        (void)image_finish(image);
    }
    return done;
}

/* ---- the command ---------------------------------------------------------------------------- */

static bool convert_image(Convert *convert, const CliCommon *common, GError **error)
{
    if ((!convert_to_stdout(convert) && !attach_server_not_attached(convert->path, error)) ||
        !open_source(convert, common, error) || !decide_range(convert, error) ||
        !convert_bitmaps_check(convert, NULL, error) || !open_backing(convert, common, error)) {
        return false;
    }
    convert->salvage = convert->wants_salvage ? salvage_new() : NULL;
    return convert->existing              ? convert_existing(convert, common, error)
           : convert_is_streamed(convert) ? convert_stream(convert, error)
                                          : convert_new(convert, common, error);
}

#define LOSSES_SHOWN 100

/* What --salvage made zeroes of. */
static void tell_losses(const Convert *convert)
{
    if (!convert->salvage || convert->quiet) {
        return;
    }
    const GArray *losses = salvage_losses(convert->salvage);
    for (guint i = 0; i < MIN(losses->len, LOSSES_SHOWN); i++) {
        const SalvageLoss *loss = &g_array_index(losses, SalvageLoss, i);
        fprintf(stderr,
                "cownbd: convert: %s: cannot read %" PRIu64 " bytes at offset %" PRIu64
                ": %s: zeroes stand there now\n",
                convert->source->path, loss->length, loss->offset, g_strerror(loss->error));
    }
    if (losses->len > LOSSES_SHOWN) {
        fprintf(stderr, "cownbd: convert: %s: and %u more ranges\n", convert->source->path,
                losses->len - LOSSES_SHOWN);
    }
}

static int run(Convert *convert, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    progress_catch_signals();
    if (!convert_image(convert, common, &error)) {
        g_prefix_error(&error, "convert: ");
        cli_fail(error);
        convert_clear(convert);
        *convert = (Convert){0};
        progress_raise_signal();
        return 1;
    }
    tell_losses(convert);
    return output_finish(0);
}

static const CliUsage usage = {
    .command = "convert",
    .arguments = "SRC DST",
    .summary =
        "Copies what a disk reads as into a new image. Holes stay holes, zeroes become holes.\n"
        "DST gets its name when it is complete: a conversion that is killed leaves what was "
        "there.\n"
        "DST may be -, stdout, for an image that is made from its front to its end.",
    .example =
        "  cownbd convert -O qcow2 disk.vmdk disk.qcow2\n"
        "  cownbd convert -O qcow2 -c --compression zstd disk.img small.qcow2\n"
        "  cownbd convert -O vmdk -o subformat=streamOptimized disk.img - | ssh host import\n"
        "  cownbd convert -O raw --range 1M:64M disk.qcow2 part.img\n"
        "  cownbd convert -n -O raw disk.qcow2 /dev/vg/disk",
    .flags = CLI_FLAG_CACHE | CLI_FLAG_FORMAT | CLI_FLAG_VHD_SIZE | CLI_FLAG_JSON | CLI_FLAG_SHARE |
             CLI_FLAG_ALLOW | CLI_FLAG_SNAPSHOT | CLI_FLAG_LOAD_SNAPSHOT | CLI_FLAG_SECRET,
};

static bool parse(Convert *convert, CliCommon *common, int *argc, char ***argv, GError **error)
{
    const GOptionEntry own[] = {
        {"output-format", 'O', 0, G_OPTION_ARG_FILENAME, &convert->output_format,
         "Format of DST (default: raw)", "FMT"},
        {"option", 'o', 0, G_OPTION_ARG_FILENAME_ARRAY, &convert->option_lists,
         "Options of that format (repeatable); -o help lists them", "K=V,..."},
        {"compress", 'c', 0, G_OPTION_ARG_NONE, &convert->compress, "Write compressed data", NULL},
        {"compression", 0, 0, G_OPTION_ARG_FILENAME, &convert->compression,
         "-c, by zlib or zstd: the same as -o compression_type", "TYPE"},
        {"backing", 'b', 0, G_OPTION_ARG_FILENAME, &convert->backing_name,
         "Backing file of DST, written into it as given; what reads the same there is left out",
         "FILE"},
        {"backing-file", 'B', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &convert->backing_name,
         NULL, NULL}, /* what qemu-img calls it */
        {"backing-format", 'F', 0, G_OPTION_ARG_FILENAME, &convert->backing_format,
         "Format of the backing file", "FMT"},
        {"range", 0, 0, G_OPTION_ARG_FILENAME, &convert->range_text,
         "Copy this part of the disk only", "OFFSET:LENGTH"},
        {"sparse-size", 'S', 0, G_OPTION_ARG_FILENAME, &convert->grain_text,
         "Look for zeroes in blocks of SIZE (default: 4k); 0: write all, holes too", "SIZE"},
        {"bitmaps", 0, 0, G_OPTION_ARG_NONE, &convert->bitmaps,
         "Copy the persistent dirty bitmaps, too (qcow2)", NULL},
        {"skip-broken-bitmaps", 0, 0, G_OPTION_ARG_NONE, &convert->skip_broken,
         "With --bitmaps: leave those out that were not saved by their last user", NULL},
        {"salvage", 0, 0, G_OPTION_ARG_NONE, &convert->wants_salvage,
         "What cannot be read of SRC becomes zeroes, and is told; the exit status is 0", NULL},
        {"existing", 'n', 0, G_OPTION_ARG_NONE, &convert->existing,
         "Write into DST as it is, an image or a device", NULL},
        {"target-is-zero", 0, 0, G_OPTION_ARG_NONE, &convert->target_is_zero,
         "With -n: all of DST reads as zeroes already, which need not be written", NULL},
        TOOL_RATE_OPTION(&convert->rate_text),
        TOOL_THREADS_OPTION(&convert->threads),
        {"out-of-order", 'W', 0, G_OPTION_ARG_NONE, &convert->ignored,
         "Write in any order: always so", NULL},
        {"copy-range", 'C', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &convert->ignored, NULL,
         NULL}, /* qemu-img: try to let the host copy */
        {"progress", 'p', 0, G_OPTION_ARG_NONE, &convert->show_progress,
         "Show progress also where stderr is no terminal: JSON lines there", NULL},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &convert->quiet, "Show no progress bar", NULL},
        {NULL},
    };
    if (!cli_parse(&usage, own, common, argc, argv, error) ||
        !cli_option_lists(convert->option_lists, convert->options, error)) {
        return false;
    }
    if (!convert->existing || convert->output_format) {
        convert->format = convert->existing ? cli_format(convert->output_format, error)
                                            : create_format(convert->output_format, error);
        return convert->format != NULL;
    }
    return true;
}

int cli_convert(int argc, char **argv)
{
    g_auto(Convert) convert = {.options = cli_option_table()};
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!parse(&convert, &common, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (g_hash_table_contains(convert.options, "help") && convert.format) {
        return create_options_help(convert.format);
    }
    if (!check_flags(&convert, &common, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 3) {
        return cli_fail_usage(&usage, "%d files given: must be SRC and DST", argc - 1);
    }
    convert.source_path = argv[1];
    convert.path = argv[2];
    convert.progress.kind = progress_kind(convert.show_progress, convert.quiet, common.json);
    if (!convert_check_stdout(&convert, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    return run(&convert, &common);
}
