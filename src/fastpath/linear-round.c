/*
 * One round: the table of the device becomes what the map says.
 *
 *     begin ──> map ──> flush ──> unfit ──> grow ──> load ──> suspend ──> commit ──> resume ──> settle
 *       (engine/lease.h says what each guards against)
 *
 * What must stay true:
 * 1. A mapping is durable (flush) before a line that uses it is loaded: the kernel flushes only the
 *    files, and says nothing to this server.
 * 2. Nothing between suspend and resume waits for memory or for the device.
 * 3. When anything fails the old table runs on, and the leases say what the old table says.
 *
 * For a fixed image there are no leases, and one round when the device is made.
 */
#include "fastpath/linear-impl.h"

#include <stdio.h>
#include <sys/sysmacros.h>
#include <time.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"

#define CREATE_TRIES 8

/* While a device drains it works on; what is lost is that its queue is empty at the end. */
#define DRAIN_COST 8

uint64_t linear_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * UINT64_C(1000000) + now.tv_nsec / 1000;
}

static bool read_attribute(const Linear *linear, const char *name, uint64_t *value, GError **error)
{
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/%s", major(linear->nbd), minor(linear->nbd), name);
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return error_set(error, ENODEV, "%s: cannot be read: is the nbd device still there?", path);
    }
    *value = g_ascii_strtoull(text, NULL, 10);
    return true;
}

bool linear_find_size(Linear *linear, GError **error)
{
    uint64_t sectors, block_size;
    if (!read_attribute(linear, "size", &sectors, error) ||
        !read_attribute(linear, "queue/logical_block_size", &block_size, error)) {
        return false;
    }
    linear->alignment = max_u64(linear->alignment, max_u64(block_size, DM_SECTOR));
    linear->size = min_u64(sectors * DM_SECTOR, lease_size(linear->disk));
    linear->size = align_down(linear->size, linear->alignment);
    return linear->size > 0 ||
           error_set(error, EINVAL,
                     "the nbd device %u:%u has no size: it must be connected, and the disk must "
                     "have at least %" G_GUINT64_FORMAT " bytes",
                     major(linear->nbd), minor(linear->nbd), linear->alignment);
}

DmTableOptions linear_table_options(const Linear *linear)
{
    return (DmTableOptions){
        .size = linear->size,
        .unit = linear->fixed ? DM_SECTOR : max_u64(lease_unit(linear->disk), LINEAR_PAGE),
        .alignment = linear->alignment,
        .lines_max = linear->lines_bound,
        .fixed = linear->fixed,
    };
}

typedef struct LineList {
    const Linear *linear;
    DmLines lines;
    GHashTable *flushed; /* devices that have a line to which flushes are sent */
} LineList;

/* The first line on a device takes the flushes for all: device-mapper sends one for each line of
 * target linear, and none for switch. */
static DmLine line_on(LineList *list, uint64_t start, uint64_t length, dev_t device,
                      uint64_t offset)
{
    gpointer key = GSIZE_TO_POINTER(device);
    return g_hash_table_add(list->flushed, key) || !list->linear->has_switch
               ? dm_line_linear(start, length, device, offset)
               : dm_line_switch(start, length, device, offset);
}

static void append_line(void *argument, uint64_t start, uint64_t length, const DmRun *run)
{
    LineList *list = argument;
    DmLine *line = &list->lines.items[list->lines.count++];
    if (run == NULL) {
        *line = line_on(list, start, length, list->linear->nbd, start);
    } else if (run->store == NULL) {
        *line = dm_line(start, length, "zero", "");
    } else {
        const LinearFile *file = linear_file((Linear *)list->linear, run->store);
        *line = line_on(list, start, length, file->loop.device, run->host_offset);
    }
}

/* The table as the kernel takes it; items are to be freed. */
static DmLines lines_of(const Linear *linear, const DmTable *table, bool untold)
{
    LineList list = {linear, {.items = g_new(DmLine, table->lines)}, g_hash_table_new(NULL, NULL)};
    if (untold) {
        g_hash_table_add(list.flushed, GSIZE_TO_POINTER(linear->nbd));
    }
    dmtable_lines(table, append_line, &list);
    g_hash_table_unref(list.flushed);
    return list.lines;
}

/* Takes out what has become unfit since the round began. */
static void exclude_unfit(Linear *linear, DmTable *table)
{
    RangeSet unfit = {0};
    if (linear->has_leases) {
        lease_unfit(linear->disk, &unfit);
        dmtable_exclude(table, &unfit);
        rangeset_clear(&unfit);
    }
}

/* Begins a round and reads the map: what could be the next table. */
static bool plan(Linear *linear, DmTable *table, LinearCost *cost, GError **error)
{
    if (linear->has_leases) {
        lease_begin(linear->disk);
    }
    DmTableOptions options = linear_table_options(linear);
    DmPlan *plan = dmplan_new(&options);
    RangeSet unfit = {0};
    int r = lease_map(linear->disk, dmplan_add, plan);
    if (linear->has_leases) {
        lease_unfit(linear->disk, &unfit);
    }
    cost->is_partial = unfit.count > 0;
    dmplan_finish(plan, &unfit, table, NULL);
    rangeset_clear(&unfit);
    if (r < 0) {
        dmtable_clear(table);
        return error_set_errno(error, -r, "%s: the map cannot be read", linear->name);
    }
    return true;
}

/* The same, on devices that are there and large enough. */
static bool prepare(Linear *linear, DmTable *table, LinearCost *cost, GError **error)
{
    if (!linear_find_size(linear, error) || !plan(linear, table, cost, error)) {
        return false;
    }
    if (linear_files_prepare(linear, table)) {
        return true;
    }
    dmtable_clear(table); /* a device with larger blocks: again, and now all are open */
    if (!linear_find_size(linear, error) || !plan(linear, table, cost, error)) {
        return false;
    }
    linear_files_prepare(linear, table);
    return true;
}

/* The kernel flushes the files and nothing else, so what maps to them must be on the disk first.
 * What holds nobody up is not counted. */
static bool make_durable(Linear *linear, DmTable *table, LinearCost *cost, GError **error)
{
    int r = lease_sync(linear->disk);
    uint64_t start = linear_now_us();
    r = r < 0 ? r : lease_flush(linear->disk);
    cost->plan_us += linear_now_us() - start;
    exclude_unfit(linear, table);
    return r == 0 || error_set_errno(error, -r, "%s: the map cannot be made durable", linear->name);
}

/* Asked while the device is suspended. */
typedef struct Commit {
    Disk *disk;
    Range *ranges;
    unsigned count;
} Commit;

static bool commit(void *argument)
{
    const Commit *c = argument;
    return lease_commit(c->disk, c->ranges, c->count);
}

static Range *ranges_of(const DmTable *table)
{
    Range *ranges = g_new(Range, table->count + 1);
    for (unsigned i = 0; i < table->count; i++) {
        ranges[i] = (Range){table->runs[i].start, table->runs[i].length};
    }
    return ranges;
}

void linear_set_table(Linear *linear, DmTable *table)
{
    dmtable_clear(&linear->table);
    linear->table = *table;
    *table = (DmTable){0};
    with_mutex(&linear->lock);
    linear->stats.lines = linear->table.lines;
    linear->stats.mapped_bytes = linear->table.mapped_bytes;
    linear->stats.size = linear->size;
}

/* error: NULL when it went well. One that was given up because the disk had changed is no failure. */
static void count_swap(Linear *linear, const DmTiming *timing, const GError *error)
{
    with_mutex(&linear->lock);
    LinearStats *stats = &linear->stats;
    stats->reloads += error == NULL;
    stats->failed_reloads += error != NULL && error->code != ECANCELED;
    stats->suspended_us += timing->drain_us + timing->still_us;
    stats->suspended_max_us = max_u64(stats->suspended_max_us, timing->drain_us + timing->still_us);
}

/* After a swap. */
static void set_untold(Linear *linear, bool untold)
{
    if (linear->is_untold && !untold) {
        lease_write_through(linear->disk, false);
    }
    linear->is_untold = untold;
}

/* Loads the table; takes over what is in it when that went well. Ends the round in any case. */
static bool swap_to(Linear *linear, DmTable *table, bool untold, LinearCost *cost, GError **error)
{
    g_autofree Range *ranges = ranges_of(table);
    Commit context = {linear->disk, ranges, table->count};
    DmLines lines = lines_of(linear, table, untold);
    DmTiming timing = {0};
    GError *failure = NULL;
    bool done = dm_swap_table(linear->name, &lines, linear->read_only,
                              linear->has_leases ? commit : NULL, &context, &timing, &failure);
    g_free(lines.items);
    cost->swap_us = timing.load_us + timing.drain_us / DRAIN_COST + timing.still_us;
    count_swap(linear, &timing, failure);
    if (!done) {
        g_propagate_error(error, failure);
        if (linear->has_leases) {
            lease_cancel(linear->disk);
        }
        return false;
    }
    linear_set_table(linear, table);
    set_untold(linear, untold);
    if (linear->has_leases) {
        lease_settle(linear->disk);
    }
    return true;
}

static bool swap(Linear *linear, DmTable *table, LinearCost *cost, GError **error)
{
    return swap_to(linear, table, false, cost, error);
}

bool linear_refresh(Linear *linear, LinearCost *cost, GError **error)
{
    DmTable table = {0};
    uint64_t start = linear_now_us();
    bool done = prepare(linear, &table, cost, error);
    bool same = done && dmtable_equal(&table, &linear->table);
    cost->plan_us = linear_now_us() - start;
    cost->swap_us = 0;
    done = done && (same || make_durable(linear, &table, cost, error));
    if (done && !same) {
        done = swap(linear, &table, cost, error);
    } else if (linear->has_leases) {
        lease_cancel(linear->disk);
    }
    dmtable_clear(&table);
    return done;
}

bool linear_give_back(Linear *linear, const RangeSet *except, GError **error)
{
    LinearCost cost;
    RangeSet unfit = {0};
    DmTable table;
    lease_unfit(linear->disk, &unfit);
    for (unsigned i = 0; except != NULL && i < except->count; i++) {
        rangeset_add(&unfit, except->items[i].offset, except->items[i].length);
    }
    dmtable_copy(&table, &linear->table);
    table.options.lines_max = linear->lines_bound;
    dmtable_exclude(&table, &unfit);
    rangeset_clear(&unfit);
    bool done = dmtable_equal(&table, &linear->table) || swap(linear, &table, &cost, error);
    dmtable_clear(&table);
    return done;
}

static bool swap_lines(Linear *linear, bool untold, GError **error)
{
    LinearCost cost;
    DmTable table;
    dmtable_copy(&table, &linear->table);
    bool done = swap_to(linear, &table, untold, &cost, error);
    dmtable_clear(&table);
    return done;
}

bool linear_repair(Linear *linear, GError **error)
{
    return swap_lines(linear, false, error);
}

bool linear_leave_untold(Linear *linear, GError **error)
{
    return swap_lines(linear, true, error);
}

/* Nothing uses the device yet, so the ranges are taken first. */
static bool take_first(Linear *linear, DmTable *table, GError **error)
{
    LinearCost cost = {0};
    for (unsigned tries = 0; tries < CREATE_TRIES; tries++) {
        dmtable_clear(table);
        if (!prepare(linear, table, &cost, error) || !make_durable(linear, table, &cost, error)) {
            return false;
        }
        g_autofree Range *ranges = ranges_of(table);
        if (!linear->has_leases || lease_commit(linear->disk, ranges, table->count)) {
            return true;
        }
    }
    RangeSet all = {0}; /* a busy disk: begin with nothing, the thread goes on from there */
    rangeset_add(&all, 0, linear->size);
    dmtable_exclude(table, &all);
    rangeset_clear(&all);
    return lease_commit(linear->disk, NULL, 0);
}

bool linear_create(Linear *linear, GError **error)
{
    DmTable table = {0};
    if (!take_first(linear, &table, error)) {
        return false;
    }
    DmLines lines = lines_of(linear, &table, false);
    bool done = dm_create(linear->name, linear->uuid, &lines, linear->read_only, error);
    g_free(lines.items);
    if (done) {
        linear_set_table(linear, &table);
        if (linear->has_leases) {
            lease_settle(linear->disk);
        }
    }
    dmtable_clear(&table);
    return done;
}
