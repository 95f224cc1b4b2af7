/*
 * A chain's map as a device-mapper table: which parts of the disk lie on host files so that the
 * kernel can move them itself. Pure: no kernel, no locks, one thread.
 *
 *      extents     | data, writable     | zero | data of a backing |  data, writable   |
 *      runs        [ file a, offset x   ]                          [ file a, offset y  ]
 *      lines       [ linear             ][ nbd                    ][ linear            ]
 *
 * A table keeps *runs*: whole allocation units that lie on a file in one piece. What no run covers
 * is nbd: it goes through the server. Lines are runs and the gaps between them.
 *
 * What becomes a run: DATA that is WRITABLE; where nothing can change (fixed), all DATA, and zeroes
 * too. The longest runs win when lines are bounded. A run that holds less than 1/16 of its fair
 * share (of all mapped bytes, over lines_max) is none: every line makes every reload dearer.
 */
#ifndef FASTPATH_DMTABLE_H
#define FASTPATH_DMTABLE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/rangeset.h"
#include "map/extent.h"

typedef struct DmRun {
    uint64_t start, length; /* of the disk, bytes */
    uint64_t host_offset;   /* in the file, bytes */
    Store *store;           /* the file, not owned; NULL: zeroes */
} DmRun;

typedef struct DmTableOptions {
    uint64_t size;      /* of the device: the disk's, down to whole sectors */
    uint64_t unit;      /* a power of two: a run begins and ends with one (or with the device) */
    uint64_t alignment; /* a power of two, of starts, ends and host offsets; at least 512 */
    unsigned lines_max; /* at least 1 */
    bool fixed;         /* nothing of the image can change */
} DmTableOptions;

typedef struct DmTable {
    DmTableOptions options;
    DmRun *runs; /* ascending */
    unsigned count;
    unsigned lines;        /* runs and gaps */
    uint64_t mapped_bytes; /* in runs */
} DmTable;

/* A table in the making. Memory: lines_max runs, however many extents there are. */
typedef struct DmPlan DmPlan;
DmPlan *dmplan_new(const DmTableOptions *options);
/* In order, without gaps, from 0 to the end of the disk. The signature is that of LeaseEach. */
void dmplan_add(void *plan, const Extent *extent);
/* Fills in the table, without what is in except (rounded out to units), and frees the plan.
 * *left_bytes (may be NULL): bytes that could be runs and are none, because of the bound. */
void dmplan_finish(DmPlan *plan, const RangeSet *except, DmTable *table, uint64_t *left_bytes);

/* Takes out what is in except, rounded out to units; then the shortest runs, until lines_max is
 * kept. */
void dmtable_exclude(DmTable *table, const RangeSet *except);
void dmtable_copy(DmTable *to, const DmTable *from);
void dmtable_clear(DmTable *table);
bool dmtable_equal(const DmTable *a, const DmTable *b); /* the same runs */

/* Calls line for each line in order: run is NULL for what is nbd. */
typedef void DmTableLine(void *argument, uint64_t start, uint64_t length, const DmRun *run);
void dmtable_lines(const DmTable *table, DmTableLine *line, void *argument);

/* As dmsetup reads it, but with names in place of devices: NBD for the server's device, LOOP0,
 * LOOP1 ... for devices over the files, which are named in lines that begin with '#'. */
void dmtable_print(const DmTable *table, GString *text);

#endif
