/*
 * What the files of convert share. Private to cli/convert*.c. [main]
 *
 *     convert.c          the command line; into a new image, or one that is there
 *     convert-stream.c   into an image that is made from its front to its end
 *     convert-bitmaps.c  the bitmaps of the source
 */
#ifndef CLI_CONVERT_H
#define CLI_CONVERT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "cli/preallocate.h"
#include "cli/progress.h"
#include "formats/format.h"
#include "tools/copy.h"

typedef struct Convert {
    const char *source_path, *path;
    char *output_format, *backing_name, *backing_format;
    char *preallocation_name;
    Preallocation preallocation;
    char *range_text, *grain_text, *rate_text, *compression;
    char **option_lists;
    gboolean compress, existing, target_is_zero, show_progress, quiet, ignored;
    gboolean bitmaps, skip_broken, wants_salvage;
    int threads;

    const Format *format;
    GHashTable *options;
    uint64_t offset, length; /* of the source */
    uint64_t grain, rate;
    Image *source, *backing;
    Salvage *salvage; /* NULL: not asked for */
    Progress progress;
} Convert;

/* Says in *error what the movers answered; false. target: the name of what is written. */
bool convert_fail_copy(const Convert *convert, const char *target, int result,
                       const CopyFailure *failure, GError **error);

/* ---- convert-stream.c ---- */

/* Whether the image is made from its front to its end. */
bool convert_is_streamed(const Convert *convert);
bool convert_to_stdout(const Convert *convert);
bool convert_check_stdout(const Convert *convert, GError **error);
bool convert_stream(Convert *convert, GError **error);

/* ---- convert-bitmaps.c ---- */

/* Before anything is copied: whether --bitmaps can be done, into the target where that is open (-n). */
bool convert_bitmaps_check(const Convert *convert, const Image *target, GError **error);
/* Adds the source's bitmaps to the image. */
bool convert_bitmaps_copy(const Convert *convert, Image *target, GError **error);

#endif
