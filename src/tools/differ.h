/*
 * Where two disks read differently: the work of compare and diff.
 */
#ifndef TOOLS_DIFFER_H
#define TOOLS_DIFFER_H

#include <glib.h>

#include "map/image.h"

typedef struct DifferOptions {
    uint64_t length; /* compared from 0 on; beyond its end a disk reads as zeroes */
    uint64_t grain;  /* a power of two: differences are whole blocks of it */
    bool first;      /* the first difference is enough */
    unsigned threads;
    bool (*progress)(void *context, uint64_t done, uint64_t total); /* as of bulk_run */
    void *context;
} DifferOptions;

/* A range that differs. */
typedef struct Difference {
    uint64_t offset, length;
    bool zero; /* it reads as zeroes in b */
} Difference;

typedef struct DifferFailure {
    uint64_t offset;
    const Image *image; /* which could not be read; NULL: neither's fault */
} DifferFailure;

/* Appends the differences (Difference) in order, neighbours joined. 0 or -errno. [main] */
int differ_run(Image *a, Image *b, const DifferOptions *options, GArray *differences,
               DifferFailure *failure);

#endif
