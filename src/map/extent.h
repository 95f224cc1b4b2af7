/*
 * Extents: the answer to "where are these bytes?", and lists of them.
 *
 * A list is ascending and gapless by construction: each extent starts where the one before it
 * ended. Pure; a list belongs to one thread at a time.
 */
#ifndef MAP_EXTENT_H
#define MAP_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Store Store;
typedef struct Image Image;

typedef enum {
    EXTENT_UNALLOCATED, /* not in this image: ask the backing, or zeroes if there is none */
    EXTENT_ZERO,        /* reads as zeroes */
    EXTENT_DATA,        /* plain bytes at host_offset of store */
    EXTENT_ENCODED, /* compressed: stored_length bytes at host_offset, which image->format->decode
                       turns into a unit of unit_length bytes; the extent begins unit_offset bytes
                       into that unit */
} ExtentType;

typedef enum {
    EXTENT_WRITABLE = 1 << 0, /* DATA: may be overwritten in place, no metadata changes */
    EXTENT_NEW = 1 << 1,      /* DATA: reserved by allocate(); map() does not show it yet */
    EXTENT_FRESH = 1 << 2,  /* NEW: host space known to read as zeroes; edges need not be written */
    EXTENT_SPARSE = 1 << 3, /* DATA: the host file may have holes here: a report may say zero */
    EXTENT_HAS_HOST = 1 << 4, /* ZERO: host space is kept at host_offset of store (preallocated) */
} ExtentFlags;

typedef struct Extent {
    uint64_t offset; /* guest offset, bytes */
    uint64_t length; /* bytes, never 0 */
    uint64_t host_offset;
    Store *store; /* not owned: the image holds it open */
    Image *image; /* the image of the chain that answered; not owned */
    uint32_t stored_length;
    uint32_t unit_offset;
    uint32_t unit_length;
    uint16_t depth; /* 0 is the top of the chain; image_map leaves it 0, the chain walk fills it */
    uint8_t type;   /* ExtentType */
    uint8_t flags;  /* ExtentFlags */
} Extent;

#define EXTENT_LIST_INLINE 4

typedef struct ExtentList {
    Extent *items; /* room or memory of its own */
    unsigned count;
    unsigned capacity;
    Extent room[EXTENT_LIST_INLINE];
} ExtentList;

void extent_list_init(ExtentList *list);
/* Frees memory; the list is empty and usable afterwards. */
void extent_list_clear(ExtentList *list);
void extent_list_reset(ExtentList *list); /* empties, keeps memory */

/* Appends; the extent must begin where the list ends (asserted). Merged with the last one where
 * that says the same. Memory: aborts when the heap is gone, as GLib does; callers bound the number
 * of extents. */
void extent_list_add(ExtentList *list, const Extent *extent);
void extent_list_add_zero(ExtentList *list, uint64_t offset, uint64_t length, Image *image);

/* The guest offset where the last one ends; 0 when empty. */
uint64_t extent_list_end(const ExtentList *list);

/* One past the end of an extent. */
static inline uint64_t extent_end(const Extent *extent)
{
    return extent->offset + extent->length;
}

/* Cuts the extent to the part that lies in [offset, offset + length); false when there is none. */
bool extent_clip(Extent *extent, uint64_t offset, uint64_t length);

/* True when b goes on where a ends and both say the same, so that one extent can say both. */
bool extent_mergeable(const Extent *a, const Extent *b);

/* True when reading the extent gives zeroes for sure (UNALLOCATED is asked of a whole chain only:
 * zero). */
static inline bool extent_is_zero(const Extent *extent)
{
    return extent->type == EXTENT_ZERO || extent->type == EXTENT_UNALLOCATED;
}

#endif
