/*
 * dmg, shared between its files: what an open image knows, and how a chunk is unpacked.
 */
#ifndef FORMATS_DMG_H
#define FORMATS_DMG_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "formats/format.h"

#define DMG_SECTOR       512u
#define DMG_TRAILER_SIZE 512u

typedef enum {
    DMG_ZERO = 0,
    DMG_RAW = 1,
    DMG_IGNORE = 2, /* nobody uses it: zeroes here */
    DMG_COMMENT = 0x7ffffffe,
    DMG_ADC = (int)0x80000004,
    DMG_ZLIB = (int)0x80000005,
    DMG_BZIP2 = (int)0x80000006,
    DMG_LZFSE = (int)0x80000007,
    DMG_XZ = (int)0x80000008,
    DMG_END = (int)0xffffffff,
} DmgType;

typedef struct DmgChunk {
    uint64_t offset, length; /* guest bytes */
    uint64_t host_offset, stored_length;
    DmgType type;
} DmgChunk;

/* CRC-32 is the only kind that is known. */
typedef struct DmgChecksum {
    bool known;
    uint32_t crc;
} DmgChecksum;

typedef struct DmgTable {
    uint64_t offset, length; /* guest bytes */
    bool ignores;            /* it has chunks that may hold anything */
    DmgChecksum checksum;    /* of the bytes of the disk */
} DmgTable;

typedef struct DmgState {
    uint64_t fork, fork_length; /* the data fork */
    GArray *chunks;             /* DmgChunk, of those that hold data; in order */
    GArray *tables;             /* DmgTable, in the order of the property list */
    DmgChecksum fork_checksum, master_checksum;
} DmgState;

/* The chunk of data with offset in it or, where there is none, the next one; NULL behind the last. */
const DmgChunk *dmg_chunk_at(const DmgState *s, uint64_t offset);

/* dmg-check.c: the three kinds of checksums. */
bool dmg_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

/* Turns stored bytes of a chunk into exactly `length` bytes. Memory only. 0, -EIO or -ENOMEM. [any] */
int dmg_unpack(DmgType type, const uint8_t *stored, size_t stored_length, uint8_t *out,
               size_t length);

#endif
