/*
 * Lingering: a short look at a socket before the worker goes to sleep.
 *
 * A client that sends its next request as soon as it has the last answer (depth 1) costs two
 * wake-ups a request, one on each side, and on a virtual machine each may cost more than the
 * request itself. A worker that has nothing else to do looks at the socket for a moment instead of
 * sleeping, and saves its own.
 *
 * Where that does not pay (the client thinks longer, the processors are busy), the looks become
 * rare: each in vain doubles the distance twice, up to one in 1024 requests; each that finds
 * something halves it. [worker]
 */
#ifndef NBD_LINGER_H
#define NBD_LINGER_H

#include <stdbool.h>

typedef struct Linger { /* all zero: look the next time */
    unsigned short skip;
    unsigned char misses; /* the distance is 2 to this power */
} Linger;

/* Whether to look this time. */
bool linger_is_due(Linger *linger);

/* Notes how the look went. */
void linger_note(Linger *linger, bool hit);

/* Looks until fd has something to read (true) or LINGER_US are over. Lets others run meanwhile. A
 * look that took much longer than it should, because others did run, counts as one in vain,
 * whatever it found. */
bool linger_look(Linger *linger, int fd);

#endif
