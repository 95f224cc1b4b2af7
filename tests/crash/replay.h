/*
 * From a record of writes and syncs: every state in which a disk could be after the power went.
 *
 * A cut is a tick: what has a smaller tick happened. What had ended before a finished sync began is
 * durable. Of all else that had begun, any subset may have reached the disk, each write also only
 * in some of its sectors. A sync counts for its own file only. The states of one cut are numbered; the same record,
 * seed, cut and number give the same state.
 */
#ifndef TESTS_CRASH_REPLAY_H
#define TESTS_CRASH_REPLAY_H

#include <glib.h>
#include <stddef.h>
#include <stdint.h>

#include "tests/lib/image-files.h"
#include "tests/lib/store-record.h"

typedef struct Replay Replay;

/* start: the files at tick 0, in the order of their numbers. entries must stay. */
Replay *replay_new(const RecordEntry *entries, size_t count, const ImageBytes *start,
                   uint64_t seed);
void replay_free(Replay *replay);

/* The stores that hold the state; what is written to them is gone with the next state. */
const ImageFiles *replay_files(const Replay *replay);
/* The first of them. */
Store *replay_store(const Replay *replay);

/* Builds a state of a cut. Cuts must not go backwards. Says in words what was chosen when text is
 * not NULL. */
void replay_state(Replay *replay, uint64_t cut, unsigned number, GString *text);

#endif
