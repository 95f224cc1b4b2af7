/*
 * Power cuts during a fold: everywhere in the record of one, the image is what a cut may leave, the
 * store what it was then, and the fold is begun again, or was done. In the end the disk is what the
 * device was, to the byte, and the image checks clean.
 *
 * A fold that was begun again is recorded too, and cut in turn. And the k-th operation of the
 * image's store fails, for every k: the fold says so, and one without faults brings it to the end.
 *
 * The store file is no record: the fold changes nothing in it but its state, at one moment, which a
 * store that looks at the image's clock tells. Before it, the state is FOLDING; from it on, FOLDED,
 * and then all of the image must be durable.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "fastpath/cowstore.h"
#include "fastpath/fold.h"
#include "replay.h"
#include "setups.h"
#include "tests/lib/random.h"
#include "tests/lib/store-memory.h"
#include "tests/lib/store-scratch.h"

#define CHUNK        16384u
#define STATES_A_CUT 3
#define CUTS         60 /* of a fold; scaled */
#define FAULTS       12 /* of each kind; scaled */

typedef struct Totals {
    uint64_t states, again, faults, bad;
} Totals;

/* What is folded into what. */
typedef struct Scene {
    const Fixture *fixture;
    Machine *machine;
    Store *cow;
    Exceptions list;
    uint8_t *expected, *disk; /* contents of the whole disk */
    Totals *totals;
} Scene;

static Store *clock_store;  /* the record of the image that is being folded into */
static uint64_t mark_tick;  /* its time when the store was marked */
static StoreOps marked_ops; /* those of a store in memory, but for the write */
static int (*memory_pwritev)(Store *, const struct iovec *, int, uint64_t);

static int marking_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    if (clock_store) {
        mark_tick = record_tick(clock_store);
    }
    return memory_pwritev(store, iov, count, offset);
}

static bool bad(Scene *scene, const char *what, const char *detail)
{
    scene->totals->bad++;
    printf("%s: FAILED: %s: %s\n", scene->fixture->setup->name, what, detail);
    return false;
}

/* ---- a scene ------------------------------------------------------------------------------- */

static Store *cow_new(uint64_t disk_size)
{
    Store *cow = store_memory_new("store", NULL, COWSTORE_BASE);
    memory_pwritev = cow->ops->pwritev;
    marked_ops = *cow->ops;
    marked_ops.pwritev = marking_pwritev;
    cow->ops = &marked_ops;
    CowstoreHeader header = {
        .state = COWSTORE_FOLDING, .chunk = CHUNK, .origin.disk_size = disk_size};
    cowstore_write_header(cow, &header);
    return cow;
}

/* Half of the chunks of the disk, in no order, some of them zeroes. */
static void fill_store(Scene *scene, Random *random)
{
    uint64_t size = scene->fixture->setup->disk_size, chunks = div_round_up(size, CHUNK);
    static uint8_t contents[CHUNK];
    ExceptionWriter writer;
    exceptions_writer_init(&writer, scene->cow, COWSTORE_BASE, CHUNK);
    uint64_t first = random_below(random, chunks);
    for (uint64_t i = 0; i < chunks; i++) {
        uint64_t chunk = (first + i * 7) % chunks; /* no count of chunks is a multiple of 7 */
        if (random_percent(random, 50)) {
            continue;
        }
        uint64_t seed = random_next(random);
        for (unsigned at = 0; at < CHUNK; at += 8) {
            store_le64(contents + at, random_mix(seed + at));
        }
        if (random_percent(random, 25)) {
            memset(contents, 0, CHUNK);
        }
        exceptions_append(&writer, chunk, contents);
        memcpy(scene->expected + chunk * CHUNK, contents, min_u64(CHUNK, size - chunk * CHUNK));
    }
}

static bool read_disk(Scene *scene, Store *store, uint8_t *disk)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(scene->fixture, store, false, &error);
    if (!image) {
        return bad(scene, "does not open", error->message);
    }
    int r = chain_read(image, disk, image->size, 0);
    return r == 0 || bad(scene, "cannot be read", g_strerror(-r));
}

static bool scene_init(Scene *scene, uint64_t seed)
{
    const Fixture *fixture = scene->fixture;
    uint64_t size = fixture->setup->disk_size;
    Random random = random_new(seed);
    g_autoptr(Store) start = store_scratch_new("start", fixture->content, fixture->content_size);
    scene->disk = g_malloc(size);
    scene->expected = g_malloc(size);
    scene->cow = cow_new(size);
    if (!read_disk(scene, start, scene->expected)) {
        return false;
    }
    fill_store(scene, &random);
    g_autoptr(GError) error = NULL;
    return exceptions_read(scene->cow, COWSTORE_BASE, size, &scene->list, &error) ||
           bad(scene, "the store", error->message);
}

static void scene_clear(Scene *scene)
{
    exceptions_clear(&scene->list);
    store_unref(scene->cow);
    g_free(scene->disk);
    g_free(scene->expected);
}

/* ---- folds --------------------------------------------------------------------------------- */

/* As fold_image does after it has marked the store. */
static bool fold_once(Scene *scene, Store *store, GError **error)
{
    g_autoptr(Image) image = fixture_open(scene->fixture, store, true, error);
    FoldOptions options = {0};
    FoldResult result = {0};
    FoldThreads threads = {.pool = scene->machine->pool, .worker = scene->machine->workers[0]};
    return image && fold_run(scene->cow, &scene->list, image, &threads, &options, &result, error);
}

static bool check_end(Scene *scene, Store *store)
{
    if (!read_disk(scene, store, scene->disk)) {
        return false;
    }
    if (memcmp(scene->disk, scene->expected, scene->fixture->setup->disk_size) != 0) {
        return bad(scene, "the disk", "is not what the device was");
    }
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(scene->fixture, store, true, &error);
    CheckResult result = {0};
    if (!image || (image->format->check &&
                   !image->format->check(image, CHECK_REPORT_ONLY, &result, &error))) {
        return bad(scene, "cannot be checked", error->message);
    }
    return result.corruptions + result.check_errors == 0 || bad(scene, "check", "finds damage");
}

/* A fold on a recording store, uncut. */
static Store *fold_recorded(Scene *scene, const uint8_t *content, uint64_t size, FaultPlan *plan,
                            uint64_t seed, bool *folded)
{
    RecordOptions how = {.pool = scene->machine->io_pool, .seed = seed, .faults = plan};
    how.eagain_percent = 30;
    Store *store = store_record_new("image", content, size, &how);
    g_autoptr(GError) error = NULL;
    clock_store = store;
    mark_tick = RECORD_NEVER;
    *folded = fold_once(scene, store, &error);
    clock_store = NULL;
    if (!*folded && !plan) {
        bad(scene, "fold", error->message);
    }
    return store;
}

/* One state of a cut. *survivor: a copy of it, when it was cut before the end; g_free. */
static void try_state(Scene *scene, Replay *replay, uint64_t cut, unsigned number,
                      GBytes **survivor)
{
    g_autoptr(GError) error = NULL;
    Store *store = replay_store(replay);
    scene->totals->states++;
    replay_state(replay, cut, number, NULL);
    if (cut <= mark_tick && survivor && !*survivor && number > 1) {
        uint64_t size;
        const uint8_t *content = scratch_content(store, &size);
        *survivor = g_bytes_new(content, size);
    }
    if (cut <= mark_tick) {
        scene->totals->again++;
        if (!fold_once(scene, store, &error)) {
            bad(scene, "fold after a cut", error->message);
            return;
        }
    }
    if (!check_end(scene, store)) {
        printf("    cut %lu, state %u; the store was marked at %lu\n", cut, number, mark_tick);
    }
}

/* Folds, and tries cuts all over the record and around its end. */
static void cut_fold(Scene *scene, const uint8_t *content, uint64_t size, uint64_t seed,
                     GBytes **survivor)
{
    bool folded;
    g_autoptr(Store) store = fold_recorded(scene, content, size, NULL, seed, &folded);
    if (!folded) {
        return;
    }
    size_t count;
    const RecordEntry *entries = record_entries(store, &count);
    uint64_t mark = mark_tick, last = record_tick(store), cuts = min_u64(scaled(CUTS), last);
    Replay *replay = replay_new(entries, count, content, size, seed);
    uint64_t before = 0;
    for (uint64_t i = 0; i <= cuts; i++) {
        uint64_t cut = 1 + last * i / (cuts + 1);
        if (before < mark && cut >= mark) { /* the two moments that count */
            cut = before == mark - 1 ? mark + 1 : mark;
        }
        mark_tick = mark;
        for (unsigned n = 0; n < STATES_A_CUT; n++) {
            unsigned number = n < 2 ? n : n + STATES_A_CUT * i;
            try_state(scene, replay, cut, number, i > cuts / 3 ? survivor : NULL);
        }
        before = cut;
    }
    mark_tick = mark;
    try_state(scene, replay, max_u64(before, mark + 1), 0, NULL);
    replay_free(replay);
}

/* The k-th operation fails, once. */
static void fault_fold(Scene *scene, FaultKind kind, uint64_t at, int code)
{
    FaultPlan plan;
    bool folded;
    uint64_t size;
    fault_plan_init(&plan, kind, at, false, code);
    g_autoptr(Store) store = fold_recorded(scene, scene->fixture->content,
                                           scene->fixture->content_size, &plan, at, &folded);
    const uint8_t *content = record_content(store, &size);
    g_autoptr(Store) after = store_scratch_new("after the fault", content, size);
    g_autoptr(GError) error = NULL;
    scene->totals->faults++;
    if (!folded && mark_tick != RECORD_NEVER) {
        bad(scene, "fold", "failed, and yet the store is marked");
    }
    if (!folded && !fold_once(scene, after, &error)) {
        bad(scene, "fold after a fault", error->message);
        return;
    }
    check_end(scene, after);
    fault_plan_clear(&plan);
}

static void fault_folds(Scene *scene)
{
    static const FaultKind kinds[] = {FAULT_READ, FAULT_WRITE, FAULT_SYNC, FAULT_PUNCH};
    for (unsigned k = 0; k < G_N_ELEMENTS(kinds); k++) {
        FaultPlan counting;
        bool folded;
        fault_plan_init(&counting, kinds[k], 0, false, 0);
        Store *store = fold_recorded(scene, scene->fixture->content, scene->fixture->content_size,
                                     &counting, 0, &folded);
        uint64_t operations = counting.counts[kinds[k]];
        store_unref(store);
        fault_plan_clear(&counting);
        uint64_t tries = min_u64(scaled(FAULTS), operations);
        for (uint64_t i = 0; i < tries; i++) {
            fault_fold(scene, kinds[k], 1 + operations * i / tries, i % 2 ? -EIO : -ENOSPC);
        }
    }
}

static void try_setup(const Setup *setup, uint64_t seed, Machine *machine, Totals *totals)
{
    watchdog_set(600, setup->name);
    Fixture *fixture = fixture_new(setup);
    Scene scene = {.fixture = fixture, .machine = machine, .totals = totals};
    GBytes *survivor = NULL;
    if (scene_init(&scene, seed)) {
        cut_fold(&scene, fixture->content, fixture->content_size, seed, &survivor);
        if (survivor) {
            gsize size;
            const uint8_t *content = g_bytes_get_data(survivor, &size);
            cut_fold(&scene, content, size, random_mix(seed), NULL);
            g_bytes_unref(survivor);
        }
        fault_folds(&scene);
    }
    scene_clear(&scene);
    fixture_free(fixture);
}

int main(void)
{
    static const char *const names[] = {
        "v3-4k",
        "v3-4k-overlay-raw",
        "v2-4k-overlay-qcow2",
        "v3-64k",
        "v3-4k-r1-overlay-raw-odd",
        "v3-4k-lazy-overlay-qcow2",
        "v3-4k-compressed",
        "v3-4k-snapshot",
        "raw",
    };
    log_set_level(LOG_LEVEL_ERROR);
    Machine machine;
    Totals totals = {0};
    machine_start(&machine);
    for (unsigned i = 0; i < G_N_ELEMENTS(names) && totals.bad < 5; i++) {
        const Setup *setup = setup_find(names[i]);
        if (setup) {
            try_setup(setup, 100 + i, &machine, &totals);
        }
    }
    machine_stop(&machine);
    printf("states %lu, of them folded again %lu; faults %lu; bad %lu\n", totals.states,
           totals.again, totals.faults, totals.bad);
    return totals.bad ? 1 : 0;
}
