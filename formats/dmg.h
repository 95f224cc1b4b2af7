/*
 * dmg, shared between its files: what a chunk is, and how one is unpacked.
 */
#ifndef FORMATS_DMG_H
#define FORMATS_DMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

/* Turns stored bytes of a chunk into exactly `length` bytes. Memory only. 0, -EIO or -ENOMEM. [any] */
int dmg_unpack(DmgType type, const uint8_t *stored, size_t stored_length, uint8_t *out,
               size_t length);

#endif
