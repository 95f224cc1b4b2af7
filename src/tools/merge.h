/*
 * Moves data between an image and what lies below it: the work of commit and of rebase.
 *
 * Neither changes what the image reads as while it runs, so both can be cut off at any point and
 * begun again.
 */
#ifndef TOOLS_MERGE_H
#define TOOLS_MERGE_H

#include "map/image.h"

typedef struct MergeOptions {
    unsigned threads;
    uint64_t rate;                                                  /* as of bulk_run */
    bool (*progress)(void *context, uint64_t done, uint64_t total); /* as of bulk_run */
    void *context;
} MergeOptions;

typedef struct MergeFailure {
    uint64_t offset; /* where a piece begins that failed */
    bool writing;    /* it could be read */
} MergeFailure;

/* Writes what the `depth` upper images of top's chain hold into the image below them, which is open
 * for writing and as large as top. 0 or -errno. Nothing is synced. [main] */
int merge_down(Image *top, unsigned depth, const MergeOptions *options, MergeFailure *failure);

/* Writes into top, which is open for writing, what it does not have itself and what would read
 * differently over the backing that it has now than over `old` (NULL: zeroes). 0 or -errno. Nothing
 * is synced. [main] */
int merge_up(Image *top, Image *old, const MergeOptions *options, MergeFailure *failure);

#endif
