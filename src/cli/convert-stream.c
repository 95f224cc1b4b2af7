/*
 * convert into an image that is made from its front to its end: into a file, or to stdout.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/errors.h"
#include "cli/convert.h"
#include "cli/create-target.h"
#include "tools/stream.h"

bool convert_is_streamed(const Convert *convert)
{
    const Format *format = convert->format;
    FormatCreate how = {.options = convert->options};
    return !convert->existing && format->streaming && format->streaming->wanted(&how);
}

bool convert_to_stdout(const Convert *convert)
{
    return strcmp(convert->path, "-") == 0;
}

bool convert_check_stdout(const Convert *convert, GError **error)
{
    if (!convert_to_stdout(convert)) {
        return true;
    }
    if (convert->existing || !convert_is_streamed(convert)) {
        return error_set(error, EINVAL,
                         "-: only an image that is made from its front to its end goes to stdout: "
                         "use -O vmdk -o subformat=streamOptimized");
    }
    if (convert->progress.kind == PROGRESS_JSON) {
        return error_set(error, EINVAL, "-: --json prints to stdout, where the image goes");
    }
    return !isatty(STDOUT_FILENO) ||
           error_set(error, EINVAL, "-: stdout is a terminal: must be a pipe or a file");
}

typedef struct Appender {
    Store *store;
    uint64_t at;
} Appender;

static int append_to_store(void *opaque, const void *bytes, size_t n)
{
    Appender *appender = opaque;
    uint64_t at = appender->at;
    appender->at += n;
    return store_write(appender->store, bytes, n, at);
}

static int write_to_stdout(void *opaque, const void *bytes, size_t n)
{
    const uint8_t *at = bytes;
    while (n > 0) {
        ssize_t done = write(STDOUT_FILENO, at, n);
        if (done < 0 && errno != EINTR) {
            return -errno;
        }
        at += MAX(done, 0);
        n -= MAX(done, 0);
    }
    return 0;
}

/* Makes the image out of what sink takes. */
static bool fill_stream(Convert *convert, FormatFiles *files, StreamOptions *options,
                        GError **error)
{
    const FormatStreaming *streaming = convert->format->streaming;
    FormatCreate how = {
        .size = convert->length,
        .backing_name = convert->backing_name,
        .backing_format = convert->backing_format,
        .backing = convert->backing,
        .options = convert->options,
        .files = files,
    };
    FormatStream *stream = streaming->begin(&how, error);
    if (!stream) {
        g_prefix_error(error, "%s: ", convert->path);
        return false;
    }
    options->source_offset = convert->offset;
    options->length = convert->length;
    options->all = convert->grain == 0;
    options->threads = convert->threads;
    options->rate = convert->rate;
    options->salvage = convert->salvage;
    options->progress = progress_step;
    options->context = &convert->progress;
    CopyFailure failure = {0};
    int r = stream_disk(convert->source, streaming, stream, options, &failure);
    streaming->free(stream);
    progress_end(&convert->progress);
    return r == 0 || convert_fail_copy(convert, convert->path, r, &failure, error);
}

bool convert_stream(Convert *convert, GError **error)
{
    g_auto(CreateTarget) target = {0};
    if (convert_to_stdout(convert)) {
        signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error like others */
        StreamOptions options = {.write = write_to_stdout};
        return fill_stream(convert, NULL, &options, error);
    }
    if (!target_open(&target, convert->path, error)) {
        return false;
    }
    if (!target_is_new(&target)) {
        return error_set(error, EINVAL,
                         "%s: is a device, and readers look for the footer at the end of a file: "
                         "use another subformat",
                         convert->path);
    }
    Appender appender = {.store = target.store};
    StreamOptions options = {.write = append_to_store, .sink = &appender};
    if (!fill_stream(convert, &target.files, &options, error)) {
        return false;
    }
    int r = store_sync(target.store);
    return r < 0 ? error_set_errno(error, -r, "%s: cannot write the last of it", convert->path)
                 : target_commit(&target, error);
}
