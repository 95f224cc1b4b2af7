/*
 * One sequence of random commands on one export, held against its model.
 */
#ifndef COMPARE_SEQUENCE_H
#define COMPARE_SEQUENCE_H

#include "client.h"
#include "config.h"

#define SEQUENCE_DEPTH 16 /* commands in flight */

typedef struct Sequence {
    const Config *config;
    Clients *clients;
    uint64_t size;  /* of the disk, bytes */
    uint8_t *model; /* what the guest must see */
    Random random;
    unsigned ops; /* how many commands */

    Op slots[SEQUENCE_DEPTH];
    unsigned depth; /* how many slots are in use */
} Sequence;

/* Runs the commands, then compares the whole disk. Dies at the first difference; the model is then
 * what the disk must hold from now on. */
void sequence_run(Sequence *sequence);

/* Picks kind, range, flags and bytes of one command; window: all of it lies there. */
void sequence_pick(Sequence *sequence, Op *op, uint64_t window, uint64_t window_length);

#endif
