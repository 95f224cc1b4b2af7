/*
 * The persistent exception store of the kernel's dm-snapshot target: which chunks of the origin
 * were written to, and where in the store their new contents lie.
 *
 *      chunk 0     header: u32 magic 0x70416e53, u32 valid, u32 version 1, u32 sectors a chunk
 *      chunk 1     area 0: E records of u64 origin chunk, u64 store chunk; E = chunk bytes / 16
 *      E chunks    their contents; then area 1, its contents, and so on
 *
 * All little-endian. Area n is chunk 1 + (E + 1) n. A record with store chunk 0 ends the list. The
 * kernel zeroes area n + 1 before it fills area n, writes contents before the record, and records
 * in the order in which it took chunks: what is on the disk can be read at any time, and is the
 * disk at one moment. A store whose first chunk is zero has not been used yet.
 *
 * Reading and writing here is for tools and tests; no kernel is needed. [pool]/[main]: they block
 * as the store does.
 */
#ifndef FASTPATH_EXCEPTIONS_H
#define FASTPATH_EXCEPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "store/store.h"

#define EXCEPTIONS_CHUNK_MIN 512u       /* bytes; what the kernel takes too */
#define EXCEPTIONS_CHUNK_MAX (8u << 20) /* bytes; the kernel takes more, nobody uses it */
#define EXCEPTIONS_MAX       (1u << 27) /* in one store: 2 GiB of memory */

typedef struct Exception {
    uint64_t origin; /* chunk number on the disk */
    uint64_t store;  /* chunk number in the store */
} Exception;

typedef struct Exceptions {
    uint32_t chunk;   /* bytes, a power of two; 0: the store has not been used yet */
    bool valid;       /* false: the kernel gave the store up; what it holds is of that moment */
    Exception *items; /* ascending by origin, none twice; g_free */
    uint64_t count;
    uint64_t chunks_used; /* chunks of the store in use: header, areas and contents */
} Exceptions;

/* Reads the store that begins at byte base of store and ends with it. disk_size: bytes of the
 * origin; every number is checked against it and against the size of the store. EUCLEAN: damaged,
 * or cut short; nothing is allocated then. */
bool exceptions_read(Store *store, uint64_t base, uint64_t disk_size, Exceptions *exceptions,
                     GError **error);
void exceptions_clear(Exceptions *exceptions);

/* Where the contents of a store chunk lie, in bytes of the store file. */
static inline uint64_t exceptions_offset(const Exceptions *exceptions, uint64_t base,
                                         uint64_t store_chunk)
{
    return base + store_chunk * exceptions->chunk;
}

/* The largest size, at most size, that a store should have: the kernel checks that there is room for
 * contents, but takes for granted that the area after a full one is there; a store that ends just
 * before an area is given up when it is full, instead of refusing writes. */
uint64_t exceptions_fit_size(uint64_t size, uint32_t chunk);

/* Bytes that a store needs so that every chunk of a disk can be written: it never overflows. */
uint64_t exceptions_full_size(uint64_t disk_size, uint32_t chunk);

/* Writes stores as the kernel does. */
typedef struct ExceptionWriter {
    Store *store; /* not owned */
    uint64_t base;
    uint32_t chunk;
    uint64_t count; /* records so far */
} ExceptionWriter;

/* A new, empty, valid store in place of what was there. 0 or -errno. */
int exceptions_writer_init(ExceptionWriter *writer, Store *store, uint64_t base, uint32_t chunk);
/* Adds one chunk (writer->chunk bytes of contents) of the origin. Durable after store_sync. */
int exceptions_append(ExceptionWriter *writer, uint64_t origin_chunk, const void *contents);
/* Gives the store up, as the kernel does when it can no longer write to it. */
int exceptions_invalidate(ExceptionWriter *writer);

#endif
