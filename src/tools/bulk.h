/*
 * The bulk mover: many threads go over a range of a disk, piece by piece, from its start to its end.
 *
 * The tools that read or write whole disks (convert, compare, commit, rebase ...) differ only in
 * what is done with a piece. Pieces are handed out in the order of the range; so when one fails, or
 * says that enough is known, all that lies before it has been done or is under way.
 *
 * [main]; the work itself runs on threads of its own and may block.
 */
#ifndef TOOLS_BULK_H
#define TOOLS_BULK_H

#include <stdbool.h>
#include <stdint.h>

#define BULK_STOP        1   /* what work answers when no piece behind this one is needed */
#define BULK_THREADS_MAX 256 /* more would only wait for each other */

typedef struct Bulk {
    uint64_t offset, length; /* the range */
    uint64_t piece; /* bytes of one piece, which begins at a multiple of it; a power of two */
    unsigned threads;
    /* Bytes a second at most; 0: no limit. Pieces behind which work raises *next are free. */
    uint64_t rate;

    /* Does one piece. 0, BULK_STOP or -errno. *next is the end of the piece; work may raise it where
     * it knows that nothing is to do up to there. slot is below `threads`, and belongs to one thread
     * at a time. */
    int (*work)(void *opaque, unsigned slot, uint64_t offset, uint64_t length, uint64_t *next);
    /* Called with what work has done well, in the order of the pieces and for one at a time; not behind
     * one that failed. 0 or -errno. NULL: pieces are done with when work is. */
    int (*in_order)(void *opaque, unsigned slot, uint64_t offset, uint64_t length);
    void *opaque;

    /* Called by the thread that called bulk_run, a few times a second and once at the end; true:
     * the user wants to stop (-EINTR). May be NULL. */
    bool (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
} Bulk;

/* Runs until all is done or something fails. 0, BULK_STOP, or the -errno of the first piece (in the
 * order of the range) that failed; *at is where that piece begins (may be NULL). */
int bulk_run(const Bulk *bulk, uint64_t *at);

#endif
