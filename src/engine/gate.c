/* The gate: counts of who is inside, a queue of who waits. */
#include "engine/gate.h"

#include <stddef.h>

#include "base/cleanup.h"

void gate_init(Gate *gate, Pool *pool)
{
    pthread_mutex_init(&gate->lock, NULL);
    gate->pool = pool;
    for (unsigned i = 0; i < 3; i++) {
        gate->inside[i] = 0;
    }
    gate->first = NULL;
    gate->last = &gate->first;
}

void gate_destroy(Gate *gate)
{
    pthread_mutex_destroy(&gate->lock);
}

static bool admits(const Gate *gate, GateMode mode)
{
    if (gate->inside[GATE_EXCLUSIVE] > 0) {
        return false;
    }
    bool needs_no_writeback = mode != GATE_SHARED;
    bool needs_no_shared = mode == GATE_EXCLUSIVE;
    return !(needs_no_writeback && gate->inside[GATE_WRITEBACK] > 0) &&
           !(needs_no_shared && gate->inside[GATE_SHARED] > 0);
}

static void admit_waiting(Gate *gate)
{
    while (gate->first != NULL && admits(gate, gate->first->mode)) {
        GateJob *job = gate->first;
        gate->first = job->next;
        if (gate->first == NULL) {
            gate->last = &gate->first;
        }
        gate->inside[job->mode]++;
        pool_submit(gate->pool, &job->job);
    }
}

void gate_enter(Gate *gate, GateJob *job, GateMode mode)
{
    with_mutex(&gate->lock);
    job->mode = mode;
    job->next = NULL;
    *gate->last = job;
    gate->last = &job->next;
    admit_waiting(gate);
}

bool gate_try_enter(Gate *gate, GateMode mode)
{
    with_mutex(&gate->lock);
    bool admitted = gate->first == NULL && admits(gate, mode);
    gate->inside[mode] += admitted;
    return admitted;
}

void gate_leave(Gate *gate, GateMode mode)
{
    with_mutex(&gate->lock);
    gate->inside[mode]--;
    admit_waiting(gate);
}
