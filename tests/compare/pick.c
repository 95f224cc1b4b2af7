/*
 * Picks random commands. Ranges like the borders of clusters, the end of the disk, and each other.
 */
#include <glib.h>
#include <string.h>

#include "sequence.h"

#define LENGTH_MAX (4u << 20)

static void pick_range(Sequence *sequence, Op *op)
{
    Random *random = &sequence->random;
    uint64_t size = sequence->size, cluster = sequence->config->cluster;
    uint64_t clusters = size / cluster;
    uint64_t kind = random_below(random, 100);
    if (kind < 30) { /* anywhere, any length, unaligned */
        op->offset = random_below(random, size);
        op->length = random_between(random, 1, 8000);
    } else if (kind < 55) { /* sectors */
        op->offset = random_below(random, size / 512) * 512;
        op->length = random_between(random, 1, 32) * 512;
    } else if (kind < 75) { /* whole clusters */
        op->offset = random_below(random, clusters) * cluster;
        op->length = random_between(random, 1, 8) * cluster;
    } else if (kind < 90) { /* across a border */
        op->offset = random_between(random, 1, clusters) * cluster - random_between(random, 1, 500);
        op->length = random_between(random, 1, 1000);
    } else if (kind < 95) { /* the end of the disk */
        op->offset = size - random_between(random, 1, cluster);
        op->length = cluster;
    } else { /* large */
        op->offset = random_below(random, size);
        op->length = random_between(random, 1, size / 4);
    }
}

static void clip(Op *op, uint64_t window, uint64_t window_length)
{
    if (op->offset < window || op->offset >= window + window_length) {
        op->offset = window + op->offset % window_length;
    }
    op->length = MIN(op->length, LENGTH_MAX);
    op->length = MIN(op->length, window + window_length - op->offset);
}

static OpKind pick_kind(Sequence *sequence)
{
    static const struct {
        OpKind kind;
        unsigned percent;
    } table[] = {{OP_READ, 22}, {OP_WRITE, 42}, {OP_TRIM, 11}, {OP_ZERO, 13},
                 {OP_FLUSH, 5}, {OP_CACHE, 2},  {OP_STATUS, 5}};
    uint64_t left = random_below(&sequence->random, 100);
    unsigned i = 0;
    while (left >= table[i].percent) {
        left -= table[i++].percent;
    }
    return table[i].kind;
}

static uint32_t pick_flags(Sequence *sequence, const Op *op)
{
    Random *random = &sequence->random;
    struct nbd_handle *handle = sequence->clients->handles[op->connection];
    uint32_t flags = 0;
    bool changes = op->kind == OP_WRITE || op->kind == OP_TRIM || op->kind == OP_ZERO;
    if (changes && random_percent(random, 10) && nbd_can_fua(handle) == 1) {
        flags |= LIBNBD_CMD_FLAG_FUA;
    }
    if (op->kind == OP_ZERO && random_percent(random, 40)) {
        flags |= LIBNBD_CMD_FLAG_NO_HOLE;
    }
    if (op->kind == OP_ZERO && random_percent(random, 20) && nbd_can_fast_zero(handle) == 1) {
        flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
    }
    if (op->kind == OP_READ && random_percent(random, 20) && nbd_can_df(handle) == 1) {
        flags |= LIBNBD_CMD_FLAG_DF;
    }
    if (op->kind == OP_STATUS && random_percent(random, 30)) {
        flags |= LIBNBD_CMD_FLAG_REQ_ONE;
    }
    return flags;
}

/* The eight bytes at offset 8 * index: those of the random word, each a little more with every step. */
static uint64_t pattern(uint64_t word, uint64_t index)
{
    const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
    uint64_t more = (uint8_t)(index * 31 + (index >> 9)) * (uint64_t)0x0101010101010101u;
    return ((word & low) + (more & low)) ^
           ((word ^ more) & ~low); /* eight sums, no carry between them */
}

/* Bytes that no other write has at this place: from a random word and the offset. One in sixteen
 * writes zeroes. */
static void fill_bytes(Sequence *sequence, Op *op)
{
    uint64_t word = random_next(&sequence->random);
    if (word % 16 == 0) {
        memset(op->buffer, 0, op->length);
        return;
    }
    uint64_t at = op->offset, end = op->offset + op->length;
    while (at < end) {
        uint64_t eight = pattern(word, at / 8), skipped = at % 8;
        uint64_t length = MIN(8 - skipped, end - at);
        memcpy(op->buffer + (at - op->offset), (uint8_t *)&eight + skipped, length);
        at += length;
    }
}

void sequence_pick(Sequence *sequence, Op *op, uint64_t window, uint64_t window_length)
{
    unsigned connection = (unsigned)random_below(&sequence->random, sequence->clients->count);
    struct nbd_handle *handle = sequence->clients->handles[connection];
    g_free(op->buffer);
    memset(op, 0, sizeof *op);
    op->connection = connection;
    op->kind = pick_kind(sequence);
    if ((op->kind == OP_STATUS && !sequence->clients->structured[connection]) ||
        (op->kind == OP_CACHE && nbd_can_cache(handle) != 1)) {
        op->kind = OP_READ;
    }
    op->flags = pick_flags(sequence, op);
    if (op->kind == OP_FLUSH) {
        return;
    }
    pick_range(sequence, op);
    clip(op, window, window_length);
    if (op->kind == OP_READ || op->kind == OP_WRITE) {
        op->buffer = g_malloc(op->length);
    }
    if (op->kind == OP_WRITE) {
        fill_bytes(sequence, op);
    }
}
