/*
 * What a tool does to an image, as a script of steps: cut at every place of its record, and with every
 * operation of the store failing in turn. For changes that take many syncs and no load, as snapshots
 * and bitmaps.
 */
#ifndef TESTS_CRASH_SCRIPT_H
#define TESTS_CRASH_SCRIPT_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/format.h"
#include "map/image.h"
#include "store/store.h"

#define SCRIPT_CLUSTERS 150 /* of the disk */

typedef struct Script {
    const char *name, *cluster_size, *refcount_bits,
        *compat; /* of the image; refcount_bits may be NULL */
    unsigned steps;
    /* Each step opens the image and closes it in order; else they share one session. */
    bool sessions;

    /* One step on the image, open for writing; false: it failed. */
    bool (*run)(Image *image, unsigned step);

    /* What is wrong with an image on which that step was under way (steps: none was); NULL: nothing. */
    const char *(*look)(Store *store, unsigned step);

    bool look_again; /* also after the image was opened for writing and checked */
} Script;

/* How many states are wrong; adds to *tried how many there were. */
uint64_t script_try(const Script *script, uint64_t *tried);

/* For run and look: each cluster of the disk is filled with one number, its value. */
typedef struct ScriptDisk {
    uint32_t values[SCRIPT_CLUSTERS];
} ScriptDisk;

Image *script_open(Store *store, bool write, const char *snapshot, GError **error);

/* The value that a step writes to a cluster, and the writing of count of them, flush included. */
uint32_t script_value(unsigned step, unsigned cluster);
bool script_write(Image *image, unsigned step, unsigned first, unsigned count);

typedef enum { SCRIPT_OTHER, SCRIPT_BEFORE, SCRIPT_AFTER, SCRIPT_BETWEEN } ScriptIs;

/* Whether the disk is as before, or as after (said first when that is the same), or each cluster that
 * differs anything between, torn ones included. changed: which clusters are not as before; may be
 * NULL. */
ScriptIs script_disk_is(Image *image, const ScriptDisk *before, const ScriptDisk *after,
                        bool changed[SCRIPT_CLUSTERS]);

#endif
