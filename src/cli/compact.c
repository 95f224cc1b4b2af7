/*
 * cownbd compact: gives the unused space of an image back, and puts what it holds into order.
 *
 * What the image itself holds is written, in the order of the disk, into a new image of the same
 * kind, which then replaces it: zeroes, freed clusters and holes between clusters stay behind. Until
 * that moment nothing of the old one changes.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/create-target.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/tool-options.h"
#include "formats/format.h"
#include "tools/copy.h"

#define GRAIN 4096 /* zeroes are looked for in blocks of it */

typedef struct Compact {
    const char *path;
    gboolean compress, show_progress, quiet;
    int threads;
    Image *image;
    GHashTable *options;
    uint64_t before, after; /* bytes that the host uses */
    Progress progress;
} Compact;

static void compact_clear(Compact *compact)
{
    image_unref(compact->image);
    g_clear_pointer(&compact->options, g_hash_table_unref);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Compact, compact_clear)

/* A file that is replaced must be this name's alone. */
static bool check_file(const char *path, GError **error)
{
    struct stat st;
    if (stat(path, &st) < 0) {
        return error_set_errno(error, errno, "%s: cannot look at it", path);
    }
    if (!S_ISREG(st.st_mode)) {
        return error_set(error, ENOTSUP, "%s: is no regular file, and cannot be replaced", path);
    }
    return st.st_nlink == 1 ||
           error_set(error, ENOTSUP,
                     "%s: has %lu names (hard links): the others would keep the old file", path,
                     (unsigned long)st.st_nlink);
}

/* Where a part of a unit can be the image's own, the new image gets all of the unit: the rest of it comes from what lies
 * below, which is not needed otherwise. The file is locked by its target already. */
static bool open_chain(Compact *compact, ImageOpen *how, GError **error)
{
    how->no_lock = true;
    how->no_backing = true;
    compact->image = image_open(compact->path, how, error);
    if (compact->image && compact->image->backing_name && compact->image->partial_units) {
        g_clear_pointer(&compact->image, image_unref);
        how->no_backing = false;
        compact->image = image_open(compact->path, how, error);
    }
    return compact->image != NULL;
}

static bool open_image(Compact *compact, const CliCommon *common, GError **error)
{
    ImageOpen how = {0};
    if (!cli_image_open(common, &how, error) || !open_chain(compact, &how, error)) {
        return false;
    }
    const Format *format = compact->image->format;
    if (!format->create_like) {
        return error_set(error, ENOTSUP,
                         "%s: images of format %s cannot be compacted: make a new one with 'cownbd "
                         "convert'",
                         compact->path, format->name);
    }
    if (compact->compress && !format->encode) {
        return error_set(error, ENOTSUP, "-c: cownbd cannot compress images of format %s",
                         format->name);
    }
    if (compact->compress && compact->image->encryption) {
        return error_set(error, ENOTSUP,
                         "-c: %s is encrypted, and compressed clusters are not: leave out -c",
                         compact->path);
    }
    return format->create_like(compact->image, compact->options, error);
}

static bool fill(Compact *compact, Image *target, GError **error)
{
    Image *image = compact->image;
    CopyOptions options = {
        .length = image->size,
        .grain = GRAIN,
        .blank = !image->backing_name,
        .compress = compact->compress,
        .own = true,
        .threads = compact->threads,
        .progress = progress_step,
        .context = &compact->progress,
    };
    CopyFailure failure = {0};
    int r = image->size > 0 ? copy_disk(image, target, &options, &failure) : 0;
    progress_end(&compact->progress);
    if (r == -EINTR) {
        return error_set(error, EINTR, "interrupted: %s is as it was", compact->path);
    }
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot %s near offset %" PRIu64, compact->path,
                               failure.writing ? "write the new image" : "read", failure.offset);
    }
    r = image_finish(target);
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot write the last of the new image", compact->path);
}

/* The new image, as whoever opens it will read it. */
static Image *open_new(const Compact *compact, const CreateTarget *target, const CliCommon *common,
                       GError **error)
{
    const Image *old = compact->image;
    ImageOpen how = {
        .format = old->format,
        .write = true,
        .parts = target->parts,
        .keep_identity = true,
        .secret = secrets_find(common->secrets, compact->path),
    };
    g_autoptr(Image) new = image_open_store(target->store, &how, NULL, error);
    if (new && (new->size != old->size || !new->backing_name != !old->backing_name)) {
        error_set(error, EIO, "%s: the new image came out with another size, or another backing",
                  compact->path);
        return NULL;
    }
    return g_steal_pointer(&new);
}

/* The image's other files. */
static bool check_beside(const CreateTarget *target, GError **error)
{
    for (guint i = 0; target->beside && i < target->beside->len; i++) {
        const CreateTarget *other = g_ptr_array_index(target->beside, i);
        if (!check_file(other->path, error)) {
            return false;
        }
    }
    return true;
}

static bool compact_image(Compact *compact, const CliCommon *common, GError **error)
{
    g_auto(CreateTarget) target = {0};
    if (!attach_server_not_attached(compact->path, error) || !check_file(compact->path, error) ||
        !target_open(&target, compact->path, error) || !open_image(compact, common, error)) {
        return false;
    }
    target.exchange = true;
    Image *image = compact->image;
    FormatCreate how = {
        .size = image->size,
        .backing_name = image->backing_name,
        .backing_format = image->backing_format,
        .options = compact->options,
        .files = &target.files,
        .like = image,
    };
    if (!image->format->create(target.store, &how, error) || !check_beside(&target, error)) {
        return false;
    }
    g_autoptr(Image) new = open_new(compact, &target, common, error);
    if (!new || !fill(compact, new, error)) {
        return false;
    }
    compact->before = image_allocated_bytes(image);
    compact->after = image_allocated_bytes(new);
    return target_commit(&target, error);
}

static void print_result(const Compact *compact, bool json)
{
    g_autofree char *before = output_size(compact->before), *after = output_size(compact->after);
    if (json) {
        printf("{ \"before\": %" PRIu64 ", \"after\": %" PRIu64 " }\n", compact->before,
               compact->after);
    } else if (!compact->quiet) {
        printf("%s: used %s, now %s\n", compact->path, before, after);
    }
}

static int run(Compact *compact, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    progress_catch_signals();
    if (!compact_image(compact, common, &error)) {
        g_prefix_error(&error, "compact: ");
        cli_fail(error);
        progress_raise_signal();
        return 1;
    }
    print_result(compact, common->json);
    return output_finish(0);
}

int cli_compact(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "compact",
        .arguments = "IMAGE",
        .summary =
            "Gives the space back that an image has and does not use: zeroes, freed clusters, "
            "gaps; and puts\nwhat it holds into the order of the disk. The image is written "
            "anew beside itself: there must be\nroom for that. Killed at any point, it leaves "
            "the image as it was.",
        .example = "  cownbd compact disk.qcow2\n"
                   "  cownbd compact -c disk.qcow2",
        .flags = CLI_FLAG_FORMAT | CLI_FLAG_JSON | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
    };
    g_auto(Compact) compact = {.options = cli_option_table()};
    const GOptionEntry own[] = {
        {"compress", 'c', 0, G_OPTION_ARG_NONE, &compact.compress,
         "Compress all data (else what is compressed stays so)", NULL},
        {"threads", 'm', 0, G_OPTION_ARG_INT, &compact.threads,
         "Work with so many threads (default: 1, which keeps all in order; with -c number of "
         "processors)",
         "N"},
        {"progress", 'p', 0, G_OPTION_ARG_NONE, &compact.show_progress,
         "Show progress also where stderr is no terminal: JSON lines there", NULL},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &compact.quiet, "Say nothing", NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (compact.threads == 0 && !compact.compress) {
        compact.threads = 1;
    }
    if (!tool_threads_check(&compact.threads, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, "%d images given: must be one", argc - 1);
    }
    compact.path = argv[1];
    compact.progress.kind =
        progress_kind(compact.show_progress, compact.quiet || common.json, false);
    return run(&compact, &common);
}
