/*
 * From a map to a table.
 *
 *     extents ──merge──> runs ──trim──> whole units ──> the longest ──> sorted ──> minus what is
 *             (streaming, one at a time)                (a heap)                   unfit ──> bounded
 *
 * Only the lines_max longest runs are kept while the extents come in, in a heap with the shortest
 * on top; among equals the earlier ones stay. Then runs are chosen greedily, longest first: one
 * costs a line, and another one where it cuts a gap in two. That is not always the best choice:
 * long runs far from each other cost two lines each, where shorter neighbours would share theirs.
 */
#include "fastpath/dmtable.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "map/encryption.h"
#include "store/store.h"

/* A run must hold 1/SHARE of what a line would hold if all were alike. */
#define SHARE 16

struct DmPlan {
    DmTableOptions options;
    DmRun last;     /* grows as long as extents go on where it ends; length 0: none */
    DmRun *heap;    /* shortest on top */
    unsigned count; /* in the heap */
    uint64_t bytes; /* of all runs that were seen */
};

static uint64_t run_end(const DmRun *run)
{
    return run->start + run->length;
}

DmPlan *dmplan_new(const DmTableOptions *options)
{
    DmPlan *plan = g_new0(DmPlan, 1);
    plan->options = *options;
    plan->options.size = align_down(options->size, options->alignment);
    plan->heap = g_new(DmRun, options->lines_max);
    return plan;
}

/* a should be given up before b. */
static bool is_worse(const DmRun *a, const DmRun *b)
{
    return a->length != b->length ? a->length < b->length : a->start > b->start;
}

static void swap(DmRun *a, DmRun *b)
{
    DmRun kept = *a;
    *a = *b;
    *b = kept;
}

static void heap_push(DmPlan *plan, const DmRun *run)
{
    unsigned i = plan->count++;
    plan->heap[i] = *run;
    while (i > 0 && is_worse(&plan->heap[i], &plan->heap[(i - 1) / 2])) {
        swap(&plan->heap[i], &plan->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
}

static void heap_replace_top(DmPlan *plan, const DmRun *run)
{
    unsigned i = 0, child;
    plan->heap[0] = *run;
    while ((child = 2 * i + 1) < plan->count) {
        if (child + 1 < plan->count && is_worse(&plan->heap[child + 1], &plan->heap[child])) {
            child++;
        }
        if (!is_worse(&plan->heap[child], &plan->heap[i])) {
            return;
        }
        swap(&plan->heap[i], &plan->heap[child]);
        i = child;
    }
}

/* Moves the beginning of the run to start. */
static void cut_front(DmRun *run, uint64_t start)
{
    uint64_t by = min_u64(start - run->start, run->length);
    run->host_offset += run->store != NULL ? by : 0;
    run->start += by;
    run->length -= by;
}

/* Cuts the run to whole units of the device; it may be empty after that. */
static void trim(const DmTableOptions *options, DmRun *run)
{
    uint64_t unit = max_u64(options->unit, options->alignment);
    if (run->store != NULL) {
        /* What lies beyond the end of the file (it reads as zeroes) is not on its device. */
        uint64_t file = align_down(store_size(run->store), options->alignment);
        uint64_t inside = file > run->host_offset ? file - run->host_offset : 0;
        run->length = min_u64(run->length, inside);
        if ((run->start - run->host_offset) % options->alignment != 0) {
            run->length = 0;
        }
    }
    uint64_t end = min_u64(run_end(run), options->size);
    if (run->start >= end) {
        run->length = 0;
        return;
    }
    end = end == options->size ? end : align_down(end, unit);
    run->length = end > run->start ? end - run->start : 0;
    cut_front(run, run->start % unit == 0 ? run->start : align_down(run->start, unit) + unit);
}

/* The run in hand is complete. */
static void close_run(DmPlan *plan)
{
    DmRun *run = &plan->last;
    if (run->length > 0) {
        trim(&plan->options, run);
    }
    if (run->length > 0) {
        plan->bytes += run->length;
        if (plan->count < plan->options.lines_max) {
            heap_push(plan, run);
        } else if (is_worse(&plan->heap[0], run)) {
            heap_replace_top(plan, run);
        }
    }
    run->length = 0;
}

static bool may_be_run(const DmTableOptions *options, const Extent *extent)
{
    if (extent->type == EXTENT_DATA) {
        return !extent_is_encrypted(extent) &&
               (options->fixed || (extent->flags & EXTENT_WRITABLE));
    }
    return options->fixed && extent_is_zero(extent);
}

void dmplan_add(void *argument, const Extent *extent)
{
    DmPlan *plan = argument;
    if (!may_be_run(&plan->options, extent)) {
        close_run(plan);
        return;
    }
    bool zero = extent->type != EXTENT_DATA;
    DmRun run = {.start = extent->offset, .length = extent->length};
    if (!zero) {
        run.store = extent->store;
        run.host_offset = extent->host_offset;
    }
    DmRun *last = &plan->last;
    bool goes_on = last->length > 0 && last->store == run.store &&
                   (zero || last->host_offset + last->length == run.host_offset);
    if (goes_on) {
        last->length += run.length;
    } else {
        close_run(plan);
        *last = run;
    }
}

static int by_start(const void *a, const void *b)
{
    const DmRun *left = a, *right = b;
    return left->start < right->start ? -1 : left->start > right->start;
}

/* Longest first. */
static int by_worth(const void *a, const void *b, void *runs)
{
    const DmRun *left = (DmRun *)runs + *(const unsigned *)a;
    const DmRun *right = (DmRun *)runs + *(const unsigned *)b;
    return is_worse(right, left) ? -1 : is_worse(left, right);
}

/* Lines that one more run adds: its own and its two gaps for the one gap that was there; a gap of
 * no length is none. */
static int line_cost(const DmTable *table, const bool *chosen, unsigned i)
{
    const DmRun *run = &table->runs[i];
    bool left =
        run->start == 0 || (i > 0 && chosen[i - 1] && run_end(&table->runs[i - 1]) == run->start);
    bool right = run_end(run) == table->options.size || (i + 1 < table->count && chosen[i + 1] &&
                                                         table->runs[i + 1].start == run_end(run));
    return 2 - left - right;
}

static void count(DmTable *table)
{
    uint64_t at = 0;
    table->lines = 0;
    table->mapped_bytes = 0;
    for (unsigned i = 0; i < table->count; i++) {
        const DmRun *run = &table->runs[i];
        table->lines += 1 + (run->start > at);
        table->mapped_bytes += run->length;
        at = run_end(run);
    }
    table->lines += at < table->options.size;
}

/* Keeps at most lines_max lines. */
static void bound(DmTable *table)
{
    count(table);
    if (table->lines <= table->options.lines_max) {
        return;
    }
    g_autofree unsigned *order = g_new(unsigned, table->count);
    g_autofree bool *chosen = g_new0(bool, table->count);
    for (unsigned i = 0; i < table->count; i++) {
        order[i] = i;
    }
    g_qsort_with_data(order, table->count, sizeof *order, by_worth, table->runs);
    int lines = 1; /* all of it nbd */
    for (unsigned i = 0; i < table->count; i++) {
        int cost = line_cost(table, chosen, order[i]);
        if (lines + cost <= (int)table->options.lines_max) {
            lines += cost;
            chosen[order[i]] = true;
        }
    }
    unsigned kept = 0;
    for (unsigned i = 0; i < table->count; i++) {
        if (chosen[i]) {
            table->runs[kept++] = table->runs[i];
        }
    }
    table->count = kept;
    count(table);
}

static void drop_small(DmTable *table, uint64_t all_bytes)
{
    uint64_t least = all_bytes / table->options.lines_max / SHARE;
    unsigned kept = 0;
    for (unsigned i = 0; i < table->count; i++) {
        if (table->runs[i].length >= least) {
            table->runs[kept++] = table->runs[i];
        }
    }
    table->count = kept;
}

void dmplan_finish(DmPlan *plan, const RangeSet *except, DmTable *table, uint64_t *left_bytes)
{
    close_run(plan);
    *table = (DmTable){.options = plan->options, .runs = plan->heap, .count = plan->count};
    qsort(table->runs, table->count, sizeof *table->runs, by_start);
    if (!table->options.fixed) {
        drop_small(table, plan->bytes);
    }
    bound(table);
    if (left_bytes != NULL) {
        *left_bytes = plan->bytes - table->mapped_bytes;
    }
    g_free(plan);
    if (except->count > 0) {
        dmtable_exclude(table, except);
    }
}

/* Appends what is left of the run outside of except; *at is the first range of except that may
 * matter, and goes on from run to run. */
static void add_outside(GArray *runs, const DmTableOptions *options, DmRun run,
                        const RangeSet *except, unsigned *at)
{
    uint64_t unit = max_u64(options->unit, options->alignment);
    while (run.length > 0) {
        while (*at < except->count &&
               align_up(except->items[*at].offset + except->items[*at].length, unit) <= run.start) {
            (*at)++;
        }
        const Range *range = *at < except->count ? &except->items[*at] : NULL;
        if (range == NULL || align_down(range->offset, unit) >= run_end(&run)) {
            g_array_append_val(runs, run);
            return;
        }
        uint64_t from = align_down(range->offset, unit);
        if (from > run.start) {
            DmRun before = run;
            before.length = from - run.start;
            g_array_append_val(runs, before);
        }
        cut_front(&run, align_up(range->offset + range->length, unit));
    }
}

void dmtable_exclude(DmTable *table, const RangeSet *except)
{
    GArray *runs = g_array_sized_new(false, false, sizeof(DmRun), table->count + except->count);
    unsigned at = 0;
    for (unsigned i = 0; i < table->count; i++) {
        add_outside(runs, &table->options, table->runs[i], except, &at);
    }
    g_free(table->runs);
    table->count = runs->len;
    table->runs = (DmRun *)(void *)g_array_free(runs, false);
    bound(table);
}

void dmtable_copy(DmTable *to, const DmTable *from)
{
    *to = *from;
    to->runs = g_memdup2(from->runs, from->count * sizeof *from->runs);
}

void dmtable_clear(DmTable *table)
{
    g_free(table->runs);
    *table = (DmTable){0};
}

bool dmtable_equal(const DmTable *a, const DmTable *b)
{
    if (a->count != b->count || a->options.size != b->options.size) {
        return false;
    }
    for (unsigned i = 0; i < a->count; i++) {
        const DmRun *left = &a->runs[i], *right = &b->runs[i];
        if (left->start != right->start || left->length != right->length ||
            left->store != right->store || left->host_offset != right->host_offset) {
            return false;
        }
    }
    return true;
}

void dmtable_lines(const DmTable *table, DmTableLine *line, void *argument)
{
    uint64_t at = 0;
    for (unsigned i = 0; i < table->count; i++) {
        const DmRun *run = &table->runs[i];
        if (run->start > at) {
            line(argument, at, run->start - at, NULL);
        }
        line(argument, run->start, run->length, run);
        at = run_end(run);
    }
    if (at < table->options.size) {
        line(argument, at, table->options.size - at, NULL);
    }
}

typedef struct Printing {
    GString *text;
    GPtrArray *stores; /* index: the number of the loop device */
} Printing;

static void print_line(void *argument, uint64_t start, uint64_t length, const DmRun *run)
{
    Printing *printing = argument;
    g_string_append_printf(printing->text, "%" G_GUINT64_FORMAT " %" G_GUINT64_FORMAT " ",
                           start / 512, length / 512);
    if (run == NULL) {
        g_string_append_printf(printing->text, "linear NBD %" G_GUINT64_FORMAT "\n", start / 512);
    } else if (run->store == NULL) {
        g_string_append(printing->text, "zero\n");
    } else {
        guint index = 0;
        g_ptr_array_find(printing->stores, run->store, &index);
        g_string_append_printf(printing->text, "linear LOOP%u %" G_GUINT64_FORMAT "\n", index,
                               run->host_offset / 512);
    }
}

void dmtable_print(const DmTable *table, GString *text)
{
    g_autoptr(GPtrArray) stores = g_ptr_array_new();
    for (unsigned i = 0; i < table->count; i++) {
        Store *store = table->runs[i].store;
        if (store != NULL && !g_ptr_array_find(stores, store, NULL)) {
            g_autofree char *name = g_strescape(store->name, NULL);
            g_string_append_printf(text, "# LOOP%u is \"%s\"\n", stores->len, name);
            g_ptr_array_add(stores, store);
        }
    }
    Printing printing = {text, stores};
    dmtable_lines(table, print_line, &printing);
}
