/*
 * A script of steps, cut and failing.
 */
#include "script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "replay.h"
#include "setups.h"
#include "tests/lib/scale.h"
#include "tests/lib/store-memory.h"
#include "tests/lib/store-scratch.h"

#define STATES_A_CUT 4
#define BAD_ENOUGH   5

typedef struct Test {
    const Script *script;
    uint8_t *content; /* the new image */
    uint64_t content_size;
    uint64_t tried, bad;
} Test;

/* ---- the image ---- */

static void test_init(Test *test, const Script *script)
{
    *test = (Test){.script = script};
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, "cluster_size", (char *)script->cluster_size);
    g_hash_table_insert(options, "compat", (char *)script->compat);
    if (script->refcount_bits) {
        g_hash_table_insert(options, "refcount_bits", (char *)script->refcount_bits);
    }
    uint64_t size = SCRIPT_CLUSTERS * strtoull(script->cluster_size, NULL, 10);
    FormatCreate how = {.size = size, .options = options};
    g_autoptr(Store) store = store_memory_new("new", NULL, 0);
    g_autoptr(GError) error = NULL;
    if (!format_qcow2.create(store, &how, &error)) {
        g_error("%s", error->message);
    }
    const uint8_t *content = store_memory_content(store, &test->content_size);
    test->content = g_memdup2(content, test->content_size);
}

Image *script_open(Store *store, bool write, const char *snapshot, GError **error)
{
    ImageOpen how = {.format = &format_qcow2, .write = write, .snapshot = snapshot};
    return image_open_store(store, &how, NULL, error);
}

/* As the engine does it. */
static int write_cluster(Image *image, uint64_t offset, const uint8_t *bytes)
{
    uint64_t size = image->allocation_unit;
    Allocation a = {.offset = offset, .length = size}, *list = &a;
    ExtentList map;
    extent_list_init(&map);
    extent_list_init(&a.extents);
    int r = image_map(image, offset, size, &map);
    if (r == 0 && (map.items[0].flags & EXTENT_WRITABLE)) {
        r = store_write(image->store, bytes, size, map.items[0].host_offset);
    } else if (r == 0) {
        r = image->format->allocate(image, &list, 1);
        if (r == 0) {
            r = store_write(image->store, bytes, size, a.extents.items[0].host_offset);
            r = r < 0 ? r : image->format->commit(image, &list, 1);
        }
    }
    extent_list_clear(&map);
    extent_list_clear(&a.extents);
    if (image->marks) {
        image->format->mark(image, offset, size);
    }
    return r;
}

uint32_t script_value(unsigned step, unsigned cluster)
{
    return (step + 1) << 16 | (cluster + 1);
}

static void fill(uint8_t *bytes, uint64_t size, uint32_t value)
{
    for (uint64_t i = 0; i < size; i += 4) {
        memcpy(bytes + i, &value, 4);
    }
}

bool script_write(Image *image, unsigned step, unsigned first, unsigned count)
{
    uint64_t size = image->allocation_unit;
    g_autofree uint8_t *bytes = g_malloc(size);
    for (unsigned i = first; i < first + count; i++) {
        fill(bytes, size, script_value(step, i));
        if (write_cluster(image, i * size, bytes) < 0) {
            return false;
        }
    }
    return image->format->flush(image) == 0;
}

ScriptIs script_disk_is(Image *image, const ScriptDisk *before, const ScriptDisk *after,
                        bool changed[SCRIPT_CLUSTERS])
{
    uint64_t size = image->allocation_unit, length = SCRIPT_CLUSTERS * size;
    g_autofree uint8_t *bytes = g_malloc(length), *wanted = g_malloc(size);
    if (image->size != length || chain_read(image, bytes, length, 0) != 0) {
        return SCRIPT_OTHER;
    }
    unsigned as_before = 0, as_after = 0, between = 0;
    for (unsigned i = 0; i < SCRIPT_CLUSTERS; i++) {
        fill(wanted, size, before->values[i]);
        bool same = memcmp(bytes + i * size, wanted, size) == 0;
        as_before += same;
        between += same || before->values[i] != after->values[i];
        if (changed) {
            changed[i] = !same;
        }
        fill(wanted, size, after->values[i]);
        as_after += memcmp(bytes + i * size, wanted, size) == 0;
    }
    return as_before == SCRIPT_CLUSTERS  ? SCRIPT_BEFORE
           : as_after == SCRIPT_CLUSTERS ? SCRIPT_AFTER
           : between == SCRIPT_CLUSTERS  ? SCRIPT_BETWEEN
                                         : SCRIPT_OTHER;
}

/* ---- runs ---- */

static bool end_session(Image *image)
{
    bool ok = image_finish(image) == 0;
    image_unref(image);
    return ok;
}

/* Until a step fails. ends: when each had ended. How many went well. */
static unsigned run_steps(const Script *script, Store *store, uint64_t *ends)
{
    Image *image = NULL;
    unsigned done = 0;
    for (bool ok = true; ok && done < script->steps;) {
        g_autoptr(GError) error = NULL;
        image = image ? image : script_open(store, true, NULL, &error);
        ok = image && script->run(image, done);
        if (image && script->sessions) {
            ok &= end_session(image);
            image = NULL;
        }
        if (ok) {
            ends[done++] = record_tick(store);
        }
    }
    if (image) {
        (void)end_session(image);
    }
    return done;
}

/* Version 2 has no dirty bit: COPIED may be missing there, which harms nobody. */
static const char *check(const Script *script, Store *store)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = script_open(store, true, NULL, &error);
    CheckResult result = {0};
    if (!image) {
        return "does not open for writing";
    }
    if (!image->format->check(image, CHECK_REPORT_ONLY, &result, &error) ||
        result.check_errors > 0 ||
        (result.corruptions > 0 && strcmp(script->compat, "0.10") != 0)) {
        return "check finds corruption";
    }
    return NULL;
}

/* step: the one that was under way. */
static void verify(Test *test, Store *store, unsigned step, const char *what, uint64_t number)
{
    const Script *script = test->script;
    const char *wrong = script->look(store, step);
    wrong = wrong ? wrong : check(script, store);
    if (!wrong && script->look_again && script->look(store, step)) {
        wrong = "what was there is not there any more";
    }
    test->tried++;
    if (wrong) {
        test->bad++;
        printf("%s: %s %lu, step %u: %s\n", script->name, what, number, step, wrong);
    }
}

/* ---- cuts and faults ---- */

static uint64_t stride(void)
{
    return max_u64(1, 100 / scaled(100));
}

static void try_cuts(Test *test, Store *store, const uint64_t *ends, unsigned done)
{
    size_t count;
    const RecordEntry *entries = record_entries(store, &count);
    ImageBytes start = image_bytes_of(test->content, test->content_size);
    Replay *replay = replay_new(entries, count, &start, 1);
    uint64_t last = record_tick(store);
    unsigned step = 0;
    for (uint64_t cut = 1; cut <= last && test->bad < BAD_ENOUGH; cut += stride()) {
        while (step < done && ends[step] < cut) {
            step++;
        }
        for (unsigned n = 0; n < STATES_A_CUT; n++) {
            replay_state(replay, cut, n, NULL);
            verify(test, replay_store(replay), step, "cut", cut);
        }
    }
    replay_free(replay);
}

static void verify_as_is(Test *test, Store *store, unsigned done, const char *what, uint64_t number)
{
    uint64_t size;
    const uint8_t *content = record_content(store, &size);
    g_autoptr(Store) left = store_scratch_new("left", content, size);
    verify(test, left, done, what, number);
}

static void try_fault(Test *test, FaultKind kind, uint64_t at, bool forever)
{
    g_autofree uint64_t *ends = g_new(uint64_t, test->script->steps);
    FaultPlan plan;
    fault_plan_init(&plan, kind, at, forever, -EIO);
    RecordOptions options = {.seed = 1, .faults = &plan};
    g_autoptr(Store) store = store_record_new("image", test->content, test->content_size, &options);
    unsigned done = run_steps(test->script, store, ends);
    verify_as_is(test, store, done, fault_kind_name(kind), at);
    fault_plan_clear(&plan);
}

static void try_faults(Test *test, const uint64_t counts[FAULT_KINDS])
{
    for (unsigned kind = 0; kind < FAULT_KINDS; kind++) {
        for (uint64_t at = 1; at <= counts[kind] && test->bad < BAD_ENOUGH; at += stride()) {
            try_fault(test, kind, at, false);
            try_fault(test, kind, at, true);
        }
    }
}

uint64_t script_try(const Script *script, uint64_t *tried)
{
    Test test;
    watchdog_set(300, script->name);
    test_init(&test, script);
    g_autofree uint64_t *ends = g_new(uint64_t, script->steps);
    FaultPlan none;
    fault_plan_init(&none, FAULT_READ, 0, false, 0);
    RecordOptions options = {.seed = 1, .faults = &none};
    Store *store = store_record_new("image", test.content, test.content_size, &options);
    unsigned done = run_steps(script, store, ends);
    uint64_t counts[FAULT_KINDS];
    memcpy(counts, none.counts, sizeof counts);
    if (done != script->steps) {
        printf("%s: step %u fails\n", script->name, done);
        test.bad++;
    }
    verify_as_is(&test, store, done, "end", 0);
    try_cuts(&test, store, ends, done);
    store_unref(store);
    fault_plan_clear(&none);
    try_faults(&test, counts);
    g_free(test.content);
    *tried += test.tried;
    return test.bad;
}
