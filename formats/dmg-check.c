/*
 * dmg: check. The format has no tables that could contradict each other; it has checksums.
 *
 *     of the data fork    the bytes as they are stored
 *     of each table       the bytes of the disk that it unpacks to, zeroes among them
 *     the master          the checksums of the tables, one after the other
 *
 * A table with ignored chunks is not compared: what its writer took for their bytes, nobody says. Nor is one of a kind
 * other than CRC-32, or one that begins before the end of the one before it: no byte is unpacked twice, whatever an
 * image claims. Chunks that cannot be unpacked count as corrupt by themselves. Nothing can be mended.
 */
#include <errno.h>
#include <inttypes.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/dmg.h"

#define PIECE (1u << 20) /* bytes in one read of what is not compressed */

typedef struct Check {
    Image *image;
    const DmgState *state;
    CheckResult *result;
    uint8_t *buffer; /* for the largest chunk */
    uint64_t end;    /* of the tables so far, on the disk */
} Check;

/* crc, with so many zeroes behind: in steps of the binary digits of length, for it may be any number. */
static uint32_t add_zeroes(uint32_t crc, uint64_t length)
{
    static const uint8_t zero;
    uint32_t power = crc32(0, &zero, 1); /* of 2^n zeroes */
    for (uint64_t n = 1; length > 0; length >>= 1, n <<= 1) {
        if (length & 1) {
            crc = crc32_combine64(crc, power, (off64_t)n);
        }
        power = crc32_combine64(power, power, (off64_t)n);
    }
    return crc;
}

static void corrupt(Check *check, const char *what, uint32_t found, uint32_t wanted)
{
    check_result_say(check->result, "%s: the checksum of %s is %08x: should be %08x",
                     check->image->path, what, found, wanted);
    check_result_corruption(check->result, CHECK_REPORT_ONLY);
}

/* ---- the data fork -------------------------------------------------------------------------- */

static int check_fork(Check *check)
{
    const DmgState *s = check->state;
    Store *store = check->image->store;
    uint32_t crc = 0;
    if (!s->fork_checksum.known) {
        return 0;
    }
    if (!range_within(s->fork, s->fork_length, store_size(store) - DMG_TRAILER_SIZE)) {
        check_result_say(check->result,
                         "%s: the data fork has %" PRIu64 " bytes at %" PRIu64
                         ": must end before the trailer",
                         check->image->path, s->fork_length, s->fork);
        check_result_corruption(check->result, CHECK_REPORT_ONLY);
        return 0;
    }
    for (uint64_t at = 0, n; at < s->fork_length; at += n) {
        n = min_u64(PIECE, s->fork_length - at);
        int r = store_read(store, check->buffer, n, s->fork + at);
        if (r < 0) {
            return r;
        }
        crc = crc32(crc, check->buffer, n);
    }
    if (crc != s->fork_checksum.crc) {
        corrupt(check, "the data fork", crc, s->fork_checksum.crc);
    }
    return 0;
}

/* ---- tables --------------------------------------------------------------------------------- */

/* Adds what lies in the chunk from offset to end. */
static int add_chunk(Check *check, const DmgChunk *chunk, uint64_t offset, uint64_t end,
                     uint32_t *crc)
{
    uint64_t piece = chunk->type == DMG_RAW ? PIECE : chunk->length;
    int r = 0;
    for (uint64_t n; r == 0 && offset < end; offset += n) {
        n = min_u64(piece, end - offset);
        r = chain_read(check->image, check->buffer, n, offset);
        *crc = r == 0 ? crc32(*crc, check->buffer, n) : *crc;
    }
    return r;
}

static int table_crc(Check *check, const DmgTable *table, uint32_t *crc)
{
    uint64_t offset = table->offset, end = offset + table->length;
    int r = 0;
    *crc = 0;
    while (r == 0 && offset < end) {
        const DmgChunk *chunk = dmg_chunk_at(check->state, offset);
        uint64_t data = chunk ? min_u64(end, max_u64(chunk->offset, offset)) : end;
        *crc = add_zeroes(*crc, data - offset);
        offset = data;
        if (offset < end) {
            uint64_t stop = min_u64(end, chunk->offset + chunk->length);
            r = add_chunk(check, chunk, offset, stop, crc);
            offset = stop;
        }
    }
    return r;
}

static int check_table(Check *check, unsigned number)
{
    const DmgTable *table = &g_array_index(check->state->tables, DmgTable, number);
    uint32_t crc;
    if (!table->checksum.known || table->ignores || table->offset < check->end ||
        !range_within(table->offset, table->length, check->image->size)) {
        return 0;
    }
    check->end = table->offset + table->length;
    int r = table_crc(check, table, &crc);
    if (r == -EIO) {
        check_result_say(check->result, "%s: table %u has a chunk that cannot be unpacked",
                         check->image->path, number);
        check_result_corruption(check->result, CHECK_REPORT_ONLY);
        return 0;
    }
    if (r == 0 && crc != table->checksum.crc) {
        g_autofree char *what = g_strdup_printf("table %u", number);
        corrupt(check, what, crc, table->checksum.crc);
    }
    return r;
}

static void check_master(Check *check)
{
    const DmgState *s = check->state;
    uint32_t crc = 0;
    for (guint i = 0; i < s->tables->len; i++) {
        const DmgChecksum *checksum = &g_array_index(s->tables, DmgTable, i).checksum;
        uint8_t bytes[4];
        store_be32(bytes, checksum->crc);
        crc = checksum->known ? crc32(crc, bytes, sizeof bytes) : crc;
    }
    if (s->master_checksum.known && crc != s->master_checksum.crc) {
        corrupt(check, "the tables", crc, s->master_checksum.crc);
    }
}

/* ---- all ------------------------------------------------------------------------------------ */

static uint64_t largest_unit(const DmgState *s)
{
    uint64_t largest = PIECE;
    for (guint i = 0; i < s->chunks->len; i++) {
        const DmgChunk *chunk = &g_array_index(s->chunks, DmgChunk, i);
        largest = chunk->type == DMG_RAW ? largest : max_u64(largest, chunk->length);
    }
    return largest;
}

bool dmg_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    Check check = {.image = image, .state = image->state, .result = result};
    check.buffer = g_try_malloc(largest_unit(check.state));
    int r = check.buffer ? check_fork(&check) : -ENOMEM;
    for (guint i = 0; r == 0 && i < check.state->tables->len; i++) {
        r = check_table(&check, i);
    }
    check_master(&check);
    g_free(check.buffer);
    result->image_end_offset = store_size(image->store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot check", image->path);
}
