/*
 * cownbd commit: brings what an image holds into the image below it.
 *
 *     1. copy into the base: the image above still holds all of it, so nothing reads differently
 *     2. sync the base
 *     3. drop it from the image (not with -d, and not past an image in between)
 *
 * Cut off at any point, it is begun again by the same command.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "cli/attach-server.h"
#include "cli/cli.h"
#include "cli/create-target.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/tool-options.h"
#include "formats/format.h"
#include "tools/merge.h"

typedef struct Commit {
    const char *path;
    char *base_name, *rate_text;
    gboolean keep, show_progress, quiet;
    int threads;
    uint64_t rate;
    unsigned depth; /* of the base */
    Image *top, *base;
    Progress progress;
} Commit;

static void commit_clear(Commit *commit)
{
    g_free(commit->base_name);
    g_free(commit->rate_text);
    image_unref(commit->top);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Commit, commit_clear)

/* How deep the base lies: 1, or where -b says. Only looks. */
static bool find_base(Commit *commit, const CliCommon *common, GError **error)
{
    ImageOpen how = {.no_lock = true};
    if (!cli_image_open(common, &how, error)) {
        return false;
    }
    how.no_lock = true;
    g_autoptr(Image) top = image_open(commit->path, &how, error);
    if (!top) {
        return false;
    }
    if (!top->backing) {
        return error_set(error, EINVAL, "%s: has no backing file to commit into", commit->path);
    }
    commit->depth = 1;
    const Image *image = top->backing;
    for (; image && commit->base_name; image = image->backing, commit->depth++) {
        if (target_is_file(image->path, commit->base_name)) {
            return true;
        }
    }
    return !commit->base_name ||
           error_set(error, EINVAL, "%s: is no image below %s", commit->base_name, commit->path);
}

static bool open_chain(Commit *commit, const CliCommon *common, GError **error)
{
    /* Else a child that is cut off from the base in the middle would not know it any more. */
    ImageOpen how = {.write = true, .write_depth = commit->depth, .keep_identity = true};
    if (!cli_image_open(common, &how, error)) {
        return false;
    }
    commit->top = image_open(commit->path, &how, error);
    if (!commit->top || !tool_no_snapshots(commit->top, error)) {
        return false;
    }
    commit->base = commit->top;
    for (unsigned i = 0; i < commit->depth; i++) {
        commit->base = commit->base->backing;
    }
    if (commit->base->format_guessed && commit->base->format == &format_raw) {
        return error_set(error, EINVAL,
                         "%s: its format is not said, and raw is only a guess: say it with 'cownbd "
                         "rebase -u -b FILE -F FMT' first",
                         commit->base->path);
    }
    return commit->base->size >= commit->top->size ||
           image_resize(commit->base, commit->top->size, error);
}

static bool copy_down(Commit *commit, GError **error)
{
    MergeOptions options = {
        .threads = commit->threads,
        .rate = commit->rate,
        .progress = progress_step,
        .context = &commit->progress,
    };
    MergeFailure failure = {0};
    int r = merge_down(commit->top, commit->depth, &options, &failure);
    progress_end(&commit->progress);
    if (r == -EINTR) {
        return error_set(error, EINTR, "interrupted: %s reads as before; run it again to go on",
                         commit->path);
    }
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot %s near offset %" PRIu64,
                               failure.writing ? commit->base->path : commit->path,
                               failure.writing ? "write" : "read", failure.offset);
    }
    r = image_finish(commit->base);
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot write the last of it", commit->base->path);
}

/* The base has all of it durably: the image may let it go. *dropped: it has. */
static bool drop(Commit *commit, bool *dropped, GError **error)
{
    Image *top = commit->top;
    *dropped = false;
    if (commit->keep || commit->depth > 1 || !top->format->unmap || top->size == 0) {
        return true;
    }
    int r = top->format->unmap(top, 0, top->size, UNMAP_BACKING);
    if (r == -ENOTSUP) { /* what it holds is the same as what is below */
        return true;
    }
    r = r < 0 ? r : image_finish(top);
    *dropped = r == 0;
    return r == 0 || error_set_errno(error, -r, "%s: cannot empty it", commit->path);
}

static bool commit_image(Commit *commit, const CliCommon *common, bool *dropped, GError **error)
{
    return attach_server_not_attached(commit->path, error) && find_base(commit, common, error) &&
           open_chain(commit, common, error) && copy_down(commit, error) &&
           drop(commit, dropped, error);
}

static int run(Commit *commit, const CliCommon *common)
{
    g_autoptr(GError) error = NULL;
    bool dropped = false;
    progress_catch_signals();
    if (!commit_image(commit, common, &dropped, &error)) {
        g_prefix_error(&error, "commit: ");
        cli_fail(error);
        progress_raise_signal();
        return 1;
    }
    if (!commit->quiet) {
        printf("Image committed into %s%s.\n", commit->base->path,
               dropped ? ", and emptied" : "; it keeps what it holds");
    }
    return output_finish(0);
}

int cli_commit(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "commit",
        .arguments = "IMAGE",
        .summary = "Brings what an image holds into the image below it, and empties it.\n"
                   "Cut off at any point it has changed nothing that is read; run it again.",
        .example = "  cownbd commit overlay.qcow2\n"
                   "  cownbd commit -d -b base.img overlay.qcow2",
        .flags = CLI_FLAG_CACHE | CLI_FLAG_FORMAT | CLI_FLAG_ALLOW | CLI_FLAG_SECRET,
    };
    g_auto(Commit) commit = {0};
    const GOptionEntry own[] = {
        {"base", 'b', 0, G_OPTION_ARG_FILENAME, &commit.base_name,
         "Bring it into this image of the chain (default: the first below). Images in between are "
         "of no use afterwards",
         "FILE"},
        {"keep", 'd', 0, G_OPTION_ARG_NONE, &commit.keep, "Do not empty IMAGE", NULL},
        TOOL_THREADS_OPTION(&commit.threads),
        TOOL_RATE_OPTION(&commit.rate_text),
        {"progress", 'p', 0, G_OPTION_ARG_NONE, &commit.show_progress,
         "Show progress also where stderr is no terminal: JSON lines there", NULL},
        {"quiet", 'q', 0, G_OPTION_ARG_NONE, &commit.quiet, "Say nothing", NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error) ||
        !tool_threads_check(&commit.threads, &error) ||
        !tool_rate_parse(commit.rate_text, &commit.rate, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, "%d images given: must be one", argc - 1);
    }
    commit.path = argv[1];
    commit.progress.kind = progress_kind(commit.show_progress, commit.quiet, false);
    return run(&commit, &common);
}
