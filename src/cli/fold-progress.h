/*
 * What fold and detach print of a fold. [main]
 */
#ifndef CLI_FOLD_PROGRESS_H
#define CLI_FOLD_PROGRESS_H

#include "fastpath/fold.h"

/* For FoldOptions.progress: a line on stderr that is written over, where that is a terminal. */
void fold_progress_print(void *context, uint64_t done, uint64_t total);

/* Says on stdout what was folded; on stderr when the kernel had given the store up. */
void fold_print_result(const char *path, const FoldResult *result);

#endif
