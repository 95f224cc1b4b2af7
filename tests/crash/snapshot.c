/*
 * Internal snapshots and the power: a script of writes and snapshots made, applied and deleted.
 *
 * Whatever happens, a step is done or not done: the list of snapshots, the contents of each and of the
 * disk are those of before or of after. The image opens for writing, and is then without corruption.
 */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "script.h"

#define SNAPSHOTS_MAX 4

typedef enum { STEP_WRITE, STEP_CREATE, STEP_APPLY, STEP_DELETE } StepKind;

typedef struct Step {
    StepKind kind;
    const char *name;      /* of the snapshot */
    unsigned first, count; /* WRITE: clusters */
} Step;

static const Step steps[] = {
    {STEP_WRITE, NULL, 0, 90},  /**/
    {STEP_CREATE, "one"},       /**/
    {STEP_WRITE, NULL, 20, 12}, /**/
    {STEP_WRITE, NULL, 130, 9}, /**/
    {STEP_CREATE, "two"},       /**/
    {STEP_WRITE, NULL, 0, 5},   /**/
    {STEP_CREATE, "three"},     /**/
    {STEP_DELETE, "two"},       /**/
    {STEP_WRITE, NULL, 18, 9},  /**/
    {STEP_APPLY, "one"},        /**/
    {STEP_WRITE, NULL, 80, 20}, /**/
    {STEP_DELETE, "one"},       /**/
    {STEP_APPLY, "three"},      /**/
    {STEP_WRITE, NULL, 10, 30}, /**/
    {STEP_DELETE, "three"},
};
#define STEPS G_N_ELEMENTS(steps)

typedef struct Snap {
    const char *name; /* NULL: free */
    ScriptDisk disk;
} Snap;

typedef struct State {
    ScriptDisk disk;
    Snap snaps[SNAPSHOTS_MAX];
} State;

static State states[STEPS + 1]; /* before each step; the last: after all */

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

static void advance(State *state, unsigned number)
{
    const Step *step = &steps[number];
    Snap *snap = step->name ? find_snap(state, step->name) : NULL;
    switch (step->kind) {
    case STEP_WRITE:
        for (unsigned i = step->first; i < step->first + step->count; i++) {
            state->disk.values[i] = script_value(number, i);
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

static bool run(Image *image, unsigned number)
{
    const Step *step = &steps[number];
    g_autoptr(GError) error = NULL;
    switch (step->kind) {
    case STEP_CREATE:
        return image->format->snapshot_create(image, step->name, &error);
    case STEP_APPLY:
        return image->format->snapshot_apply(image, step->name, &error);
    case STEP_DELETE:
        return image->format->snapshot_delete(image, step->name, &error);
    default:
        return script_write(image, number, step->first, step->count);
    }
}

static bool snapshots_are(Store *store, const Image *image, const State *wanted)
{
    unsigned count = 0;
    GVariantBuilder list;
    g_variant_builder_init(&list, G_VARIANT_TYPE("aa{sv}"));
    image->format->snapshots(image, UINT_MAX, &list);
    g_autoptr(GVariant) found = g_variant_ref_sink(g_variant_builder_end(&list));
    for (unsigned i = 0; i < SNAPSHOTS_MAX; i++) {
        const Snap *snap = &wanted->snaps[i];
        g_autoptr(GError) error = NULL;
        if (snap->name == NULL) {
            continue;
        }
        count++;
        g_autoptr(Image) shown = script_open(store, false, snap->name, &error);
        if (!shown || script_disk_is(shown, &snap->disk, &snap->disk, NULL) != SCRIPT_BEFORE) {
            return false;
        }
    }
    return count == g_variant_n_children(found);
}

static const char *look(Store *store, unsigned step)
{
    const State *before = &states[step], *after = &states[MIN(step + 1, STEPS)];
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = script_open(store, false, NULL, &error);
    if (!image) {
        return "does not open";
    }
    ScriptIs is = script_disk_is(image, &before->disk, &after->disk, NULL);
    bool writing = step < STEPS && steps[step].kind == STEP_WRITE;
    if (is == SCRIPT_OTHER || (is == SCRIPT_BETWEEN && !writing)) {
        return "the disk is wrong";
    }
    if (!snapshots_are(store, image, before) && !snapshots_are(store, image, after)) {
        return "a snapshot is wrong";
    }
    return NULL;
}

int main(void)
{
    static const Script scripts[] = {
        {"v3-512", "512", "16", "1.1", STEPS, false, run, look, true},
        {"v3-4k-r64", "4096", "64", "1.1", STEPS, false, run, look, true},
        {"v3-512-r4", "512", "4", "1.1", STEPS, false, run, look, true},
        {"v2-512", "512", NULL, "0.10", STEPS, false, run, look, true},
    };
    uint64_t tried = 0, bad = 0;
    log_set_level(LOG_LEVEL_ERROR);
    for (unsigned i = 0; i < STEPS; i++) {
        states[i + 1] = states[i];
        advance(&states[i + 1], i);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(scripts); i++) {
        bad += script_try(&scripts[i], &tried);
    }
    printf("states %lu, bad %lu\n", tried, bad);
    return bad ? 1 : 0;
}
