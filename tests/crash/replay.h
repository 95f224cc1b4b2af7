/*
 * From a record of writes and syncs: every state in which a disk could be after the power went.
 *
 * A cut is a tick: what has a smaller tick happened. What had ended before a finished sync began is
 * durable. Of all else that had begun, any subset may have reached the disk, each write also only
 * in some of its sectors. The states of one cut are numbered; the same record, seed, cut and number
 * give the same state.
 */
#ifndef TESTS_CRASH_REPLAY_H
#define TESTS_CRASH_REPLAY_H

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

#include "store/store.h"
#include "tests/lib/store-record.h"

typedef struct Replay Replay;

/* The first size bytes of content are the disk at tick 0. entries must stay. */
Replay *replay_new(const RecordEntry *entries, size_t count, const uint8_t *content, uint64_t size,
                   uint64_t seed);
void replay_free(Replay *replay);

/* The store that holds the state; what is written to it is gone with the next state. */
Store *replay_store(Replay *replay);

/* Builds a state of a cut. Cuts must not go backwards. Says in words what was chosen when text is
 * not NULL. */
void replay_state(Replay *replay, uint64_t cut, unsigned number, GString *text);

#endif
