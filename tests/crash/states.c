/*
 * Builds the states of a run and tries each. A third of the cuts lie right behind the answer to a
 * FLUSH or FUA, where there is most to lose; the others are spread over the whole record. Each cut
 * gives a few states: nothing that is not durable, random subsets, and everything.
 */
#include "states.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "replay.h"
#include "tests/lib/random.h"
#include "tests/lib/store-scratch.h"

#define STATES_A_CUT 4
#define BAD_ENOUGH   5 /* states that are not good, of one run */

static int tick_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t *pick_cuts(const Run *run, const StatesOptions *options, uint64_t count)
{
    Random random = random_new(options->seed ^ 0x63757473);
    uint64_t *cuts = g_new(uint64_t, count);
    unsigned durable_count;
    const uint64_t *durable = model_durable_ticks(run->model, &durable_count);
    for (uint64_t i = 0; i < count; i++) {
        cuts[i] = 1 + random_below(&random, run->close_tick);
        if (random_percent(&random, 10)) { /* opening and closing: few ticks, but other code */
            uint64_t near = random_below(&random, min_u64(40, run->close_tick));
            cuts[i] = random_percent(&random, 50) ? 1 + near : run->close_tick - near;
        } else if (durable_count && random_percent(&random, 33)) {
            cuts[i] = durable[random_below(&random, durable_count)] + 1;
        }
        if (options->position) {
            cuts[i] = options->position;
        }
    }
    qsort(cuts, count, sizeof *cuts, tick_compare);
    return cuts;
}

static void keep_survivor(Survivor *survivor, const Verifier *verifier, const ImageFiles *files)
{
    uint64_t cells = verifier->fixture->setup->disk_size / CELL;
    survivor_clear(survivor);
    survivor->content = image_bytes_copy(files, scratch_content);
    survivor->values = g_new(uint32_t, cells);
    for (uint64_t i = 0; i < cells; i++) {
        stamp_read(verifier->disk + i * CELL, i, &survivor->values[i]);
    }
}

void survivor_clear(Survivor *survivor)
{
    image_bytes_clear(&survivor->content);
    g_free(survivor->values);
    *survivor = (Survivor){0};
}

static void say_state(const Verifier *verifier, const StatesOptions *options, Replay *replay,
                      uint64_t cut, unsigned number, Findings *findings)
{
    g_autoptr(GString) mask = g_string_new(NULL);
    replay_state(replay, cut, number, mask);
    g_string_append_printf(
        findings->text,
        "state: --setup %s --seed %lu --position %lu, number %u; not durable then:\n%s",
        verifier->fixture->setup->name, options->seed, cut, number, mask->str);
    if (options->dump) {
        verify_dump(verifier->fixture, replay_files(replay), options->dump);
    }
}

static bool is_turn(uint64_t count, unsigned every)
{
    return every && count % every == 0;
}

static bool try_state(Verifier *verifier, Run *run, const StatesOptions *options, Replay *replay,
                      uint64_t cut, unsigned number, Findings *findings)
{
    const ImageFiles *files = replay_files(replay);
    uint64_t count = ++verifier->tried;
    replay_state(replay, cut, number, NULL);
    bool good = verify_state(verifier, files, run->model, VERIFY_LEAKS_ALLOWED, findings);
    if (good && is_turn(count, options->qemu_every)) {
        /* The state as the cut left it, where qemu-img can look at that. */
        if (!fixture_needs_writer(verifier->fixture->setup)) {
            replay_state(replay, cut, number, NULL);
        }
        good = verify_qemu(verifier, files, findings);
    }
    if (good && is_turn(count, options->restart_every)) {
        replay_state(replay, cut, number, NULL);
        good = verify_restart(verifier, files, options->seed ^ count, findings);
    }
    return good;
}

uint64_t states_try(Verifier *verifier, Run *run, const StatesOptions *options, Survivor *survivor,
                    Findings *findings)
{
    size_t entry_count;
    const RecordEntry *entries = record_entries(run->store, &entry_count);
    const ImageBytes *content = options->content ? options->content : &verifier->fixture->content;
    Replay *replay = replay_new(entries, entry_count, content, options->seed);
    uint64_t cut_count = (options->states + STATES_A_CUT - 1) / STATES_A_CUT;
    g_autofree uint64_t *cuts = pick_cuts(run, options, cut_count);
    uint64_t tried = 0, keep_at = cut_count * 3 / 4;
    unsigned bad = 0;
    for (uint64_t i = 0; i < cut_count && bad < (options->stop_at_first ? 1 : BAD_ENOUGH); i++) {
        model_cut(run->model, cuts[i]);
        for (unsigned n = 0; n < STATES_A_CUT && tried < options->states; n++) {
            unsigned number = n < 2 ? n : n + STATES_A_CUT * i;
            bool good = try_state(verifier, run, options, replay, cuts[i], number, findings);
            tried++;
            if (!good) {
                bad++;
                say_state(verifier, options, replay, cuts[i], number, findings);
            } else if (survivor && i >= keep_at && !survivor->content.count && number >= 2) {
                replay_state(replay, cuts[i], number, NULL); /* a restart may have changed it */
                keep_survivor(survivor, verifier, replay_files(replay));
            }
        }
    }
    replay_free(replay);
    return tried;
}

bool states_try_as_is(Verifier *verifier, Run *run, VerifyLeaks leaks, Findings *findings)
{
    ImageBytes left = image_bytes_copy(&run->files, record_content);
    ImageFiles files = image_files_scratch(&left);
    model_cut(run->model, TICK_NEVER);
    bool good = verify_state(verifier, &files, run->model, leaks, findings);
    image_files_clear(&files);
    image_bytes_clear(&left);
    return good;
}

bool states_try_end(Verifier *verifier, Run *run, VerifyLeaks leaks, Findings *findings)
{
    if (run->close_result != 0) {
        findings->corrupt++;
        findings_say(findings, "closing fails: %s", g_strerror(-run->close_result));
        return false;
    }
    return states_try_as_is(verifier, run, leaks, findings);
}
