/*
 * The writing side of the bulk mover: what a piece of a disk shall read as, into an image.
 *
 * Many threads write at once, each another piece; pieces are whole allocation units. The image's
 * format is called by one of them at a time. Nothing is durable before writer_finish.
 */
#ifndef TOOLS_WRITER_H
#define TOOLS_WRITER_H

#include <glib.h>

#include "map/image.h"

typedef struct Writer Writer;

typedef enum {
    PART_KEEP, /* reads already as it shall */
    PART_DATA,
    PART_ENCODED, /* data, and its units shall be stored encoded where they get smaller by it */
    PART_ZERO,    /* shall read as zeroes */
} PartKind;

/* What is to be done with a range. Parts of a piece are in order, without gaps. */
typedef struct Part {
    uint64_t offset, length;
    PartKind kind;
} Part;

/* Arrays of Part. */
GArray *parts_new(void);
/* Appends, joined with the last part where that says the same; length may be 0. */
void parts_add(GArray *parts, uint64_t offset, uint64_t length, PartKind kind);
/* The same for data that may hold zeroes: those become PART_ZERO, in blocks of `grain` bytes of the
 * disk; grain 0: not looked for. kind: what is left becomes that. */
void parts_add_data(GArray *parts, uint64_t offset, uint64_t length, const uint8_t *bytes,
                    uint64_t grain, PartKind kind);
/* A copy of parts in which the units that read the same in a and b are kept. a and b: the bytes of all
 * of the parts. Free the copy. */
GArray *parts_without_equal(const GArray *parts, uint64_t unit, const uint8_t *a, const uint8_t *b);
/* Whether all parts say `kind`. */
bool parts_all(const GArray *parts, PartKind kind);

typedef struct WriterOptions {
    bool blank;        /* what nobody has written yet reads as zeroes */
    bool over_backing; /* what the image does not have may read as anything */
    /* Space is taken for no more than is written, else for whole units of the largest kind. The image is new: none of its
     * units is compressed or shared. For encrypted ones, in which all that is taken must be written, zeroes too. */
    bool fine;
    unsigned threads; /* that write at once, at most */
    uint64_t piece;   /* bytes, at least the image's allocation unit */
} WriterOptions;

/* The image is open for writing; not owned. */
Writer *writer_new(Image *image, const WriterOptions *options);
void writer_free(Writer *writer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Writer, writer_free)

/* bytes: what the range reads as afterwards, all of it. slot: as of bulk_run. 0 or -errno. */
int writer_write(Writer *writer, unsigned slot, uint64_t offset, uint64_t length,
                 const uint8_t *bytes, const GArray *parts);

/* For who reads a chain that the image is part of while others write it: its map does not change in
 * between. */
void writer_hold_map(Writer *writer);
void writer_release_map(Writer *writer);

#endif
