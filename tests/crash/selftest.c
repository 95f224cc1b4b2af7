/*
 * Proves that the power-cut test can fail.
 *
 * First the parts: states that are wrong by construction must be told from right ones. Then the
 * whole: on a store whose syncs lie (all of them, or every other one, which breaks the order inside
 * a flush) the same runs that pass on an honest store must be found to lose data or to be corrupt.
 * And where nothing is promised to be durable, so that nothing can be lost, the missing order alone
 * must show as corruption and as bytes of other blocks.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "replay.h"
#include "setups.h"
#include "states.h"
#include "tests/lib/store-scratch.h"

#define RUNS_TO_FIND 40

static unsigned failures;

static void expect(bool good, const char *what)
{
    printf("%s: %s\n", good ? "ok" : "FAILED", what);
    failures += !good;
}

/* The model */

#define DISK 8192u

static Model *small_model(Findings *findings, RequestType last_type)
{
    Model *model = model_new(DISK, NULL);
    model_add(
        model,
        &(ModelOp){
            .type = REQUEST_WRITE, .offset = 0, .length = 4096, .value = 2, .start = 1, .end = 2});
    model_add(model, &(ModelOp){.type = REQUEST_FLUSH, .start = 3, .end = 6});
    model_add(
        model,
        &(ModelOp){
            .type = last_type, .offset = 0, .length = 512, .value = 3, .start = 10, .end = 12});
    model_add(model,
              &(ModelOp){.type = REQUEST_FLUSH, .start = 11, .end = 14}); /* began too soon */
    model_finish(model, findings);
    return model;
}

static bool allows(uint64_t cut, RequestType last_type, uint64_t offset, uint32_t value,
                   uint64_t stamped_for)
{
    Findings findings;
    findings_init(&findings);
    Model *model = small_model(&findings, last_type);
    uint8_t disk[DISK] = {0};
    stamp_fill(disk, 0, cut > 1 ? 4096 : 0, 2);
    stamp_fill(disk + offset, stamped_for, 512, value);
    model_cut(model, cut);
    bool allowed = model_check(model, disk, &findings);
    model_free(model);
    findings_clear(&findings);
    return allowed;
}

static void test_model(void)
{
    expect(allows(20, REQUEST_WRITE, 0, 3, 0), "the newest value is allowed");
    expect(allows(20, REQUEST_WRITE, 0, 2, 0),
           "a flush that began before the write ended does not cover it");
    expect(!allows(20, REQUEST_WRITE, 0, 0, 0), "durable bytes that read as zeroes are lost");
    expect(!allows(20, REQUEST_WRITE, 1024, 3, 1024), "a value that nobody wrote there is found");
    expect(!allows(20, REQUEST_WRITE, 0, 3, 512), "bytes of another cell are foreign");
    expect(!allows(5, REQUEST_WRITE, 0, 3, 0), "a value from the future is found");
    expect(allows(5, REQUEST_WRITE, 0, 0, 0),
           "before the flush is answered the old value is allowed");
    expect(!allows(7, REQUEST_WRITE, 0, 0, 0), "after it is answered it is not");
    expect(allows(20, REQUEST_TRIM, 0, 0, 0), "a trim may zero");
    expect(allows(20, REQUEST_TRIM, 0, 2, 0), "and need not");
}

/* The replayer */

static const uint8_t *byte_of(Replay *replay, uint64_t offset)
{
    uint64_t size;
    return scratch_content(replay_store(replay), &size) + offset;
}

static void test_replay(void)
{
    uint8_t start[2048] = {0}, one[512], two[512];
    memset(one, 1, sizeof one);
    memset(two, 2, sizeof two);
    const RecordEntry entries[] = {
        {.kind = RECORD_WRITE,
         .begin = 1,
         .tick = 2,
         .end = 3,
         .offset = 0,
         .length = 512,
         .data = one},
        {.kind = RECORD_WRITE,
         .begin = 4,
         .tick = 5,
         .end = 9,
         .offset = 512,
         .length = 512,
         .data = two},
        {.kind = RECORD_SYNC, .begin = 6, .tick = 8, .end = 8},
    };
    ImageBytes bytes = image_bytes_of(start, sizeof start);
    Replay *replay = replay_new(entries, G_N_ELEMENTS(entries), &bytes, 1);
    replay_state(replay, 4, 0, NULL);
    expect(*byte_of(replay, 0) == 0, "what is not synced may be missing");
    replay_state(replay, 4, 1, NULL);
    expect(*byte_of(replay, 0) == 1 || *byte_of(replay, 0) == 0, "or there");
    replay_state(replay, 20, 0, NULL);
    expect(*byte_of(replay, 0) == 1, "what ended before the sync began is durable");
    expect(*byte_of(replay, 512) == 0, "what ended after the sync began is not");
    bool came = false, stays = true;
    for (unsigned number = 1; number < 20; number++) {
        replay_state(replay, 20, number, NULL);
        came |= *byte_of(replay, 512) == 2;
        stays &= *byte_of(replay, 0) == 1;
    }
    expect(came, "but it may be there");
    expect(stays, "durable bytes stay");
    replay_free(replay);
}

/* A file that is cut off while older and newer writes behind its new end are not durable, or are. */
static void test_replay_truncate(void)
{
    uint8_t start[2048], old[512], new[512];
    memset(start, 7, sizeof start);
    memset(old, 1, sizeof old);
    memset(new, 2, sizeof new);
    const RecordEntry entries[] = {
        {.kind = RECORD_WRITE,
         .begin = 1,
         .tick = 2,
         .end = 30,
         .offset = 1024,
         .length = 512,
         .data = old},
        {.kind = RECORD_TRUNCATE, .begin = 3, .tick = 4, .end = 20, .length = 1024},
        {.kind = RECORD_WRITE,
         .begin = 5,
         .tick = 6,
         .end = 7,
         .offset = 1536,
         .length = 512,
         .data = new},
        {.kind = RECORD_SYNC, .begin = 8, .tick = 10, .end = 11},
        {.kind = RECORD_SYNC, .begin = 21, .tick = 22, .end = 23},
    };
    bool newer = true, none_older = true, cleared = true;
    ImageBytes bytes = image_bytes_of(start, sizeof start);
    Replay *replay = replay_new(entries, G_N_ELEMENTS(entries), &bytes, 1);
    for (unsigned number = 0; number < 20; number++) {
        replay_state(replay, 15, number, NULL);
        newer &= *byte_of(replay, 1536) == 2 && store_size(replay_store(replay)) == 2048;
    }
    for (unsigned number = 0; number < 20; number++) {
        replay_state(replay, 25, number, NULL);
        newer &= *byte_of(replay, 1536) == 2 && store_size(replay_store(replay)) == 2048;
        none_older &= *byte_of(replay, 1024) != 1;
        cleared &= *byte_of(replay, 1024) == 0;
    }
    expect(newer, "a truncate takes nothing away from newer durable writes");
    expect(none_older, "what an older write left behind the end does not come back");
    expect(cleared, "what the file held there is gone");
    replay_free(replay);
}

/* Two files: a sync of one says nothing of the other. */
static void test_replay_files(void)
{
    uint8_t start[512] = {0}, one[512], two[512];
    memset(one, 1, sizeof one);
    memset(two, 2, sizeof two);
    const RecordEntry entries[] = {
        {.kind = RECORD_WRITE, .begin = 1, .tick = 2, .end = 3, .length = 512, .data = one},
        {.kind = RECORD_WRITE,
         .file = 1,
         .begin = 4,
         .tick = 5,
         .end = 6,
         .length = 512,
         .data = two},
        {.kind = RECORD_SYNC, .file = 1, .begin = 7, .tick = 8, .end = 8},
    };
    const ImageBytes bytes = {
        .count = 2, .files = {{"one", start, sizeof start}, {"two", start, sizeof start}}};
    bool comes = false, misses = false, stays = true;
    Replay *replay = replay_new(entries, G_N_ELEMENTS(entries), &bytes, 1);
    const ImageFiles *files = replay_files(replay);
    for (unsigned number = 0; number < 20; number++) {
        uint64_t size;
        replay_state(replay, 20, number, NULL);
        comes |= *scratch_content(files->stores[0], &size) == 1;
        misses |= *scratch_content(files->stores[0], &size) == 0;
        stays &= *scratch_content(files->stores[1], &size) == 2;
    }
    expect(comes && misses, "a sync of one file leaves a write of another open");
    expect(stays, "and makes its own durable");
    replay_free(replay);
}

/* The whole */

typedef struct Mutation {
    const char *name;
    bool (*lie)(uint64_t number);
    bool promise_nothing; /* what was flushed may be lost: what is found is damage and foreign bytes
                           */
} Mutation;

static bool lie_always(uint64_t number)
{
    return true;
}

static bool lie_odd(uint64_t number)
{
    return number % 2 == 1;
}

static bool lie_even(uint64_t number)
{
    return number % 2 == 0;
}

static void run_lying(const Setup *setup, uint64_t seed, const Mutation *mutation, Machine *machine,
                      Findings *findings)
{
    Fixture *fixture = fixture_new(setup);
    Verifier verifier;
    verifier_init(&verifier, fixture, machine);
    RunOptions how = {.seed = seed, .requests = 300, .promise_nothing = mutation->promise_nothing};
    how.record.seed = seed;
    how.record.eagain_percent = 30;
    how.record.no_punch = true;
    how.record.sync_is_lie = mutation->lie;
    Run *run = run_new(fixture, machine, &how, findings);
    StatesOptions states = {.seed = seed, .states = 200};
    if (run->opened) {
        states_try(&verifier, run, &states, NULL, findings);
    }
    run_free(run);
    verifier_clear(&verifier);
    fixture_free(fixture);
}

static bool found_all(const Findings *findings, const Mutation *mutation)
{
    return mutation->promise_nothing ? findings->corrupt && findings->foreign
                                     : findings->lost || findings->corrupt;
}

static void expect_found(const char *setup_name, const Mutation *mutation, Machine *machine)
{
    Findings findings;
    findings_init(&findings);
    unsigned runs = 0;
    while (!found_all(&findings, mutation) && runs < RUNS_TO_FIND) {
        watchdog_set(120, "selftest");
        run_lying(setup_find(setup_name), ++runs, mutation, machine, &findings);
    }
    g_autofree char *what = g_strdup_printf(
        "%s: %s: found after %u runs: corrupt %lu, lost %lu, foreign %lu, garbage %lu", setup_name,
        mutation->name, runs, findings.corrupt, findings.lost, findings.foreign, findings.garbage);
    expect(found_all(&findings, mutation), what);
    findings_clear(&findings);
}

int main(void)
{
    static const char *const names[] = {"v3-4k", "v3-512-r64-growing", "v2-4k-overlay-qcow2",
                                        "v3-64k-r1-overlay-raw"};
    static const Mutation mutations[] = {
        {"all syncs lie", lie_always, false},
        {"odd syncs lie", lie_odd, false},
        {"even syncs lie", lie_even, false},
        {"nothing is ordered", lie_always, true},
    };
    test_model();
    test_replay();
    test_replay_truncate();
    test_replay_files();
    Machine machine;
    machine_start(&machine);
    expect_found("raw", &mutations[0], &machine);
    expect_found("vmdk-split-4k", &mutations[0], &machine);
    expect_found("vmdk-flat", &mutations[0], &machine);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        for (unsigned m = 0; m < G_N_ELEMENTS(mutations); m++) {
            expect_found(names[i], &mutations[m], &machine);
        }
    }
    machine_stop(&machine);
    return failures ? 1 : 0;
}
