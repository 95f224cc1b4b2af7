/*
 * Writes what a disk reads as, as an image that is made from its front to its end (FormatStreaming):
 * the work of convert into a pipe.
 */
#ifndef TOOLS_STREAM_H
#define TOOLS_STREAM_H

#include "formats/format.h"
#include "tools/copy.h"

typedef struct StreamOptions {
    uint64_t source_offset; /* what is at 0 of the image */
    uint64_t length;        /* of the disk, bytes */
    bool all;               /* units of zeroes are stored, too */
    unsigned threads;
    uint64_t rate; /* as of bulk_run */
    /* What cannot be read of the source is zeroes, noted here; NULL: it is an error. */
    Salvage *salvage;
    int (*write)(void *sink, const void *bytes, size_t n); /* what comes next; 0 or -errno */
    void *sink;
    bool (*progress)(void *context, uint64_t done, uint64_t total); /* as of bulk_run */
    void *context;
} StreamOptions;

/* 0 or -errno (-EINTR: progress said so). The stream has begun, and is not ended when this fails. [main] */
int stream_disk(Image *source, const FormatStreaming *format, FormatStream *stream,
                const StreamOptions *options, CopyFailure *failure);

#endif
