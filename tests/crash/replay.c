/*
 * Every state in which a disk could be after the power went.
 *
 * The base of a scratch store holds what is durable at the current cut and is moved along the
 * record; a state is the base and some of the other operations, in the order in which they took
 * effect. Where a durable operation took effect after one that is not durable (which was still running
 * when the sync began), the older must not come back over the newer: newest_tick knows the newest
 * durable operation of each eight bytes, and size_tick that of the size. A file that is cut off loses the bytes behind
 * its new end, as a punch would, and has zeroes there if it grows again.
 */
#include "replay.h"

#include <string.h>

#include "base/bytes.h"
#include "tests/lib/random.h"
#include "tests/lib/store-scratch.h"

#define GRANULE 8u /* no two operations share eight bytes */

typedef struct ReplayFile {
    Store *store;
    uint64_t *newest_tick; /* for each GRANULE */
    uint64_t newest_count;
    uint64_t newest_behind; /* of all granules from newest_count on */
    uint64_t size_tick;     /* of the newest durable change of the size */
} ReplayFile;

struct Replay {
    const RecordEntry *entries;
    size_t count;
    size_t first;     /* all before it are durable or syncs */
    size_t next_sync; /* first entry that was not looked at for a sync */
    bool *durable;
    ImageFiles stores;
    ReplayFile files[IMAGE_FILES_MAX];
    uint64_t seed;
};

/* Which part of a write arrives. */
typedef enum { TEAR_NONE, TEAR_HEAD, TEAR_TAIL, TEAR_RANDOM } Tear;
#define TEAR_KINDS 4

typedef struct Choice {
    bool taken;
    Tear tear;
    uint64_t at; /* sectors of the write before the tear */
} Choice;

Replay *replay_new(const RecordEntry *entries, size_t count, const ImageBytes *start, uint64_t seed)
{
    Replay *replay = g_new0(Replay, 1);
    replay->entries = entries;
    replay->count = count;
    replay->durable = g_new0(bool, count + 1);
    replay->stores = image_files_scratch(start);
    for (unsigned i = 0; i < replay->stores.count; i++) {
        replay->files[i].store = replay->stores.stores[i];
    }
    replay->seed = seed;
    return replay;
}

void replay_free(Replay *replay)
{
    for (unsigned i = 0; i < replay->stores.count; i++) {
        g_free(replay->files[i].newest_tick);
    }
    image_files_clear(&replay->stores);
    g_free(replay->durable);
    g_free(replay);
}

const ImageFiles *replay_files(const Replay *replay)
{
    return &replay->stores;
}

Store *replay_store(const Replay *replay)
{
    return replay->stores.stores[0];
}

static uint64_t *newest_tick(ReplayFile *file, uint64_t granule)
{
    if (granule >= file->newest_count) {
        uint64_t count = granule * 2 + 1024;
        file->newest_tick = g_renew(uint64_t, file->newest_tick, count);
        for (uint64_t i = file->newest_count; i < count; i++) {
            file->newest_tick[i] = file->newest_behind;
        }
        file->newest_count = count;
    }
    return &file->newest_tick[granule];
}

static uint64_t entry_sectors(const RecordEntry *entry)
{
    uint64_t first = entry->offset / RECORD_SECTOR;
    return (entry->offset + entry->length + RECORD_SECTOR - 1) / RECORD_SECTOR - first;
}

static bool sector_arrives(const Choice *choice, uint64_t index, Random *random)
{
    switch (choice->tear) {
    case TEAR_NONE:
        return true;
    case TEAR_HEAD:
        return index < choice->at;
    case TEAR_TAIL:
        return index >= choice->at;
    case TEAR_RANDOM:
        return random_percent(random, 50);
    }
    return true;
}

static void apply_bytes(Store *store, const RecordEntry *entry, uint64_t from, uint64_t to)
{
    if (from >= to) {
        return;
    }
    if (entry->kind == RECORD_WRITE || entry->kind == RECORD_REPLACE) {
        store_write(store, entry->data + (from - entry->offset), to - from, from);
    } else {
        store_punch(store, from, to - from, STORE_PUNCH_FREE);
    }
}

/* A piece of a sector, without what a newer durable write put there. */
static void apply_piece(ReplayFile *file, const RecordEntry *entry, uint64_t from, uint64_t to,
                        bool durable)
{
    uint64_t start = from;
    for (uint64_t at = from; at < to;) {
        uint64_t next = min_u64(to, align_down(at, GRANULE) + GRANULE);
        uint64_t *tick = newest_tick(file, at / GRANULE);
        if (*tick > entry->tick) {
            apply_bytes(file->store, entry, start, at);
            start = next;
        } else if (durable) {
            *tick = entry->tick;
        }
        at = next;
    }
    apply_bytes(file->store, entry, start, to);
}

/* One past the last byte from `from` on that a durable operation newer than tick has written. */
static uint64_t end_of_newer(const ReplayFile *file, uint64_t from, uint64_t tick)
{
    uint64_t granule = min_u64(file->newest_count, div_round_up(store_size(file->store), GRANULE));
    while (granule > from / GRANULE && file->newest_tick[granule - 1] <= tick) {
        granule--;
    }
    return max_u64(from, min_u64(granule * GRANULE, store_size(file->store)));
}

/* Nothing older than tick comes back behind the new end of the file, grown or cut off. */
static void mark_behind(ReplayFile *file, uint64_t end, uint64_t tick)
{
    uint64_t first = div_round_up(end, GRANULE);
    (void)newest_tick(file, first);
    for (uint64_t i = first; i < file->newest_count; i++) {
        file->newest_tick[i] = max_u64(file->newest_tick[i], tick);
    }
    file->newest_behind = max_u64(file->newest_behind, tick);
    file->size_tick = max_u64(file->size_tick, tick);
}

static void apply_truncate(ReplayFile *file, const RecordEntry *entry, bool durable)
{
    uint64_t old = store_size(file->store), size = entry->length;
    if (size < old) {
        const RecordEntry rest = {
            .kind = RECORD_PUNCH, .tick = entry->tick, .offset = size, .length = old - size};
        apply_piece(file, &rest, size, old, false);
        size = end_of_newer(file, size, entry->tick);
    }
    if (file->size_tick < entry->tick) {
        store_truncate(file->store, size);
    }
    if (durable) {
        mark_behind(file, entry->length, entry->tick);
    }
}

static void apply_sectors(ReplayFile *file, const RecordEntry *entry, const Choice *choice,
                          bool durable, Random *random)
{
    uint64_t first = entry->offset / RECORD_SECTOR;
    uint64_t end = entry->offset + entry->length;
    for (uint64_t i = 0; i < entry_sectors(entry); i++) {
        if (sector_arrives(choice, i, random)) {
            uint64_t from = max_u64(entry->offset, (first + i) * RECORD_SECTOR);
            uint64_t to = min_u64(end, (first + i + 1) * RECORD_SECTOR);
            apply_piece(file, entry, from, to, durable);
        }
    }
}

static void apply(ReplayFile *file, const RecordEntry *entry, const Choice *choice, bool durable,
                  Random *random)
{
    if (entry->kind == RECORD_TRUNCATE) {
        apply_truncate(file, entry, durable);
    } else if (entry->kind == RECORD_REPLACE) {
        apply_truncate(file, entry, durable);
        apply_piece(file, entry, 0, entry->length, durable);
    } else if (entry->kind != RECORD_SYNC) {
        apply_sectors(file, entry, choice, durable, random);
    }
}

static void make_durable(Replay *replay, const RecordEntry *sync)
{
    const Choice whole = {.taken = true, .tear = TEAR_NONE};
    ReplayFile *file = &replay->files[sync->file];
    for (size_t i = replay->first; i < replay->count; i++) {
        const RecordEntry *entry = &replay->entries[i];
        if (entry->tick > sync->tick) {
            break;
        }
        if (!replay->durable[i] && entry->file == sync->file && entry->end < sync->begin) {
            apply(file, entry, &whole, true, NULL);
            replay->durable[i] = true;
        }
    }
    while (replay->first < replay->count && replay->durable[replay->first]) {
        replay->first++;
    }
    scratch_commit(file->store);
}

static void advance(Replay *replay, uint64_t cut)
{
    for (unsigned i = 0; i < replay->stores.count; i++) {
        scratch_reset(replay->stores.stores[i]);
    }
    for (; replay->next_sync < replay->count; replay->next_sync++) {
        const RecordEntry *entry = &replay->entries[replay->next_sync];
        if (entry->tick >= cut) {
            break;
        }
        if (entry->kind == RECORD_SYNC) {
            make_durable(replay, entry);
            replay->durable[replay->next_sync] = true;
        }
    }
}

/* What may be on the disk or not, in the order of taking effect. */
static GPtrArray *open_entries(Replay *replay, uint64_t cut)
{
    GPtrArray *open = g_ptr_array_new();
    for (size_t i = replay->first; i < replay->count; i++) {
        const RecordEntry *entry = &replay->entries[i];
        if (!replay->durable[i] && entry->kind != RECORD_SYNC && entry->begin < cut) {
            g_ptr_array_add(open, (gpointer)entry);
        }
    }
    return open;
}

static void choose_taken(Choice *choices, unsigned count, unsigned number, Random *random)
{
    uint64_t one = random_below(random, count);
    unsigned percent = (unsigned[]){10, 50, 90}[random_below(random, 3)];
    unsigned plan = number < 2 ? number : 2 + random_below(random, 6);
    for (unsigned i = 0; i < count; i++) {
        switch (plan) {
        case 0: /* nothing */
            choices[i].taken = false;
            break;
        case 1: /* everything */
            choices[i].taken = true;
            break;
        case 2: /* all but one */
            choices[i].taken = i != one;
            break;
        case 3: /* one */
            choices[i].taken = i == one;
            break;
        case 4: /* the last ones */
            choices[i].taken = i >= one;
            break;
        default:
            choices[i].taken = random_percent(random, percent);
            break;
        }
    }
}

/* Files that are on the disk as a whole, beside others of which nothing more is. */
static void choose_files(Choice *choices, const GPtrArray *open, Random *random)
{
    uint64_t taken = random_below(random, 1u << IMAGE_FILES_MAX);
    for (unsigned i = 0; i < open->len; i++) {
        const RecordEntry *entry = open->pdata[i];
        choices[i].taken = taken >> entry->file & 1;
    }
}

static void choose_tears(Choice *choices, GPtrArray *open, unsigned number, Random *random)
{
    bool only_last = number < 2 || random_percent(random, 50);
    for (unsigned i = 0; i < open->len; i++) {
        const RecordEntry *entry = open->pdata[i];
        bool last = i + 1 == open->len;
        bool torn = entry->kind == RECORD_WRITE || entry->kind == RECORD_PUNCH;
        if (torn && (last || !only_last) && random_percent(random, 40)) {
            choices[i].tear = random_below(random, TEAR_KINDS);
            choices[i].at = random_below(random, entry_sectors(entry) + 1);
        }
    }
}

static void describe(const Replay *replay, GString *text, const RecordEntry *entry,
                     const Choice *choice)
{
    static const char *const kinds[] = {"write", "punch", "truncate", "replace", "sync"};
    static const char *const tears[] = {"", " head", " tail", " some sectors"};
    g_string_append_printf(
        text,
        "  %s %s %s %#" G_GINT64_MODIFIER "x+%#" G_GINT64_MODIFIER "x tick %" G_GUINT64_FORMAT "%s",
        choice->taken ? "+" : "-", kinds[entry->kind], replay->files[entry->file].store->name,
        entry->offset, entry->length, entry->tick, choice->taken ? tears[choice->tear] : "");
    if (choice->taken && choice->tear != TEAR_NONE) {
        g_string_append_printf(text, " (at sector %" G_GUINT64_FORMAT ")", choice->at);
    }
    g_string_append_c(text, '\n');
}

void replay_state(Replay *replay, uint64_t cut, unsigned number, GString *text)
{
    Random random = random_new(replay->seed ^ random_mix(cut * 64 + number));
    advance(replay, cut);
    g_autoptr(GPtrArray) open = open_entries(replay, cut);
    g_autofree Choice *choices = g_new0(Choice, open->len + 1);
    if (open->len) {
        choose_taken(choices, open->len, number, &random);
        if (number >= 2 && replay->stores.count > 1 && random_percent(&random, 25)) {
            choose_files(choices, open, &random);
        }
        choose_tears(choices, open, number, &random);
    }
    for (unsigned i = 0; i < open->len; i++) {
        if (choices[i].taken) {
            const RecordEntry *entry = open->pdata[i];
            apply(&replay->files[entry->file], entry, &choices[i], false, &random);
        }
        if (text) {
            describe(replay, text, open->pdata[i], &choices[i]);
        }
    }
}
