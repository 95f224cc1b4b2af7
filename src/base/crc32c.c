/*
 * CRC-32C, eight bytes a step: by the processor's own instruction where it has one, else by tables.
 *
 * tables[0] is the usual table of a byte; tables[k] says what that byte does k bytes further on, so
 * that the eight look-ups of a step do not wait for each other.
 */
#include "base/crc32c.h"

#include <pthread.h>

#include "base/bytes.h"

#define POLYNOMIAL 0x82f63b78u /* with its bits in reverse order */

static uint32_t tables[8][256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void make_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        }
        tables[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++) {
        for (int k = 1; k < 8; k++) {
            tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 0xff];
        }
    }
}

uint32_t crc32c_by_tables(uint32_t crc, const void *bytes, size_t length)
{
    const uint8_t *at = bytes;
    pthread_once(&tables_once, make_tables);
    crc = ~crc;
    for (; length >= 8; at += 8, length -= 8) {
        uint64_t word = load_le64(at) ^ crc;
        crc = 0;
        for (int k = 0; k < 8; k++) {
            crc ^= tables[7 - k][word >> (8 * k) & 0xff];
        }
    }
    for (; length > 0; at++, length--) {
        crc = crc >> 8 ^ tables[0][(crc ^ *at) & 0xff];
    }
    return ~crc;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const uint8_t *at,
                                                                 size_t length)
{
    crc = ~crc;
    for (; length >= 8; at += 8, length -= 8) {
        crc = __builtin_ia32_crc32di(crc, load_le64(at));
    }
    for (; length > 0; at++, length--) {
        crc = __builtin_ia32_crc32qi(crc, *at);
    }
    return ~crc;
}

uint32_t crc32c(uint32_t crc, const void *bytes, size_t length)
{
    return __builtin_cpu_supports("sse4.2") ? by_instruction(crc, bytes, length)
                                            : crc32c_by_tables(crc, bytes, length);
}
#else
uint32_t crc32c(uint32_t crc, const void *bytes, size_t length)
{
    return crc32c_by_tables(crc, bytes, length);
}
#endif
