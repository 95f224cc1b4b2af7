/*
 * Copies what one disk reads as into an image: the work of convert.
 */
#ifndef TOOLS_COPY_H
#define TOOLS_COPY_H

#include "map/image.h"
#include "tools/salvage.h"

typedef struct CopyOptions {
    uint64_t source_offset; /* what is at 0 of the target */
    uint64_t length;        /* bytes of the target that are written, from 0 on */
    uint64_t grain;         /* zeroes are looked for in blocks of it; 0: all becomes data */
    bool blank;             /* the target reads as zeroes all over, and nobody has written to it */
    bool compress;          /* store data encoded; the target's format can do that */
    /* Only what the source image has itself, not what lies below it; encoded stays encoded. */
    bool own;
    Image *backing; /* the target's: units that read the same there already are left out; or NULL */
    unsigned threads;
    uint64_t rate; /* as of bulk_run */
    /* What cannot be read of the source is zeroes, noted here; NULL: it is an error. */
    Salvage *salvage;
    bool (*progress)(void *context, uint64_t done, uint64_t total); /* as of bulk_run */
    void *context;
} CopyOptions;

typedef struct CopyFailure {
    uint64_t offset; /* of the target: where a piece begins that failed */
    bool writing;    /* it could be read */
} CopyFailure;

/* 0 or -errno (-EINTR: progress said so). The target is not synced. [main] */
int copy_disk(Image *source, Image *target, const CopyOptions *options, CopyFailure *failure);

#endif
