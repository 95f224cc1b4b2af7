/*
 * Fold: the exceptions of a store become writes to the image on top.
 *
 * Safe at every point: the store says FOLDING before the image changes, FOLDED only after all is
 * durable in the image, and is removed after that. Now and then what is in the image so far is made
 * durable, the store remembers how far that is and gives the space back. Whoever finds a store that
 * says FOLDING begins again from there: to write the same chunks again changes nothing.
 *
 * For `cownbd fold`, and for `cownbd detach` of snapshot mode: after the server has closed the
 * image, detach calls fold_image(path, NULL, ...), with the same lines of progress as fold. No
 * store beside the image: true, and result->found is false. [main]; blocks.
 */
#ifndef FASTPATH_FOLD_H
#define FASTPATH_FOLD_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/worker.h"
#include "fastpath/exceptions.h"
#include "map/image.h"
#include "store/store.h"

typedef struct FoldOptions {
    ImageOpen how;        /* format, allow_paths; the rest is set here */
    uint64_t flush_after; /* bytes; 0: a good default. So much space the host needs more, and so
                             much a cut may leave behind as leaked */
    bool keep; /* the store file stays, marked FOLDED, and is not found beside the image any
                      more: IMAGE.cownbd-cow.folded */
    /* Called now and then, from the thread that folds. May be NULL. */
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
} FoldOptions;

typedef struct FoldResult {
    uint64_t chunks; /* exceptions in the store */
    uint64_t bytes;  /* written to the image */
    /* Of them zeroes, which take no space where the image can leave them out. */
    uint64_t zero_bytes;
    uint32_t chunk_size;
    bool found;   /* there was a store */
    bool resumed; /* an earlier fold had been cut off */
    bool invalid; /* the kernel had given the store up; writes after that have failed there */
} FoldResult;

/* Folds store_path (NULL: the store beside the image) into the image. */
bool fold_image(const char *path, const char *store_path, const FoldOptions *options,
                FoldResult *result, GError **error);

/* The threads that a fold works with; the image's stores use the pool where they need one. */
typedef struct FoldThreads {
    Pool *pool;
    Worker *worker;
} FoldThreads;

/* The heart of it, on stores that are open: writes the exceptions, which were read from the store
 * file, to image (open for writing), makes them durable, marks the store FOLDED. The store says
 * FOLDING already. The image is finished and must not be written to afterwards. */
bool fold_run(Store *store, const Exceptions *list, Image *image, const FoldThreads *threads,
              const FoldOptions *options, FoldResult *result, GError **error);

#endif
