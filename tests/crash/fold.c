/*
 * Power cuts during a fold: everywhere in the record of one, the image is what a cut may leave, the
 * store what it was then, and the fold is begun again, or was done. In the end the disk is what the
 * device was, to the byte, and the image checks clean.
 *
 * A fold that was begun again is recorded too, and cut in turn. And the k-th operation of the
 * image's store fails, for every k: the fold says so, and one without faults brings it to the end.
 *
 * The store file is no record: the fold writes nothing to it but its header, some times, and a store
 * that looks at the image's clock tells when. What the header of a moment says to be in the image is
 * taken out of the store that a cut at that moment leaves: the fold may have given it up. When it
 * says FOLDED, all of the image must be durable.
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
#include "tests/lib/scale.h"
#include "tests/lib/store-memory.h"
#include "tests/lib/store-scratch.h"

#define CHUNK        16384u
#define STATES_A_CUT 3
#define CUTS         60 /* of a fold; scaled */
#define FLUSH_AFTER  (6 * CHUNK)
#define FAULTS       12 /* of each kind; scaled */

typedef struct Totals {
    uint64_t states, again, faults, bad;
} Totals;

/* What is folded into what. */
typedef struct Scene {
    const Fixture *fixture;
    Machine *machine;
    const uint8_t *cow; /* the store file at the start */
    uint64_t cow_size;
    Exceptions list;
    uint8_t *expected, *disk; /* contents of the whole disk */
    Totals *totals;
} Scene;

#define HEADER 512u /* bytes that hold the header of a store file */

/* The header as it was written at a time of the image's clock. */
typedef struct Moment {
    uint64_t tick;
    uint8_t header[HEADER];
} Moment;

static Store *clock_store;  /* the record of the image that is being folded into */
static GArray *moments;     /* of its fold, Moment */
static StoreOps marked_ops; /* those of a store in memory, but for the write */
static int (*memory_pwritev)(Store *, const struct iovec *, int, uint64_t);

static int marking_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    Moment moment = {0};
    int r = memory_pwritev(store, iov, count, offset);
    if (clock_store) {
        moment.tick = record_tick(clock_store);
        store_read(store, moment.header, HEADER, 0);
        g_array_append_val(moments, moment);
    }
    return r;
}

static bool bad(Scene *scene, const char *what, const char *detail)
{
    scene->totals->bad++;
    printf("%s: FAILED: %s: %s\n", scene->fixture->setup->name, what, detail);
    return false;
}

/* ---- a scene ------------------------------------------------------------------------------- */

/* The store file with this header (NULL: that of the start), without what that says to be done. */
static Store *cow_at(const Scene *scene, const uint8_t *header)
{
    CowstoreHeader says = {0};
    static uint8_t rubbish[CHUNK];
    Store *cow = store_memory_new("store", scene->cow, scene->cow_size);
    if (header) {
        store_write(cow, header, HEADER, 0);
        cowstore_read_header(cow, &says, NULL);
    }
    memset(rubbish, 0xee, sizeof rubbish);
    for (uint64_t i = 0; i < scene->list.count; i++) {
        if (scene->list.items[i].origin < says.folded_to) {
            store_write(cow, rubbish, CHUNK,
                        exceptions_offset(&scene->list, COWSTORE_BASE, scene->list.items[i].store));
        }
    }
    memory_pwritev = cow->ops->pwritev;
    marked_ops = *cow->ops;
    marked_ops.pwritev = marking_pwritev;
    cow->ops = &marked_ops;
    return cow;
}

/* Half of the chunks of the disk, in no order, some of them zeroes. */
static void fill_store(Scene *scene, Store *cow, Random *random)
{
    uint64_t size = scene->fixture->setup->disk_size, chunks = div_round_up(size, CHUNK);
    static uint8_t contents[CHUNK];
    ExceptionWriter writer;
    CowstoreHeader header = {.state = COWSTORE_FOLDING, .chunk = CHUNK, .origin.disk_size = size};
    cowstore_write_header(cow, &header);
    exceptions_writer_init(&writer, cow, COWSTORE_BASE, CHUNK);
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

static Image *open_image(const Scene *scene, Store *store, bool write, GError **error)
{
    ImageFiles files = image_files_of(store);
    return fixture_open(scene->fixture, &files, write, error);
}

static bool read_disk(Scene *scene, Store *store, uint8_t *disk)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_image(scene, store, false, &error);
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
    const FileBytes *image = fixture->content.files;
    g_autoptr(Store) start = store_scratch_new("start", image->bytes, image->size);
    scene->disk = g_malloc(size);
    scene->expected = g_malloc(size);
    g_autoptr(Store) cow = store_memory_new("store", NULL, COWSTORE_BASE);
    if (!read_disk(scene, start, scene->expected)) {
        return false;
    }
    fill_store(scene, cow, &random);
    const uint8_t *bytes = store_memory_content(cow, &scene->cow_size);
    scene->cow = g_memdup2(bytes, scene->cow_size);
    g_autoptr(GError) error = NULL;
    return exceptions_read(cow, COWSTORE_BASE, size, &scene->list, &error) ||
           bad(scene, "the store", error->message);
}

static void scene_clear(Scene *scene)
{
    exceptions_clear(&scene->list);
    g_free((uint8_t *)scene->cow);
    g_free(scene->disk);
    g_free(scene->expected);
}

/* ---- folds --------------------------------------------------------------------------------- */

/* As fold_image does after it has marked the store. */
static bool fold_once(Scene *scene, Store *cow, Store *store, GError **error)
{
    g_autoptr(Image) image = open_image(scene, store, true, error);
    FoldOptions options = {.flush_after = FLUSH_AFTER};
    FoldResult result = {0};
    FoldThreads threads = {.pool = scene->machine->pool, .worker = scene->machine->workers[0]};
    return image && fold_run(cow, &scene->list, image, &threads, &options, &result, error);
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
    g_autoptr(Image) image = open_image(scene, store, true, &error);
    CheckResult result = {0};
    if (!image || (image->format->check &&
                   !image->format->check(image, CHECK_REPORT_ONLY, &result, &error))) {
        return bad(scene, "cannot be checked", error->message);
    }
    return result.corruptions + result.check_errors == 0 || bad(scene, "check", "finds damage");
}

/* A fold on a recording store, uncut, of a store file with this header. */
static Store *fold_recorded(Scene *scene, const uint8_t *content, uint64_t size,
                            const uint8_t *header, FaultPlan *plan, uint64_t seed, bool *folded)
{
    RecordOptions how = {.pool = scene->machine->io_pool, .seed = seed, .faults = plan};
    how.eagain_percent = 30;
    Store *store = store_record_new("image", content, size, &how);
    g_autoptr(Store) cow = cow_at(scene, header);
    g_autoptr(GError) error = NULL;
    g_array_set_size(moments, 0);
    clock_store = store;
    *folded = fold_once(scene, cow, store, &error);
    clock_store = NULL;
    if (!*folded && !plan) {
        bad(scene, "fold", error->message);
    }
    return store;
}

/* The header that lay in the store when the power went; NULL: that of the start. */
static const uint8_t *header_at(const GArray *all, uint64_t cut)
{
    const uint8_t *header = NULL;
    for (unsigned i = 0; i < all->len && g_array_index(all, Moment, i).tick < cut; i++) {
        header = g_array_index(all, Moment, i).header;
    }
    return header;
}

/* Where the second fold of a pair begins. */
typedef struct Survivor {
    uint8_t *content;
    uint64_t size;
    bool has_header;
    uint8_t header[HEADER];
} Survivor;

static void keep_survivor(Survivor *survivor, Store *store, const uint8_t *header)
{
    const uint8_t *content = scratch_content(store, &survivor->size);
    g_free(survivor->content);
    survivor->content = g_memdup2(content, survivor->size);
    survivor->has_header = header != NULL;
    if (header) {
        memcpy(survivor->header, header, HEADER);
    }
}

/* One state of a cut. survivor may be NULL. */
static void try_state(Scene *scene, Replay *replay, const uint8_t *header, uint64_t cut,
                      unsigned number, Survivor *survivor)
{
    g_autoptr(GError) error = NULL;
    CowstoreHeader says;
    Store *store = replay_store(replay);
    g_autoptr(Store) cow = cow_at(scene, header);
    scene->totals->states++;
    replay_state(replay, cut, number, NULL);
    cowstore_read_header(cow, &says, NULL);
    if (says.state == COWSTORE_FOLDING) {
        if (survivor) {
            keep_survivor(survivor, store, header);
        }
        scene->totals->again++;
        if (!fold_once(scene, cow, store, &error)) {
            bad(scene, "fold after a cut", error->message);
            return;
        }
    }
    if (!check_end(scene, store)) {
        printf("    cut %lu, state %u; the store said %d, folded to %lu\n", cut, number, says.state,
               says.folded_to);
    }
}

static int compare_cuts(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Cuts all over the record, and at both sides of every moment. */
static GArray *pick_cuts(const GArray *all, uint64_t last)
{
    GArray *cuts = g_array_new(false, false, sizeof(uint64_t));
    uint64_t count = min_u64(scaled(CUTS), last);
    for (uint64_t i = 0; i <= count; i++) {
        uint64_t cut = 1 + last * i / (count + 1);
        g_array_append_val(cuts, cut);
    }
    for (unsigned i = 0; i < all->len; i++) {
        uint64_t before = g_array_index(all, Moment, i).tick, after = before + 1;
        g_array_append_val(cuts, before);
        g_array_append_val(cuts, after);
    }
    g_array_sort(cuts, compare_cuts);
    return cuts;
}

/* Folds and cuts; when survivor is not NULL, one state in the middle is kept there. */
static void cut_fold(Scene *scene, const Survivor *from, uint64_t seed, Survivor *survivor)
{
    bool folded;
    const uint8_t *header = from->has_header ? from->header : NULL;
    g_autoptr(Store) store =
        fold_recorded(scene, from->content, from->size, header, NULL, seed, &folded);
    if (!folded) {
        return;
    }
    size_t count;
    const RecordEntry *entries = record_entries(store, &count);
    g_autoptr(GArray) all = g_array_copy(moments), cuts = pick_cuts(all, record_tick(store));
    ImageBytes start = image_bytes_of(from->content, from->size);
    Replay *replay = replay_new(entries, count, &start, seed);
    for (unsigned i = 0; i < cuts->len; i++) {
        uint64_t cut = g_array_index(cuts, uint64_t, i);
        const uint8_t *then = header_at(all, cut);
        for (unsigned n = 0; n < STATES_A_CUT; n++) {
            unsigned number = n < 2 ? n : n + STATES_A_CUT * i;
            bool keep = i == cuts->len / 2 && n == 2;
            try_state(scene, replay, then ? then : header, cut, number, keep ? survivor : NULL);
        }
    }
    replay_free(replay);
}

static bool says_folded(const uint8_t *header)
{
    return header && header[12] == COWSTORE_FOLDED;
}

/* The k-th operation fails, once. */
static void fault_fold(Scene *scene, FaultKind kind, uint64_t at, int code)
{
    FaultPlan plan;
    bool folded;
    uint64_t size;
    const FileBytes *start = scene->fixture->content.files;
    fault_plan_init(&plan, kind, at, false, code);
    g_autoptr(Store) store =
        fold_recorded(scene, start->bytes, start->size, NULL, &plan, at, &folded);
    const uint8_t *header = header_at(moments, RECORD_NEVER);
    const uint8_t *content = record_content(store, &size);
    g_autoptr(Store) after = store_scratch_new("after the fault", content, size);
    g_autoptr(Store) cow = cow_at(scene, header);
    g_autoptr(GError) error = NULL;
    scene->totals->faults++;
    if (folded != says_folded(header)) {
        bad(scene, "fold", folded ? "is not marked" : "failed, and yet the store is marked");
    }
    if (!folded && !fold_once(scene, cow, after, &error)) {
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
        const FileBytes *start = scene->fixture->content.files;
        Store *store = fold_recorded(scene, start->bytes, start->size, NULL, &counting, 0, &folded);
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
    const FileBytes *image = fixture->content.files;
    Survivor start = {.content = image->bytes, .size = image->size}, middle = {0};
    if (scene_init(&scene, seed)) {
        cut_fold(&scene, &start, seed, &middle);
        if (middle.content) {
            cut_fold(&scene, &middle, random_mix(seed), NULL);
        }
        fault_folds(&scene);
    }
    g_free(middle.content);
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
    moments = g_array_new(false, false, sizeof(Moment));
    for (unsigned i = 0; i < G_N_ELEMENTS(names) && totals.bad < 5; i++) {
        const Setup *setup = setup_find(names[i]);
        if (setup) {
            try_setup(setup, 100 + i, &machine, &totals);
        }
    }
    machine_stop(&machine);
    g_array_free(moments, true);
    printf("states %lu, of them folded again %lu; faults %lu; bad %lu\n", totals.states,
           totals.again, totals.faults, totals.bad);
    return totals.bad ? 1 : 0;
}
