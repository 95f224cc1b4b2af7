/*
 * The fault test: in a short run with a fixed seed, the k-th read, write, sync, punch or change of
 * size of the store fails, for every k, once or from then on, with EIO and with ENOSPC. Opening and
 * the orderly end of the image are part of the run.
 *
 * Arguments: a configuration, in place of those of qcow2, and N, to try one in N of its faults.
 *
 * Whatever fails: nothing crashes or hangs, what was answered to a FLUSH or with FUA is there, the
 * image opens and checks clean, as it lies there and after a power cut.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "setups.h"
#include "states.h"
#include "tests/lib/scale.h"

#define SEED       7
#define REQUESTS   120
#define CUT_STATES 6

#define VARIANTS   4 /* once and for ever, EIO and ENOSPC */

typedef struct Fault {
    FaultKind kind;
    uint64_t at;
    bool forever;
    int error;
} Fault;

typedef struct Totals {
    uint64_t runs, fired, refused_to_open, with_failed_requests, states, bad;
} Totals;

static Run *fault_run(const Fixture *fixture, Machine *machine, FaultPlan *plan, Findings *findings)
{
    RunOptions options = {.seed = SEED, .requests = REQUESTS, .depth_max = 4};
    options.record.seed = SEED;
    options.record.eagain_percent = 30;
    options.record.faults = plan;
    return run_new(fixture, machine, &options, findings);
}

/* A failure that never ends must be seen by somebody: a request, the end, or the opening. */
static void must_be_seen(const Run *run, const FaultPlan *plan, const Fault *fault,
                         Findings *findings)
{
    bool seen = !run->opened || run->failed || run->close_result != 0;
    bool matters =
        fault->kind == FAULT_WRITE || fault->kind == FAULT_SYNC || fault->kind == FAULT_READ;
    if (plan->fired && fault->forever && matters && !seen) {
        findings->lost++;
        findings_say(findings, "nobody was told of the failure");
    }
}

static void try_fault(Verifier *verifier, const Fault *fault, Totals *totals)
{
    g_autofree char *what =
        g_strdup_printf("faults: %s: %s number %lu fails %s with %s",
                        verifier->fixture->setup->name, fault_kind_name(fault->kind), fault->at,
                        fault->forever ? "for ever" : "once", g_strerror(-fault->error));
    watchdog_set(60, what);
    FaultPlan plan;
    Findings findings;
    fault_plan_init(&plan, fault->kind, fault->at, fault->forever, fault->error);
    findings_init(&findings);
    Run *run = fault_run(verifier->fixture, verifier->machine, &plan, &findings);
    must_be_seen(run, &plan, fault, &findings);
    if (run->opened) {
        StatesOptions how = {.seed = SEED + fault->at, .states = CUT_STATES};
        totals->states += states_try(verifier, run, &how, NULL, &findings);
    }
    uint64_t before = findings_count(&findings);
    states_try_as_is(verifier, run, VERIFY_LEAKS_ALLOWED, &findings);
    if (findings_count(&findings) > before) {
        findings_say(&findings, "(that was the image as it lies there)");
    }
    totals->runs++;
    totals->states++;
    totals->fired += plan.fired > 0;
    totals->refused_to_open += !run->opened;
    totals->with_failed_requests += run->failed > 0;
    if (findings_count(&findings)) {
        totals->bad++;
        printf("%s: FAILED\n%s\n", what, findings.text->str);
        fflush(stdout);
    }
    findings_clear(&findings);
    run_free(run);
    fault_plan_clear(&plan);
}

/* How many operations of each kind a run without faults has. */
static void count_operations(Verifier *verifier, uint64_t counts[FAULT_KINDS])
{
    FaultPlan plan;
    Findings findings;
    fault_plan_init(&plan, FAULT_READ, 0, false, 0);
    findings_init(&findings);
    Run *run = fault_run(verifier->fixture, verifier->machine, &plan, &findings);
    memcpy(counts, plan.counts, sizeof plan.counts);
    run_free(run);
    findings_clear(&findings);
    fault_plan_clear(&plan);
}

static void try_setup(const char *name, uint64_t every, Machine *machine, Totals *totals)
{
    static const int errors[] = {-EIO, -ENOSPC};
    Fixture *fixture = fixture_new(setup_find(name));
    Verifier verifier;
    verifier_init(&verifier, fixture, machine);
    uint64_t counts[FAULT_KINDS];
    count_operations(&verifier, counts);
    uint64_t step = every * max_u64(1, 100 / scaled(100)), number = 0;
    step += step > 1 && step % 2 == 0; /* no factor in common with VARIANTS: each has its turn */
    for (unsigned kind = 0; kind < FAULT_KINDS; kind++) {
        printf("%s: %lu operations of kind %s\n", name, counts[kind], fault_kind_name(kind));
        for (uint64_t at = 1; at <= counts[kind]; at++) {
            for (unsigned variant = 0; variant < VARIANTS && totals->bad < 5; variant++) {
                Fault fault = {kind, at, variant & 1, errors[variant >> 1]};
                if (number++ % step == 0) {
                    try_fault(&verifier, &fault, totals);
                }
            }
        }
    }
    verifier_clear(&verifier);
    fixture_free(fixture);
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"v3-4k-overlay-raw", "v2-512-overlay-raw",
                                        "v3-4k-r64-tiny-cache", "v2-512-compressed-snapshot"};
    log_set_level(LOG_LEVEL_ERROR);
    Machine machine;
    machine_start(&machine);
    Totals totals = {0};
    if (argc > 1) {
        try_setup(argv[1], argc > 2 ? strtoul(argv[2], NULL, 10) : 1, &machine, &totals);
    }
    for (unsigned i = 0; argc == 1 && i < G_N_ELEMENTS(names); i++) {
        try_setup(names[i], 1, &machine, &totals);
    }
    machine_stop(&machine);
    printf("runs with a fault %lu, it came in %lu, not opened %lu, requests failed in %lu; states "
           "%lu; bad %lu\n",
           totals.runs, totals.fired, totals.refused_to_open, totals.with_failed_requests,
           totals.states, totals.bad);
    return totals.bad ? 1 : 0;
}
