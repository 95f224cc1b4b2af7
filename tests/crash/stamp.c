/*
 * Stamps of cells, and the list of findings.
 *
 *     cell number (32) | value (32) | hash of both (64)        all little endian; value 0 is sixteen zero bytes
 */
#include "model.h"

#include "base/bytes.h"
#include "tests/lib/random.h"

#define FINDINGS_LINES 12

static uint64_t stamp_hash(uint64_t word)
{
    return random_mix(word ^ 0xc0b1d5a7e3f49821u) | 1;
}

void stamp_fill(uint8_t *buffer, uint64_t offset, uint64_t length, uint32_t value)
{
    for (uint64_t at = 0; at < length; at += CELL) {
        uint64_t word = (offset + at) / CELL | (uint64_t)value << 32;
        store_le64(buffer + at, value ? word : 0);
        store_le64(buffer + at + 8, value ? stamp_hash(word) : 0);
    }
}

StampKind stamp_read(const uint8_t *bytes, uint64_t cell, uint32_t *value)
{
    uint64_t word = load_le64(bytes);
    uint64_t hash = load_le64(bytes + 8);
    *value = word >> 32;
    if (word == 0 && hash == 0) {
        return STAMP_OK;
    }
    if (hash != stamp_hash(word) || *value == 0) {
        return STAMP_GARBAGE;
    }
    return (uint32_t)word == cell ? STAMP_OK : STAMP_FOREIGN;
}

void findings_init(Findings *findings)
{
    *findings = (Findings){.text = g_string_new(NULL)};
}

void findings_clear(Findings *findings)
{
    g_string_free(findings->text, TRUE);
}

uint64_t findings_count(const Findings *findings)
{
    return findings->lost + findings->foreign + findings->garbage + findings->corrupt;
}

void findings_say(Findings *findings, const char *format, ...)
{
    if (findings->lines++ < FINDINGS_LINES) {
        va_list args;
        va_start(args, format);
        g_string_append_vprintf(findings->text, format, args);
        va_end(args);
        g_string_append_c(findings->text, '\n');
    }
}
