/*
 * Changes: what alters a disk's map, done by one job at a time behind the exclusive gate. One job
 * takes all changes that wait, so that a busy disk pays for the gate once, not once a request.
 *
 *     change_acquire: the range is this request's alone
 *     change_start(ALLOCATE) -> resume: data is written -> change_start(COMMIT, ABANDON) -> resume
 *                            -> or, when nobody else waits: write_now in the job, COMMIT at once -> resume
 *     change_start(UNMAP)    -> resume
 *
 * The request holds CHANGE on the range from before the first until after the last.
 */
#ifndef ENGINE_CHANGE_H
#define ENGINE_CHANGE_H

#include "engine/disk-impl.h"

typedef enum { CHANGE_ALLOCATE, CHANGE_COMMIT, CHANGE_ABANDON, CHANGE_UNMAP } ChangeKind;

struct Change {
    ChangeKind kind;
    Request *request;
    Change *next;
    uint64_t offset, length; /* whole units; ALLOCATE may shorten length, to 0 */
    UnmapFlags unmap_flags;  /* UNMAP */
    int result;              /* 0 or -errno */
    bool too_narrow; /* ALLOCATE: length is 0 because a larger unit must be changed as a whole */
    ExtentList old;  /* ALLOCATE: the map as it was */
    Allocation allocation; /* ALLOCATE, COMMIT, ABANDON: where the data goes */
    /* ALLOCATE: writes all of the data if that needs neither reading nor waiting; true: it is written, and the change
     * was committed, with that result, when the request is resumed. Called in the job, at most once; may be NULL. */
    bool (*write_now)(Change *change);
    bool committed;
};

/* Takes CHANGE on the range, then granted(request); perhaps inside the call. A range of which the
 * kernel holds some is given back by it first. This is the one place where CHANGE is taken.
 * [worker] */
void change_acquire(Request *request, uint64_t offset, uint64_t length,
                    void (*granted)(Request *request));

Change *change_new(Request *request, uint64_t offset, uint64_t length);
void change_free(Change *change);

/* Queues it; request->resume(request) is posted when it is done. [worker] */
void change_start(Change *change, ChangeKind kind, void (*resume)(Request *request));

void change_init(Disk *disk);

#endif
