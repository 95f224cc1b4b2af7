/*
 * Runs a sequence in one of two ways.
 *
 * Distinct: up to `depth` commands in flight whose ranges do not meet (two that only read may).
 * Each result can then be held against the model byte by byte.
 *
 * Overlapping: rounds of commands that are all in flight at once, on ranges that meet. After a
 * round, every sector (or the part of one) which the same commands have covered must hold, as a
 * whole, what one of them put there; and nothing else may have changed. What was found becomes the
 * model.
 */
#include "sequence.h"

#include <errno.h>
#include <glib.h>
#include <stdio.h>
#include <string.h>

#define VERIFY_STEP (1u << 20)
#define SECTOR      512u

static bool all_zero(const uint8_t *bytes, uint64_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

static bool changes(const Op *op)
{
    return op->kind == OP_WRITE || op->kind == OP_TRIM || op->kind == OP_ZERO;
}

static bool meet(const Op *a, const Op *b)
{
    return a->offset < b->offset + b->length && b->offset < a->offset + a->length;
}

/* One error is allowed: a fast zero that would not be fast. It may have begun, and then is no more
 * than a trim. */
static void check_error(Op *op)
{
    if (op->error == ENOTSUP && (op->flags & LIBNBD_CMD_FLAG_FAST_ZERO)) {
        op->kind = OP_TRIM;
    } else if (op->error != 0) {
        die("%s: %s", op_text(op), strerror(op->error));
    }
}

static void check_equal(const Op *op, const uint8_t *found, const uint8_t *wanted)
{
    if (memcmp(found, wanted, op->length) == 0) {
        return;
    }
    uint64_t i = 0;
    while (found[i] == wanted[i]) {
        i++;
    }
    die("%s: byte 0x%llx is 0x%02x, must be 0x%02x", op_text(op),
        (unsigned long long)(op->offset + i), found[i], wanted[i]);
}

/* Every byte is what it was, or zero. */
static void check_trimmed(const Sequence *sequence, const Op *op)
{
    for (uint64_t i = 0; i < op->length; i++) {
        uint8_t before = sequence->model[op->offset + i];
        if (op->buffer[i] != 0 && op->buffer[i] != before) {
            die("%s: byte 0x%llx is 0x%02x after a trim, must be 0x%02x or zero", op_text(op),
                (unsigned long long)(op->offset + i), op->buffer[i], before);
        }
    }
}

static void check_status(const Sequence *sequence, const Op *op)
{
    uint64_t at = op->offset;
    if (op->status_count < 2) {
        die("%s: no extents", op_text(op));
    }
    for (size_t i = 0; i + 1 < op->status_count && at < op->offset + op->length; i += 2) {
        uint64_t length = MIN(op->status[i], sequence->size - at);
        if (length == 0) {
            die("%s: an extent of no length", op_text(op));
        }
        /* A last extent may reach beyond the range that was asked for, where others may be writing. */
        uint64_t asked = MIN(length, op->offset + op->length - at);
        if ((op->status[i + 1] & LIBNBD_STATE_ZERO) && !all_zero(sequence->model + at, asked)) {
            die("%s: 0x%llx+0x%llx is said to be zero and is not", op_text(op),
                (unsigned long long)at, (unsigned long long)asked);
        }
        at += length;
    }
}

/* ---- distinct ranges ---- */

static bool is_free(const Sequence *sequence, const Op *candidate)
{
    for (unsigned i = 0; i < sequence->depth; i++) {
        const Op *op = &sequence->slots[i];
        if (op != candidate && op->in_flight && meet(op, candidate) &&
            (changes(op) || changes(candidate) || op->reads_back)) {
            return false;
        }
    }
    return true;
}

/* Takes what a finished command showed or did into account; true when the slot is free again. */
static bool settle(Sequence *sequence, Op *op)
{
    uint8_t *model = sequence->model + op->offset;
    check_error(op);
    switch (op->kind) {
    case OP_READ:
        if (op->reads_back) {
            check_trimmed(sequence, op);
            memcpy(model, op->buffer, op->length);
        } else {
            check_equal(op, op->buffer, model);
        }
        break;
    case OP_WRITE:
        memcpy(model, op->buffer, op->length);
        break;
    case OP_ZERO:
        memset(model, 0, op->length);
        break;
    case OP_TRIM:
        op->kind = OP_READ;
        op->flags = 0;
        op->reads_back = true;
        op->buffer = g_malloc(op->length);
        clients_submit(sequence->clients, op);
        return false;
    case OP_STATUS:
        check_status(sequence, op);
        break;
    default:
        break;
    }
    op->in_flight = false;
    return true;
}

/* Puts a new command into the slot, when one is found that meets no other. */
static bool try_start(Sequence *sequence, Op *op)
{
    for (unsigned attempt = 0; attempt < 8; attempt++) {
        sequence_pick(sequence, op, 0, sequence->size);
        if (is_free(sequence, op)) {
            clients_submit(sequence->clients, op);
            return true;
        }
    }
    return false;
}

static void run_distinct(Sequence *sequence)
{
    unsigned started = 0, running = 0;
    while (started < sequence->ops || running > 0) {
        for (unsigned i = 0; i < sequence->depth && started < sequence->ops; i++) {
            if (!sequence->slots[i].in_flight && try_start(sequence, &sequence->slots[i])) {
                started++;
                running++;
            }
        }
        if (running > 0) {
            clients_poll(sequence->clients);
        }
        for (unsigned i = 0; i < sequence->depth; i++) {
            Op *op = &sequence->slots[i];
            if (op->in_flight && op->finished && settle(sequence, op)) {
                running--;
            }
        }
    }
}

/* ---- overlapping ranges ---- */

/* Whether [begin, begin + length), found to hold bytes, may be the work of op. */
static bool may_be_from(const Sequence *sequence, const Op *op, uint64_t begin, uint64_t length,
                        const uint8_t *bytes, bool only_trims)
{
    if (op->kind == OP_WRITE) {
        return memcmp(op->buffer + (begin - op->offset), bytes, length) == 0;
    }
    return all_zero(bytes, length) ||
           (only_trims && memcmp(sequence->model + begin, bytes, length) == 0);
}

static void print_round(const Sequence *sequence, const Op *piece)
{
    for (unsigned i = 0; i < sequence->depth; i++) {
        const Op *op = &sequence->slots[i];
        if (changes(op) && meet(op, piece)) {
            uint8_t first = op->kind == OP_WRITE ? op->buffer[piece->offset - op->offset] : 0;
            fprintf(stderr, "compare: in flight: %s, byte 0x%02x\n", op_text(op), first);
        }
    }
    fprintf(stderr, "compare: before: byte 0x%02x\n", sequence->model[piece->offset]);
}

/* bytes: what the piece holds. Every command that changes covers all of the piece or none. A read
 * during the round may also see what was there before, and each byte from another time. */
static void check_piece(const Sequence *sequence, uint64_t begin, uint64_t length,
                        const uint8_t *bytes, bool during)
{
    bool only_trims = true, covered = false, found = false;
    Op piece = {.kind = OP_READ, .offset = begin, .length = length};
    for (unsigned i = 0; i < sequence->depth; i++) {
        const Op *op = &sequence->slots[i];
        if (changes(op) && meet(op, &piece)) {
            covered = true;
            only_trims = only_trims && op->kind == OP_TRIM;
        }
    }
    for (unsigned i = 0; i < sequence->depth && !found; i++) {
        const Op *op = &sequence->slots[i];
        found = changes(op) && meet(op, &piece) &&
                may_be_from(sequence, op, begin, length, bytes, only_trims || during);
    }
    if ((!covered || during) && !found) {
        found = memcmp(sequence->model + begin, bytes, length) == 0;
    }
    if (!found) {
        print_round(sequence, &piece);
        die("0x%llx+0x%llx holds what none of the commands in flight put there (0x%02x ...)%s",
            (unsigned long long)begin, (unsigned long long)length, bytes[0],
            during ? ", seen by a read" : "");
    }
}

/* Where the set of commands that cover `at` changes next, at most a sector further. */
static uint64_t piece_end(const Sequence *sequence, uint64_t at, uint64_t end)
{
    end = MIN(end, (at / SECTOR + 1) * SECTOR);
    for (unsigned i = 0; i < sequence->depth; i++) {
        const Op *op = &sequence->slots[i];
        if (!changes(op)) {
            continue;
        }
        if (op->offset > at) {
            end = MIN(end, op->offset);
        }
        if (op->offset + op->length > at) {
            end = MIN(end, op->offset + op->length);
        }
    }
    return end;
}

static void check_round_read(const Sequence *sequence, const Op *read)
{
    uint64_t end = read->offset + read->length;
    for (uint64_t at = read->offset; at < end;) {
        uint64_t next = piece_end(sequence, at, end);
        const uint8_t *bytes = read->buffer + (at - read->offset);
        if (memcmp(sequence->model + at, bytes, next - at) != 0) {
            for (uint64_t i = at; i < next; i++) {
                check_piece(sequence, i, 1, bytes + (i - at), true);
            }
        }
        at = next;
    }
}

/* Reads all that the round may have changed, checks it, makes it the model. */
static void check_round(Sequence *sequence)
{
    Op read = {.kind = OP_READ, .offset = UINT64_MAX};
    uint64_t end = 0;
    for (unsigned i = 0; i < sequence->depth; i++) {
        const Op *op = &sequence->slots[i];
        if (changes(op) && op->length > 0) {
            read.offset = MIN(read.offset, op->offset);
            end = MAX(end, op->offset + op->length);
        }
    }
    if (end == 0) {
        return;
    }
    read.length = end - read.offset;
    g_autofree uint8_t *bytes = g_malloc(read.length);
    read.buffer = bytes;
    clients_run(sequence->clients, &read);
    check_error(&read);
    for (uint64_t at = read.offset; at < end;) {
        uint64_t next = piece_end(sequence, at, end);
        check_piece(sequence, at, next - at, bytes + (at - read.offset), false);
        at = next;
    }
    memcpy(sequence->model + read.offset, bytes, read.length);
}

static void run_round(Sequence *sequence)
{
    uint64_t size = sequence->size;
    uint64_t window = MIN(size, MAX(4 * (uint64_t)sequence->config->cluster, 32768));
    uint64_t begin = random_below(&sequence->random, size - window + 1);
    for (unsigned i = 0; i < sequence->depth; i++) {
        sequence_pick(sequence, &sequence->slots[i], begin, window);
        clients_submit(sequence->clients, &sequence->slots[i]);
    }
    for (unsigned i = 0; i < sequence->depth; i++) {
        while (!sequence->slots[i].finished) {
            clients_poll(sequence->clients);
        }
        sequence->slots[i].in_flight = false;
        check_error(&sequence->slots[i]);
    }
    for (unsigned i = 0; i < sequence->depth; i++) {
        if (sequence->slots[i].kind == OP_READ) {
            check_round_read(sequence, &sequence->slots[i]);
        }
    }
    check_round(sequence);
}

/* ---- */

static void check_whole_disk(Sequence *sequence)
{
    g_autofree uint8_t *bytes = g_malloc(VERIFY_STEP);
    uint64_t size = sequence->size;
    for (uint64_t at = 0; at < size; at += VERIFY_STEP) {
        Op read = {.kind = OP_READ,
                   .offset = at,
                   .length = MIN(VERIFY_STEP, size - at),
                   .connection = (unsigned)(at / VERIFY_STEP % sequence->clients->count),
                   .buffer = bytes};
        clients_run(sequence->clients, &read);
        check_error(&read);
        check_equal(&read, bytes, sequence->model + at);
    }
}

void sequence_run(Sequence *sequence)
{
    bool overlapping = random_percent(&sequence->random, sequence->clients->count > 1 ? 50 : 25);
    if (overlapping) {
        for (unsigned done = 0; done < sequence->ops; done += sequence->depth) {
            sequence->depth = (unsigned)random_between(&sequence->random, 2, SEQUENCE_DEPTH);
            run_round(sequence);
        }
    } else {
        bool alone = sequence->clients->count == 1 && random_percent(&sequence->random, 65);
        sequence->depth =
            alone ? 1 : (unsigned)random_between(&sequence->random, 2, SEQUENCE_DEPTH);
        run_distinct(sequence);
    }
    check_whole_disk(sequence);
    for (unsigned i = 0; i < SEQUENCE_DEPTH; i++) {
        g_free(sequence->slots[i].buffer);
        memset(&sequence->slots[i], 0, sizeof sequence->slots[i]);
    }
}
