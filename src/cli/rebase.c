/*
 * cownbd rebase: gives an image another backing.
 *
 * Safe: first what would read differently is copied into the image, and synced; then the name in
 * its header changes, in one piece. Cut off at any point, the image reads as it did, and the same
 * command goes on. Unsafe (-u): only the name; for a backing that was moved, or converted.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/tool-options.h"
#include "formats/format.h"
#include "tools/merge.h"

typedef struct Rebase {
    const char *path;
    char *backing_name, *backing_format;
    gboolean unsafe, show_progress, quiet;
    int threads;
    Image *top, *backing;
    Progress progress;
} Rebase;

static void rebase_clear(Rebase *rebase)
{
    g_free(rebase->backing_name);
    g_free(rebase->backing_format);
    image_unref(rebase->top);
    image_unref(rebase->backing);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rebase, rebase_clear)

/* -b "" says: no backing. */
static const char *new_name(const Rebase *rebase)
{
    return rebase->backing_name && rebase->backing_name[0] ? rebase->backing_name : NULL;
}

static bool check_flags(const Rebase *rebase, GError **error)
{
    if (!rebase->backing_name) {
        return error_set(error, EINVAL, "no backing file named: say it with -b, or -b '' for none");
    }
    if (new_name(rebase) && !rebase->backing_format) {
        return error_set(error, EINVAL,
                         "backing file '%s' without its format: say it with -F, for guessing is "
                         "not safe",
                         rebase->backing_name);
    }
    return new_name(rebase) || !rebase->backing_format ||
           error_set(error, EINVAL, "-F '%s' without a backing file", rebase->backing_format);
}

static bool open_image(Rebase *rebase, const CliCommon *common, GError **error)
{
    ImageOpen how = {.write = true, .no_backing = rebase->unsafe, .keep_identity = true};
    if (!cli_image_open(common, &how, error)) {
        return false;
    }
    rebase->top = image_open(rebase->path, &how, error);
    if (!rebase->top) {
        return false;
    }
    return rebase->top->format->set_backing ||
           error_set(error, ENOTSUP,
                     "%s: the backing of an image of format %s cannot be changed: make a new one "
                     "with 'cownbd convert -b'",
                     rebase->path, rebase->top->format->name);
}

static bool open_backing(Rebase *rebase, const CliCommon *common, GError **error)
{
    rebase->backing = tool_open_backing(rebase->path, rebase->backing_name, rebase->backing_format,
                                        common, error);
    return rebase->backing && tool_not_in_chain(rebase->backing, rebase->path, error);
}

/* An unsafe rebase looks at the new backing only where the image wants to know who that is. The format must be known
 * all the same. */
static bool open_both(Rebase *rebase, const CliCommon *common, GError **error)
{
    bool named = new_name(rebase), safe = !rebase->unsafe;
    if (named && !cli_format(rebase->backing_format, error)) {
        return false;
    }
    if (named && safe && !open_backing(rebase, common, error)) {
        return false;
    }
    if (!open_image(rebase, common, error)) {
        return false;
    }
    bool wanted = named && !safe && rebase->top->format->knows_backing;
    return !wanted || open_backing(rebase, common, error);
}

static bool copy_up(Rebase *rebase, GError **error)
{
    Image *top = rebase->top;
    MergeOptions options = {
        .threads = rebase->threads,
        .progress = progress_step,
        .context = &rebase->progress,
    };
    MergeFailure failure = {0};
    /* From here on the image is asked as it will be; what it was over is read by itself. */
    g_autoptr(Image) old = top->backing;
    top->backing = rebase->backing ? image_ref(rebase->backing) : NULL;
    int r = merge_up(top, old, &options, &failure);
    progress_end(&rebase->progress);
    if (r == -EINTR) {
        return error_set(error, EINTR, "interrupted: %s reads as before; run it again to go on",
                         rebase->path);
    }
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot %s near offset %" PRIu64, rebase->path,
                               failure.writing ? "write" : "read what lies below", failure.offset);
    }
    return true;
}

static bool rebase_image(Rebase *rebase, const CliCommon *common, GError **error)
{
    if (!attach_server_not_attached(rebase->path, error) || !open_both(rebase, common, error) ||
        (!rebase->unsafe && !(tool_no_snapshots(rebase->top, error) && copy_up(rebase, error)))) {
        return false;
    }
    int r = image_finish(rebase->top); /* what was copied is durable before the name changes */
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the last of it", rebase->path);
    }
    return rebase->top->format->set_backing(rebase->top, new_name(rebase), rebase->backing_format,
                                            rebase->backing, error);
}

static int run(Rebase *rebase, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    progress_catch_signals();
    if (!rebase_image(rebase, common, &error)) {
        g_prefix_error(&error, "rebase: ");
        cli_fail(error);
        progress_raise_signal();
        return 1;
    }
    return output_finish(0);
}

int cli_rebase(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "rebase",
        .arguments = "IMAGE",
        .summary = "Gives an image another backing file, and keeps what it reads as.\n"
                   "Cut off at any point it has changed nothing that is read; run it again.",
        .example = "  cownbd rebase -b newbase.qcow2 -F qcow2 overlay.qcow2\n"
                   "  cownbd rebase -b '' overlay.qcow2\n"
                   "  cownbd rebase -u -b /srv/moved/base.img -F raw overlay.qcow2",
        .flags = CLI_FLAG_CACHE | CLI_FLAG_FORMAT | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
    };
    g_auto(Rebase) rebase = {0};
    const GOptionEntry own[] = {
        {"backing", 'b', 0, G_OPTION_ARG_FILENAME, &rebase.backing_name,
         "The new backing file, written into the image as given; '' for none", "FILE"},
        {"backing-format", 'F', 0, G_OPTION_ARG_FILENAME, &rebase.backing_format,
         "Format of the backing file", "FMT"},
        {"unsafe", 'u', 0, G_OPTION_ARG_NONE, &rebase.unsafe,
         "Change only the name: right when the new file reads as the old one did", NULL},
        TOOL_THREADS_OPTION(&rebase.threads),
        {"progress", 'p', 0, G_OPTION_ARG_NONE, &rebase.show_progress,
         "Show progress also where stderr is no terminal: JSON lines there", NULL},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &rebase.quiet, "Show no progress bar", NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error) || !check_flags(&rebase, &error) ||
        !tool_threads_check(&rebase.threads, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, "%d images given: must be one", argc - 1);
    }
    rebase.path = argv[1];
    rebase.progress.kind = progress_kind(rebase.show_progress, rebase.quiet, false);
    return run(&rebase, &common);
}
