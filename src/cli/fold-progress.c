/*
 * The words and the line of progress of a fold, for the two commands that fold.
 */
#include "cli/fold-progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "cli/output.h"

void fold_progress_print(void *context, uint64_t done, uint64_t total)
{
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r    (%.1f/100%%)%s", total ? done * 100.0 / total : 100.0,
                done >= total ? "\n" : "");
    }
}

void fold_print_result(const char *path, const FoldResult *result)
{
    if (!result->found) {
        printf("%s: nothing to fold\n", path);
        return;
    }
    if (result->invalid) {
        fprintf(stderr,
                "cownbd: %s: the kernel had given the store up, for it could not write to it or "
                "it was full: what was written to the device after that is not there\n",
                path);
    }
    if (result->chunks == 0 && result->resumed) {
        printf("%s: was folded already\n", path);
        return;
    }
    g_autofree char *bytes = output_size(result->bytes);
    printf("%s: %s folded, %" PRIu64 " exceptions%s\n", path, bytes, result->chunks,
           result->resumed ? ", after a fold that had been cut off" : "");
}
