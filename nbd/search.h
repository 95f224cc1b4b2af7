/*
 * A search for an export that is not in the table, by somebody who may open one for it.
 *
 *      option names an unknown export --> finder takes the search --> opens an image, blocking,
 *      somewhere else --> nbd_search_done --> the same option is looked at again
 *
 * LIST does the same to learn what more could be opened. Meanwhile the connection reads nothing, and its
 * handshake's time runs.
 */
#ifndef NBD_SEARCH_H
#define NBD_SEARCH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/worker.h"
#include "control/export.h"

typedef struct Conn Conn;

/* What could be opened. */
typedef struct NbdListed {
    char *name;
    AccessRules *access; /* or NULL: everybody may do everything */
} NbdListed;

typedef struct NbdSearch {
    char *name;         /* NULL: all that could be opened */
    Export *export;     /* what was found, pinned; or NULL */
    GPtrArray *listing; /* NbdListed *, where all was asked for; or NULL */
    Conn *conn;
    Worker *worker;
    WorkerMessage message;
} NbdSearch;

/* Takes the search, and calls nbd_search_done for it once, from any thread, at any time before the server
 * is freed; or false: nothing of that name can be. Does not block. [worker] */
typedef bool (*NbdFinder)(NbdSearch *search, void *context);

/* Looks for an export of that name, or (NULL) for all that could be opened: the connection reads no more until that has ended, then consumes the
 * same option again. False: nobody has more exports. [worker] */
bool conn_search(Conn *conn, const char *name, size_t length);

/* The option that was looked at again is done with. [worker] */
void conn_forget_search(Conn *conn);

/* The search has ended; export is pinned for it, or NULL. [any] */
void nbd_search_done(NbdSearch *search, Export *export);
/* The same of a search for all; takes the listing. [any] */
void nbd_search_listed(NbdSearch *search, GPtrArray *listing);

#endif
