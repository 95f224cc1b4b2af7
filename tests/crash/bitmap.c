/*
 * Persistent bitmaps and the power: a script of bitmaps made, changed and removed, and of writes between,
 * each in a session of its own.
 *
 * Whatever happens, a bitmap is as before, or as after, or known to be of no use. Where a write was under
 * way, what of it is on the disk is marked. The image opens for writing, and is without corruption.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "script.h"

#define BITMAPS     2
#define GRANULARITY 2048

typedef struct Step {
    enum { STEP_WRITE, STEP_CHANGE } kind;
    unsigned first, count; /* WRITE: clusters */
    BitmapChange change;
} Step;

#define CHANGE(what, called, ...)                                                   \
    {                                                                               \
        STEP_CHANGE, 0, 0,                                                          \
        {                                                                           \
            .verb = what, .name = called, .granularity = GRANULARITY, ##__VA_ARGS__ \
        }                                                                           \
    }

static const Step steps[] = {
    CHANGE(BITMAP_ADD, "a"),
    {STEP_WRITE, 3, 20},
    CHANGE(BITMAP_ADD, "b", .disabled = true),
    {STEP_WRITE, 60, 4},
    CHANGE(BITMAP_MERGE, "b", .source_name = "a"),
    {STEP_WRITE, 0, SCRIPT_CLUSTERS},
    CHANGE(BITMAP_CLEAR, "a"),
    CHANGE(BITMAP_ENABLE, "b"),
    {STEP_WRITE, 140, 10},
    CHANGE(BITMAP_DISABLE, "a"),
    {STEP_WRITE, 30, 10},
    CHANGE(BITMAP_REMOVE, "a"),
    {STEP_WRITE, 1, 1},
    CHANGE(BITMAP_REMOVE, "b"),
};
#define STEPS G_N_ELEMENTS(steps)

typedef struct Bits {
    bool there, enabled;
    bool marked[SCRIPT_CLUSTERS]; /* by cluster, though a granule may be more than one */
} Bits;

typedef struct State {
    ScriptDisk disk;
    Bits bitmaps[BITMAPS]; /* a, b */
} State;

static State states[STEPS + 1];
static unsigned usable; /* bitmaps that were looked into */

/* ---- the model ---- */

static Bits *find_bits(State *state, const char *name)
{
    return &state->bitmaps[name[0] - 'a'];
}

static void advance_change(State *state, const BitmapChange *change)
{
    Bits *bits = find_bits(state, change->name);
    switch (change->verb) {
    case BITMAP_ADD:
        *bits = (Bits){.there = true, .enabled = !change->disabled};
        return;
    case BITMAP_REMOVE:
        *bits = (Bits){.there = false};
        return;
    case BITMAP_CLEAR:
        memset(bits->marked, 0, sizeof bits->marked);
        return;
    case BITMAP_ENABLE:
    case BITMAP_DISABLE:
        bits->enabled = change->verb == BITMAP_ENABLE;
        return;
    case BITMAP_MERGE:
        for (unsigned i = 0; i < SCRIPT_CLUSTERS; i++) {
            bits->marked[i] |= find_bits(state, change->source_name)->marked[i];
        }
        return;
    }
}

static void advance(State *state, unsigned number)
{
    const Step *step = &steps[number];
    if (step->kind == STEP_CHANGE) {
        advance_change(state, &step->change);
        return;
    }
    for (unsigned i = step->first; i < step->first + step->count; i++) {
        state->disk.values[i] = script_value(number, i);
        for (unsigned b = 0; b < BITMAPS; b++) {
            state->bitmaps[b].marked[i] |= state->bitmaps[b].there && state->bitmaps[b].enabled;
        }
    }
}

/* ---- the image ---- */

static bool run(Image *image, unsigned number)
{
    const Step *step = &steps[number];
    g_autoptr(GError) error = NULL;
    return step->kind == STEP_WRITE ? script_write(image, number, step->first, step->count)
                                    : image->format->bitmap_change(image, &step->change, &error);
}

static bool any_of(const bool clusters[SCRIPT_CLUSTERS], unsigned first, unsigned count)
{
    bool any = false;
    for (unsigned i = first; i < MIN(first + count, SCRIPT_CLUSTERS); i++) {
        any |= clusters[i];
    }
    return any;
}

/* A granule is marked when one of its clusters was before; not when none was to be; and when one has
 * changed, if the bitmap follows. */
static bool bits_are(const Image *image, const DirtyMap *map, const Bits *before, const Bits *after,
                     const bool *changed)
{
    unsigned each = MAX(GRANULARITY / image->allocation_unit, 1);
    for (unsigned i = 0; i < SCRIPT_CLUSTERS; i += each) {
        uint64_t run_length;
        bool marked = dirtymap_get(map, i * image->allocation_unit, 1, &run_length);
        if ((any_of(before->marked, i, each) && !marked) ||
            (marked && !any_of(after->marked, i, each)) ||
            (after->enabled && any_of(changed, i, each) && !marked)) {
            return false;
        }
    }
    return true;
}

static const char *look_at(Image *image, unsigned step, unsigned index, const bool *changed)
{
    const Bits *before = &states[step].bitmaps[index];
    const Bits *after = &states[MIN(step + 1, STEPS)].bitmaps[index];
    const char name[] = {(char)('a' + index), 0};
    g_autoptr(GError) error = NULL;
    DirtyMap *map = image->format->bitmap_get(image, name, &error);
    if (!map) {
        bool gone = error->code == ENOENT;
        return gone && before->there && after->there ? "a bitmap is gone"
               : !gone && step == STEPS              ? "a bitmap is of no use after all"
                                                     : NULL;
    }
    usable++;
    if (!before->there && !after->there) {
        return "a bitmap is there that was not";
    }
    bool writing = step < STEPS && steps[step].kind == STEP_WRITE;
    bool good = writing ? bits_are(image, map, before, after, changed)
                        : (before->there && bits_are(image, map, before, before, changed)) ||
                              (after->there && bits_are(image, map, after, after, changed));
    return good ? NULL : "a bitmap is wrong";
}

static const char *look(Store *store, unsigned step)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = script_open(store, false, NULL, &error);
    if (!image) {
        return "does not open";
    }
    bool changed[SCRIPT_CLUSTERS] = {false};
    ScriptIs is =
        script_disk_is(image, &states[step].disk, &states[MIN(step + 1, STEPS)].disk, changed);
    const char *wrong = is == SCRIPT_OTHER ? "the disk is wrong" : NULL;
    for (unsigned i = 0; !wrong && i < BITMAPS; i++) {
        wrong = look_at(image, step, i, changed);
    }
    return wrong;
}

int main(void)
{
    static const Script scripts[] = {
        {"bitmap-512", "512", "16", "1.1", STEPS, true, run, look, false},
        {"bitmap-4k-r1", "4096", "1", "1.1", STEPS, true, run, look, false},
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
    printf("states %lu, usable bitmaps %u, bad %lu\n", tried, usable, bad);
    return bad || usable == 0 ? 1 : 0;
}
