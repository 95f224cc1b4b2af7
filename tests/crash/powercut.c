/*
 * The power-cut test: runs the server's engine on a recording store, builds states that a disk
 * could hold after a cut, and tries each.
 *
 * Every configuration is run with several seeds. After a run, another goes on from one of its
 * states, as a server does after the power has come back, and is cut in turn.
 *
 * Requests depend on the seed alone, the interleaving of threads does not: --seed S --setup NAME
 * runs the same requests again, and --position P looks at all states near one place of the record.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "setups.h"
#include "states.h"
#include "tests/lib/random.h"
#include "tests/lib/scale.h"

static gint64 option_states = 0, option_from = 1, option_seed = 0, option_position = 0;
static int option_requests = 400, option_qemu_every = 100;
static char *option_setup, *option_dump, *option_formats = "qcow2";

static GOptionEntry entries[] = {
    {"states", 0, 0, G_OPTION_ARG_INT64, &option_states, "States to try, over all configurations",
     "N"},
    {"seed", 0, 0, G_OPTION_ARG_INT64, &option_seed, "Only runs of this seed", "S"},
    {"from", 0, 0, G_OPTION_ARG_INT64, &option_from, "The first of many seeds", "S"},
    {"setup", 0, 0, G_OPTION_ARG_STRING, &option_setup, "Only this configuration", "NAME"},
    {"formats", 0, 0, G_OPTION_ARG_STRING, &option_formats,
     "The formats whose configurations are run (qcow2)", "NAMES"},
    {"position", 0, 0, G_OPTION_ARG_INT64, &option_position, "Only this cut of the record", "P"},
    {"requests", 0, 0, G_OPTION_ARG_INT, &option_requests, "Requests a run", "N"},
    {"qemu-every", 0, 0, G_OPTION_ARG_INT, &option_qemu_every,
     "qemu-img looks at one in N; 0: none", "N"},
    {"dump", 0, 0, G_OPTION_ARG_FILENAME, &option_dump, "Where to put a state that is not good",
     "DIR"},
    {NULL},
};

typedef struct Totals {
    uint64_t states, leaking, restarts, qemu_checks, runs, bad;
    Findings findings;
} Totals;

static void count(Totals *totals, const char *name, uint64_t states, Verifier *verifier,
                  Findings *findings)
{
    totals->states += states;
    totals->runs += 2;
    totals->leaking += verifier->leaking;
    totals->restarts += verifier->restarts;
    totals->qemu_checks += verifier->qemu_checks;
    totals->findings.lost += findings->lost;
    totals->findings.foreign += findings->foreign;
    totals->findings.garbage += findings->garbage;
    totals->findings.corrupt += findings->corrupt;
    if (findings_count(findings)) {
        printf("%s: FAILED: corrupt %lu, lost %lu, foreign %lu, garbage %lu\n%s\n", name,
               findings->corrupt, findings->lost, findings->foreign, findings->garbage,
               findings->text->str);
        fflush(stdout);
    }
}

static uint64_t size_at_start(const Fixture *fixture)
{
    uint64_t size = 0;
    for (unsigned i = 0; i < fixture->content.count; i++) {
        size += fixture->content.files[i].size;
    }
    return size;
}

/* What a disk that grows before the run takes for that: a data file is as long as the disk at once; other tables, or the
 * rest of the last unit, take a unit each. */
static uint64_t needed_to_grow(const Fixture *fixture)
{
    const Setup *setup = fixture->setup;
    if (!setup->created_size) {
        return 0;
    }
    uint64_t data_file = setup->more_options ? setup->disk_size - setup->created_size : 0;
    uint64_t unit = setup->cluster_size ? g_ascii_strtoull(setup->cluster_size, NULL, 10) : 0;
    return data_file + 2 * unit;
}

/* The disk changes with the seed too: some are fast, some make everybody wait, some are full, some
 * fail now and then. */
static RunOptions run_options(uint64_t seed, const Fixture *fixture, FaultPlan *plan)
{
    Random random = random_new(seed ^ 0x72756e73);
    unsigned requests = fixture->setup->requests;
    RunOptions options = {.seed = seed, .requests = requests ? requests : option_requests};
    options.depth_max = 1 + random_below(&random, 8);
    options.record.seed = seed;
    options.record.eagain_percent = (unsigned[]){0, 20, 60, 100}[random_below(&random, 4)];
    options.record.delay_percent = (unsigned[]){0, 5, 30}[random_below(&random, 3)];
    options.record.delay_max_us = 300;
    options.record.no_punch = random_percent(&random, 50);
    switch (random_below(&random, 6)) {
    case 0:
        options.record.capacity = size_at_start(fixture) + needed_to_grow(fixture) +
                                  random_below(&random, fixture->setup->disk_size);
        break;
    case 1: /* errors after which the server goes on */
        fault_plan_init_random(plan, FAULT_WRITE, 1 + random_below(&random, 10), -ENOSPC, seed);
        options.record.faults = plan;
        break;
    case 2:
        fault_plan_init_random(plan, FAULT_READ, 1 + random_below(&random, 10), -EIO, seed);
        options.record.faults = plan;
        break;
    default:
        break;
    }
    return options;
}

/* One run and its states; then, when survivor is not NULL, what to go on from is in it. */
static uint64_t run_once(Verifier *verifier, RunOptions *run_how, StatesOptions *how,
                         VerifyLeaks leaks, Survivor *survivor, Findings *findings)
{
    Run *run = run_new(verifier->fixture, verifier->machine, run_how, findings);
    how->content = run_how->content;
    uint64_t tried = 0;
    if (run->opened) {
        tried = states_try(verifier, run, how, survivor, findings);
        /* What fails now and then may fail at the end. */
        if (run->close_result == 0 || !run_how->record.faults) {
            states_try_end(verifier, run, run_how->record.faults ? VERIFY_LEAKS_ALLOWED : leaks,
                           findings);
        }
    }
    run_how->first_value = run->next_value;
    run_free(run);
    return tried;
}

static void round_of(const Setup *setup, uint64_t seed, uint64_t states, Machine *machine,
                     Totals *totals)
{
    g_autofree char *what = g_strdup_printf("powercut --setup %s --seed %lu", setup->name, seed);
    watchdog_set(600, what);
    Fixture *fixture = fixture_new(setup);
    Verifier verifier;
    Findings findings;
    Survivor survivor = {0};
    verifier_init(&verifier, fixture, machine);
    verifier.tried = totals->states; /* so that every hundredth of all is shown to qemu-img */
    findings_init(&findings);
    FaultPlan plan;
    RunOptions run_how = run_options(seed, fixture, &plan);
    StatesOptions how = {.seed = seed,
                         .states = (states + 1) / 2,
                         .position = option_position,
                         .qemu_every = option_qemu_every,
                         .restart_every = 20,
                         .dump = option_dump};
    VerifyLeaks leaks = setup->gaps ? VERIFY_LEAKS_ALLOWED : VERIFY_NO_LEAKS;
    uint64_t tried = run_once(&verifier, &run_how, &how, leaks, &survivor, &findings);
    if (survivor.content.count && findings_count(&findings) == 0 && tried < states) {
        run_how.seed = random_mix(seed);
        run_how.content = &survivor.content;
        run_how.values = survivor.values;
        how.states = states - tried;
        tried += run_once(&verifier, &run_how, &how, VERIFY_LEAKS_ALLOWED, NULL, &findings);
    }
    count(totals, what, tried, &verifier, &findings);
    survivor_clear(&survivor);
    findings_clear(&findings);
    verifier_clear(&verifier);
    fixture_free(fixture);
}

static bool is_wanted(const Setup *setup)
{
    g_auto(GStrv) wanted = g_strsplit(option_formats, ",", 0);
    return g_strv_contains((const char *const *)wanted, setup->format);
}

/* Each configuration in turn, with new seeds, until there are enough states. */
static void all_rounds(uint64_t states, Machine *machine, Totals *totals)
{
    const Setup *only = option_setup ? setup_find(option_setup) : NULL;
    unsigned setup_count = 0;
    for (const Setup *setup = setups; !only && setup->name; setup++) {
        setup_count += is_wanted(setup);
    }
    if (!only && setup_count == 0) {
        fprintf(stderr, "powercut: no configuration is of %s\n", option_formats);
        exit(1);
    }
    const uint64_t share =
        div_round_up(states, max_u64(setup_count, 1)); /* one turn where that is enough */
    const uint64_t states_a_round = option_position ? 64 : CLAMP(share, 8, 300);
    uint64_t seed = option_seed ? option_seed : option_from;
    bool enough = false;
    for (bool first_turn = true; !enough; first_turn = false) {
        for (const Setup *setup = only ? only : setups; setup->name && !enough; setup++) {
            if (!only && !is_wanted(setup)) {
                continue;
            }
            uint64_t before = findings_count(&totals->findings);
            round_of(setup, seed, MIN(states_a_round, states), machine, totals);
            totals->bad += findings_count(&totals->findings) > before;
            seed += option_seed ? 0 : 1;
            enough = totals->bad >= 3 || (!first_turn && totals->states >= states);
            if (only) {
                break;
            }
        }
        enough |= totals->states >= states;
    }
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GOptionContext) context = g_option_context_new("- the power-cut test");
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) ||
        (option_setup && !setup_find(option_setup))) {
        fprintf(stderr, "powercut: %s\n", error ? error->message : "no such configuration");
        return 1;
    }
    uint64_t states = option_states ? option_states : scaled(22000);
    Machine machine;
    machine_start(&machine);
    Totals totals = {0};
    all_rounds(states, &machine, &totals);
    machine_stop(&machine);
    printf(
        "states %lu of %lu runs: corrupt %lu, lost %lu, foreign %lu, garbage %lu; leaking %.1f %%; "
        "restarted %lu; shown to qemu-img %lu\n",
        totals.states, totals.runs, totals.findings.corrupt, totals.findings.lost,
        totals.findings.foreign, totals.findings.garbage,
        100.0 * totals.leaking / (totals.states ? totals.states : 1), totals.restarts,
        totals.qemu_checks);
    return findings_count(&totals.findings) ? 1 : 0;
}
