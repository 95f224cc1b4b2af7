/*
 * CRC-32C (Castagnoli), as iSCSI and several image formats use it. [any]
 */
#ifndef BASE_CRC32C_H
#define BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Goes on from crc, which is 0 at the start. */
uint32_t crc32c(uint32_t crc, const void *bytes, size_t length);

/* The same on a processor that has no instruction for it; for its test. */
uint32_t crc32c_by_tables(uint32_t crc, const void *bytes, size_t length);

#endif
