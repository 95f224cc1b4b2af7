/*
 * A plan of faults: counts the operations of a store and says which must fail.
 */
#include "tests/lib/store-fault.h"

#include <string.h>

#include "base/cleanup.h"

void fault_plan_init(FaultPlan *plan, FaultKind kind, uint64_t at, bool forever, int error)
{
    memset(plan, 0, sizeof *plan);
    plan->kind = kind;
    plan->at = at;
    plan->forever = forever;
    plan->error = error;
    pthread_mutex_init(&plan->lock, NULL);
}

void fault_plan_init_random(FaultPlan *plan, FaultKind kind, unsigned percent, int error,
                            uint64_t seed)
{
    fault_plan_init(plan, kind, 0, false, error);
    plan->percent = percent;
    plan->random = random_new(seed);
}

void fault_plan_clear(FaultPlan *plan)
{
    pthread_mutex_destroy(&plan->lock);
}

static bool must_fail(FaultPlan *plan, FaultKind kind, uint64_t number)
{
    if (plan->kind != kind || (plan->at == 0 && plan->percent == 0)) {
        return false;
    }
    if (plan->percent != 0) {
        return random_percent(&plan->random, plan->percent);
    }
    return plan->forever ? number >= plan->at : number == plan->at;
}

int fault_plan_check(FaultPlan *plan, FaultKind kind)
{
    if (!plan) {
        return 0;
    }
    with_mutex(&plan->lock);
    uint64_t number = ++plan->counts[kind];
    if (kind == FAULT_SYNC && plan->sync_error) {
        return plan->sync_error;
    }
    if (!must_fail(plan, kind, number)) {
        return 0;
    }
    plan->fired++;
    if (kind == FAULT_SYNC) {
        plan->sync_error = plan->error;
    }
    return plan->error;
}

const char *fault_kind_name(FaultKind kind)
{
    static const char *const names[FAULT_KINDS] = {"read", "write", "sync", "punch", "truncate"};
    return names[kind];
}
