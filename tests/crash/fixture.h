/*
 * What a crash test runs on: a configuration, its new image, its backing, and the threads.
 */
#ifndef TESTS_CRASH_FIXTURE_H
#define TESTS_CRASH_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/pool.h"
#include "base/worker.h"
#include "formats/format.h"
#include "map/image.h"
#include "tests/lib/image-files.h"

typedef struct Setup {
    const char *name;
    const char *format;
    uint64_t disk_size;
    const char *cluster_size; /* or the size of a block, as create takes it; NULL: has none */
    const char *refcount_bits;
    const char *table_size; /* of qed */
    const char *compat;
    const char *lazy_refcounts; /* "on" or NULL */
    const char *zeroed_grain;   /* the same, of vmdk */
    const char *extended_l2;    /* the same */
    const char *backing;        /* format of the backing, or NULL */
    const char *more_options;   /* of create: "name=value,name=value", or NULL */
    bool compressed;         /* the image has compressed clusters at the start; made by qemu-img */
    bool snapshot;           /* and an internal snapshot, which shares all clusters; the same */
    bool filled;             /* data is there at the start */
    bool dirty;              /* data is there, the last writer was cut off, refcounts are stale */
    uint64_t metadata_cache; /* 0: the default */
    unsigned request_unit;   /* where the cluster is too large for that; 0: the cluster */
    uint64_t created_size;   /* of the new image, which grows when it is used; 0: disk_size */
    bool resizes;            /* the disk becomes smaller and larger again during the run */
    unsigned spare_files;    /* empty ones, which it may take when it grows */
    bool gaps;         /* what becomes free lies between blocks, and the format has no use for it */
    unsigned requests; /* of a run, fewer where a table fills up soon; 0: the default */
} Setup;

typedef struct Fixture {
    const Setup *setup;
    const Format *format;
    Store *backing_store;
    Image *backing;
    char *image_name;   /* of its own file; others are named after it */
    ImageBytes content; /* the new image */
    uint32_t *values;   /* of each cell of the new disk, see model.h */
    unsigned unit;      /* requests like multiples of this: the cluster size */
} Fixture;

Fixture *fixture_new(const Setup *setup);
void fixture_free(Fixture *fixture);
const char *fixture_backing_name(const Setup *setup); /* as in the image; static */

/* Whether it needs a secret, of which qemu-img is not told. */
bool fixture_is_encrypted(const Setup *setup);

/* Whether qemu-img can read the contents: it does not know the parents of all formats, nor every
 * size of a block. */
bool fixture_qemu_reads(const Setup *setup);

/* Whether a cut leaves something that only the next opening for writing mends: stale refcounts by
 * intent (the dirty bit), a log, footers that say two sizes. */
bool fixture_needs_writer(const Setup *setup);

/* Opens an image of this fixture that lies in these stores. */
Image *fixture_open(const Fixture *fixture, const ImageFiles *files, bool write, GError **error);
/* The same for writing, at its full size: one that was made smaller, or left so by a cut, grows. */
Image *fixture_open_whole(const Fixture *fixture, const ImageFiles *files, GError **error);

/* fixture-qemu.c: makes content and values with qemu-img. */
void fixture_make_by_qemu(Fixture *fixture);

/* Whether offset lies in a piece of what is there at the start that holds data. */
bool fixture_is_data(uint64_t offset);

/* The threads, made once. */
#define MACHINE_WORKERS 2
typedef struct Machine {
    Pool *pool;    /* the engine's */
    Pool *io_pool; /* the recording store's */
    Worker *workers[MACHINE_WORKERS];
} Machine;

void machine_start(Machine *machine);
void machine_stop(Machine *machine);

#endif
