/*
 * Internal snapshots and the power: a script of writes and snapshots made, applied and deleted, cut at
 * every place of its record, and with every operation of the store failing in turn.
 *
 * Whatever happens, a step is done or not done: the list of snapshots, the contents of each and of the
 * disk are those of before or of after. The image opens for writing, and is then without corruption.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "replay.h"
#include "setups.h"
#include "tests/lib/random.h"
#include "tests/lib/store-memory.h"
#include "tests/lib/store-scratch.h"

#define CLUSTERS      150
#define SNAPSHOTS_MAX 4
#define STATES_A_CUT  4

typedef enum { STEP_WRITE, STEP_CREATE, STEP_APPLY, STEP_DELETE } StepKind;

typedef struct Step {
    StepKind kind;
    const char *name;      /* of the snapshot */
    unsigned first, count; /* WRITE: clusters */
} Step;

static const Step script[] = {
    {STEP_WRITE, NULL, 0, 90},  {STEP_CREATE, "one"},       {STEP_WRITE, NULL, 20, 12},
    {STEP_WRITE, NULL, 130, 9}, {STEP_CREATE, "two"},       {STEP_WRITE, NULL, 0, 5},
    {STEP_CREATE, "three"},     {STEP_DELETE, "two"},       {STEP_WRITE, NULL, 18, 9},
    {STEP_APPLY, "one"},        {STEP_WRITE, NULL, 80, 20}, {STEP_DELETE, "one"},
    {STEP_APPLY, "three"},      {STEP_WRITE, NULL, 10, 30}, {STEP_DELETE, "three"},
};

/* Each cluster is filled with one number, its value. */
typedef struct Disk {
    uint32_t values[CLUSTERS];
} Disk;

typedef struct Snap {
    const char *name; /* NULL: free */
    Disk disk;
} Snap;

typedef struct State {
    Disk disk;
    Snap snaps[SNAPSHOTS_MAX];
} State;

typedef struct Kind {
    const char *name, *cluster_size, *refcount_bits, *compat;
} Kind;

static const Kind kinds[] = {
    {"v3-512", "512", "16", "1.1"},
    {"v3-4k-r64", "4096", "64", "1.1"},
    {"v3-512-r4", "512", "4", "1.1"},
    {"v2-512", "512", NULL, "0.10"},
};

typedef struct Test {
    const Kind *kind;
    uint64_t cluster_size;
    uint8_t *content; /* the new image */
    uint64_t content_size;
    State states[G_N_ELEMENTS(script) + 1]; /* before each step; the last: after all */
    uint64_t tried, bad;
} Test;

/* ---- the model ---- */

static Snap *find_snap(State *state, const char *name)
{
    for (unsigned i = 0; i < SNAPSHOTS_MAX; i++) {
        if (g_strcmp0(state->snaps[i].name, name) == 0) {
            return &state->snaps[i];
        }
    }
    return NULL;
}

static uint32_t value_of(unsigned step, unsigned cluster)
{
    return (step + 1) << 16 | (cluster + 1);
}

static void advance(State *state, unsigned number)
{
    const Step *step = &script[number];
    Snap *snap = step->name ? find_snap(state, step->name) : NULL;
    switch (step->kind) {
    case STEP_WRITE:
        for (unsigned i = step->first; i < step->first + step->count; i++) {
            state->disk.values[i] = value_of(number, i);
        }
        return;
    case STEP_CREATE:
        snap = find_snap(state, NULL);
        *snap = (Snap){.name = step->name, .disk = state->disk};
        return;
    case STEP_APPLY:
        state->disk = snap->disk;
        return;
    case STEP_DELETE:
        snap->name = NULL;
        return;
    }
}

/* ---- the image ---- */

static void test_init(Test *test, const Kind *kind)
{
    *test = (Test){.kind = kind, .cluster_size = strtoull(kind->cluster_size, NULL, 10)};
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, "cluster_size", (char *)kind->cluster_size);
    g_hash_table_insert(options, "compat", (char *)kind->compat);
    if (kind->refcount_bits) {
        g_hash_table_insert(options, "refcount_bits", (char *)kind->refcount_bits);
    }
    FormatCreate how = {.size = CLUSTERS * test->cluster_size, .options = options};
    g_autoptr(Store) store = store_memory_new("new", NULL, 0);
    g_autoptr(GError) error = NULL;
    if (!format_qcow2.create(store, &how, &error)) {
        g_error("%s", error->message);
    }
    const uint8_t *content = store_memory_content(store, &test->content_size);
    test->content = g_memdup2(content, test->content_size);
    for (unsigned i = 0; i < G_N_ELEMENTS(script); i++) {
        test->states[i + 1] = test->states[i];
        advance(&test->states[i + 1], i);
    }
}

static Image *open_image(Store *store, bool write, const char *snapshot, GError **error)
{
    ImageOpen how = {.format = &format_qcow2, .write = write, .snapshot = snapshot};
    return image_open_store(store, &how, NULL, error);
}

/* Writes one cluster, as the engine does. */
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
    return r;
}

static void fill(uint8_t *bytes, uint64_t size, uint32_t value)
{
    for (uint64_t i = 0; i < size; i += 4) {
        memcpy(bytes + i, &value, 4);
    }
}

static bool run_step(Image *image, unsigned number)
{
    const Step *step = &script[number];
    uint64_t size = image->allocation_unit;
    g_autofree uint8_t *bytes = g_malloc(size);
    g_autoptr(GError) error = NULL;
    switch (step->kind) {
    case STEP_CREATE:
        return image->format->snapshot_create(image, step->name, &error);
    case STEP_APPLY:
        return image->format->snapshot_apply(image, step->name, &error);
    case STEP_DELETE:
        return image->format->snapshot_delete(image, step->name, &error);
    default:
        break;
    }
    for (unsigned i = step->first; i < step->first + step->count; i++) {
        fill(bytes, size, value_of(number, i));
        if (write_cluster(image, i * size, bytes) < 0) {
            return false;
        }
    }
    return image->format->flush(image) == 0;
}

/* Runs the script until a step fails. ends: when each step had ended. How many went well. */
static unsigned run_script(Store *store, uint64_t ends[G_N_ELEMENTS(script)])
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_image(store, true, NULL, &error);
    unsigned done = 0;
    while (image && done < G_N_ELEMENTS(script) && run_step(image, done)) {
        ends[done++] = record_tick(store);
    }
    if (image) {
        (void)image_finish(image);
    }
    return done;
}

/* ---- what must be true ---- */

/* A disk is as before, or as after; a write that was under way may be there in part. */
static bool disk_is(const Image *image, const Disk *before, const Disk *after, bool in_part)
{
    uint64_t size = image->allocation_unit, length = CLUSTERS * size;
    g_autofree uint8_t *bytes = g_malloc(length), *wanted = g_malloc(size);
    if (image->size != length || chain_read((Image *)image, bytes, length, 0) != 0) {
        return false;
    }
    unsigned as_before = 0, as_after = 0, as_either = 0;
    for (unsigned i = 0; i < CLUSTERS; i++) {
        fill(wanted, size, before->values[i]);
        bool is_before = memcmp(bytes + i * size, wanted, size) == 0;
        fill(wanted, size, after->values[i]);
        bool is_after = memcmp(bytes + i * size, wanted, size) == 0;
        /* A write in place may be torn. */
        as_before += is_before;
        as_after += is_after;
        as_either += is_before || is_after || (in_part && before->values[i] != after->values[i]);
    }
    return as_before == CLUSTERS || as_after == CLUSTERS || (in_part && as_either == CLUSTERS);
}

static bool snapshots_are(Store *store, const Image *image, const State *wanted)
{
    unsigned count = 0;
    GVariantBuilder list;
    g_variant_builder_init(&list, G_VARIANT_TYPE("aa{sv}"));
    image->format->snapshots(image, &list);
    g_autoptr(GVariant) found = g_variant_ref_sink(g_variant_builder_end(&list));
    for (unsigned i = 0; i < SNAPSHOTS_MAX; i++) {
        const Snap *snap = &wanted->snaps[i];
        g_autoptr(GError) error = NULL;
        if (snap->name == NULL) {
            continue;
        }
        count++;
        g_autoptr(Image) shown = open_image(store, false, snap->name, &error);
        if (!shown || !disk_is(shown, &snap->disk, &snap->disk, false)) {
            return false;
        }
    }
    return count == g_variant_n_children(found);
}

static const char *look(Test *test, Store *store, unsigned step)
{
    const State *before = &test->states[step];
    const State *after = &test->states[MIN(step + 1, G_N_ELEMENTS(script))];
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_image(store, false, NULL, &error);
    if (!image) {
        return "does not open";
    }
    bool writing = step < G_N_ELEMENTS(script) && script[step].kind == STEP_WRITE;
    if (!disk_is(image, &before->disk, &after->disk, writing)) {
        return "the disk is wrong";
    }
    if (!snapshots_are(store, image, before) && !snapshots_are(store, image, after)) {
        return "a snapshot is wrong";
    }
    return NULL;
}

/* Version 2 has no dirty bit: COPIED may be missing there, which harms nobody. */
static const char *check(const Test *test, Store *store)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_image(store, true, NULL, &error);
    CheckResult result = {0};
    if (!image) {
        return "does not open for writing";
    }
    if (!image->format->check(image, CHECK_REPORT_ONLY, &result, &error) ||
        result.check_errors > 0 ||
        (result.corruptions > 0 && strcmp(test->kind->compat, "0.10") != 0)) {
        return "check finds corruption";
    }
    return NULL;
}

/* step: the one that was under way. */
static void verify(Test *test, Store *store, unsigned step, const char *what, uint64_t number)
{
    const char *wrong = look(test, store, step);
    wrong = wrong ? wrong : check(test, store);
    if (!wrong && look(test, store, step)) {
        wrong = "what was there is not there any more";
    }
    test->tried++;
    if (wrong) {
        test->bad++;
        printf("%s: %s %lu, step %u: %s\n", test->kind->name, what, number, step, wrong);
    }
}

/* ---- cuts and faults ---- */

static void try_cuts(Test *test, Store *store, const uint64_t ends[], unsigned done)
{
    size_t count;
    const RecordEntry *entries = record_entries(store, &count);
    Replay *replay = replay_new(entries, count, test->content, test->content_size, 1);
    uint64_t last = record_tick(store), stride = max_u64(1, 100 / scaled(100));
    unsigned step = 0;
    for (uint64_t cut = 1; cut <= last && test->bad < 5; cut += stride) {
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

static void try_fault(Test *test, FaultKind kind, uint64_t at, bool forever)
{
    uint64_t ends[G_N_ELEMENTS(script)];
    FaultPlan plan;
    fault_plan_init(&plan, kind, at, forever, -EIO);
    RecordOptions options = {.seed = 1, .faults = &plan};
    g_autoptr(Store) store = store_record_new("image", test->content, test->content_size, &options);
    unsigned done = run_script(store, ends);
    uint64_t size;
    const uint8_t *content = record_content(store, &size);
    g_autoptr(Store) left = store_scratch_new("left", content, size);
    verify(test, left, done, fault_kind_name(kind), at);
    fault_plan_clear(&plan);
}

static void try_kind(Test *test)
{
    uint64_t ends[G_N_ELEMENTS(script)], counts[FAULT_KINDS];
    FaultPlan none;
    fault_plan_init(&none, FAULT_READ, 0, false, 0);
    RecordOptions options = {.seed = 1, .faults = &none};
    Store *store = store_record_new("image", test->content, test->content_size, &options);
    unsigned done = run_script(store, ends);
    memcpy(counts, none.counts, sizeof counts);
    if (done != G_N_ELEMENTS(script)) {
        printf("%s: step %u fails\n", test->kind->name, done);
        test->bad++;
    }
    try_cuts(test, store, ends, done);
    store_unref(store);
    fault_plan_clear(&none);
    uint64_t stride = max_u64(1, 100 / scaled(100));
    for (unsigned kind = 0; kind < FAULT_KINDS; kind++) {
        for (uint64_t at = 1; at <= counts[kind] && test->bad < 5; at += stride) {
            try_fault(test, kind, at, false);
            try_fault(test, kind, at, true);
        }
    }
}

int main(int argc, char **argv)
{
    uint64_t tried = 0, bad = 0;
    log_set_level(LOG_LEVEL_ERROR);
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        Test test;
        watchdog_set(300, kinds[i].name);
        test_init(&test, &kinds[i]);
        try_kind(&test);
        tried += test.tried;
        bad += test.bad;
        g_free(test.content);
    }
    printf("states %lu, bad %lu\n", tried, bad);
    return bad ? 1 : 0;
}
