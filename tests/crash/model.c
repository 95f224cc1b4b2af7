/*
 * What a disk may hold: see model.h for the rule.
 *
 * Two views of one history. `history` has for each cell all operations that touch it, for checking
 * READs of the run. `allowed` has for each cell the values that are possible at the current cut;
 * model_cut keeps it up to date by two kinds of events: an operation is issued (its value becomes
 * possible), an operation becomes durable (what it supersedes becomes impossible).
 *
 * States are many and differ little. So a check keeps what it found right, by pages, and looks only at pages that differ
 * from it, or in which something has become impossible since.
 */
#include "model.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

#define INITIAL UINT32_MAX /* the operation that put the initial value there */
#define PAGE    4096u

typedef struct Op {
    uint64_t cell, cells;
    uint32_t value;
    bool weak;     /* supersedes nothing */
    bool observed; /* made of a READ */
    bool fua;
    uint64_t start, end, durable;
} Op;

typedef struct Value {
    uint32_t op; /* INITIAL or an index of ops */
    uint32_t value;
} Value;

typedef struct CellList {
    Value *items;
    uint32_t count, capacity;
} CellList;

typedef struct Event {
    uint64_t tick;
    uint32_t op;
    bool durable; /* else issued */
} Event;

typedef struct Flush {
    uint64_t start, end;
} Flush;

struct Model {
    uint64_t cells;
    GArray *ops;           /* Op: all but READ and FLUSH, and what READs showed */
    GArray *reads;         /* ModelOp */
    GArray *flushes;       /* Flush, successful ones */
    GArray *events;        /* Event, by tick */
    GArray *durable_ticks; /* uint64_t */
    guint next_event;
    CellList *history, *allowed;
    uint8_t *right; /* contents of the pages that were found right */
    bool *is_right; /* by page: they still are */
};

static void cell_add(CellList *list, Value value)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? list->capacity * 2 : 2;
        list->items = g_renew(Value, list->items, list->capacity);
    }
    list->items[list->count++] = value;
}

static Op *op_at(const Model *model, uint32_t index)
{
    return &g_array_index(model->ops, Op, index);
}

static uint64_t value_end(const Model *model, const Value *value)
{
    return value->op == INITIAL ? 0 : op_at(model, value->op)->end;
}

static uint64_t value_start(const Model *model, const Value *value)
{
    return value->op == INITIAL ? 0 : op_at(model, value->op)->start;
}

Model *model_new(uint64_t size, const uint32_t *initial)
{
    Model *model = g_new0(Model, 1);
    model->cells = size / CELL;
    model->ops = g_array_new(FALSE, FALSE, sizeof(Op));
    model->reads = g_array_new(FALSE, FALSE, sizeof(ModelOp));
    model->flushes = g_array_new(FALSE, FALSE, sizeof(Flush));
    model->events = g_array_new(FALSE, FALSE, sizeof(Event));
    model->durable_ticks = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    model->history = g_new0(CellList, model->cells);
    model->allowed = g_new0(CellList, model->cells);
    model->right = g_malloc0(size);
    model->is_right = g_new0(bool, div_round_up(size, PAGE));
    for (uint64_t i = 0; i < model->cells; i++) {
        Value value = {.op = INITIAL, .value = initial ? initial[i] : 0};
        cell_add(&model->history[i], value);
        cell_add(&model->allowed[i], value);
    }
    return model;
}

void model_free(Model *model)
{
    for (uint64_t i = 0; i < model->cells; i++) {
        g_free(model->history[i].items);
        g_free(model->allowed[i].items);
    }
    g_free(model->history);
    g_free(model->allowed);
    g_free(model->right);
    g_free(model->is_right);
    g_array_free(model->ops, TRUE);
    g_array_free(model->reads, TRUE);
    g_array_free(model->flushes, TRUE);
    g_array_free(model->events, TRUE);
    g_array_free(model->durable_ticks, TRUE);
    g_free(model);
}

static void history_add(Model *model, const Op *op)
{
    uint32_t index = model->ops->len;
    g_array_append_val(model->ops, *op);
    for (uint64_t i = op->cell; i < op->cell + op->cells; i++) {
        cell_add(&model->history[i], (Value){.op = index, .value = op->value});
    }
}

void model_add(Model *model, const ModelOp *op)
{
    if (op->type == REQUEST_READ) {
        g_array_append_val(model->reads, *op);
        return;
    }
    if (op->type == REQUEST_FLUSH) {
        Flush flush = {.start = op->start, .end = op->end};
        if (op->end != TICK_NEVER) {
            g_array_append_val(model->flushes, flush);
        }
        return;
    }
    history_add(model, &(Op){.cell = op->offset / CELL,
                             .cells = op->length / CELL,
                             .value = op->type == REQUEST_WRITE ? op->value : 0,
                             .weak = op->type == REQUEST_TRIM,
                             .fua = op->fua,
                             .start = op->start,
                             .end = op->end});
}

/* Checking READs */

typedef struct ReadCell {
    bool allowed;   /* the value may be read */
    bool ambiguous; /* there were others that might have been, and nothing was in flight */
} ReadCell;

static ReadCell read_cell(const Model *model, const ModelOp *read, uint64_t cell, uint32_t value)
{
    const CellList *list = &model->history[cell];
    uint64_t newest = 0; /* whatever was answered before this tick is superseded */
    bool in_flight = false;
    for (uint32_t i = 0; i < list->count; i++) {
        const Op *op = list->items[i].op == INITIAL ? NULL : op_at(model, list->items[i].op);
        if (op && !op->weak && op->end < read->start) {
            newest = max_u64(newest, op->start);
        }
        in_flight |= op && !op->observed && op->start < read->end && op->end > read->start;
    }
    ReadCell result = {false, false};
    for (uint32_t i = 0; i < list->count; i++) {
        const Value *item = &list->items[i];
        if (value_start(model, item) < read->end && value_end(model, item) >= newest) {
            result.allowed |= item->value == value;
            result.ambiguous |= item->value != value && !in_flight;
        }
    }
    return result;
}

static void say_read(const Model *model, const ModelOp *read, uint64_t cell, uint32_t value,
                     StampKind kind, Findings *findings)
{
    if (kind == STAMP_FOREIGN) {
        findings->foreign++;
    } else if (kind == STAMP_GARBAGE) {
        findings->garbage++;
    } else {
        findings->lost++;
    }
    findings_say(findings,
                 "READ of %#lx+%#lx (ticks %lu to %lu) gave at %#lx %s %u, which cannot be",
                 read->offset, read->length, read->start, read->end, cell * CELL,
                 kind == STAMP_FOREIGN ? "foreign bytes of request"
                 : kind                ? "garbage"
                                       : "request",
                 value);
    const CellList *list = &model->history[cell];
    for (uint32_t i = 0; i < list->count; i++) {
        findings_say(findings, "    history: request %u, ticks %lu to %ld", list->items[i].value,
                     value_start(model, &list->items[i]), (long)value_end(model, &list->items[i]));
    }
}

static void check_read(Model *model, const ModelOp *read, Findings *findings)
{
    Op seen = {.cells = 0, .observed = true, .start = read->start, .end = read->end};
    bool said = false;
    for (uint64_t i = 0; i < read->length / CELL; i++) {
        uint64_t cell = read->offset / CELL + i;
        uint32_t value;
        StampKind kind = stamp_read(read->data + i * CELL, cell, &value);
        ReadCell result = read_cell(model, read, cell, value);
        if ((kind != STAMP_OK || !result.allowed) && !said) {
            say_read(model, read, cell, value, kind, findings);
            said = true;
        }
        bool extends = seen.cells && seen.value == value && seen.cell + seen.cells == cell;
        if (seen.cells && !(result.ambiguous && extends)) {
            history_add(model, &seen);
            seen.cells = 0;
        }
        if (result.ambiguous && result.allowed && kind == STAMP_OK) {
            seen.cell = seen.cells ? seen.cell : cell;
            seen.value = value;
            seen.cells++;
        }
    }
    if (seen.cells) {
        history_add(model, &seen);
    }
}

/* Durability */

static int flush_compare(gconstpointer a, gconstpointer b)
{
    const Flush *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

static int read_compare(gconstpointer a, gconstpointer b)
{
    const ModelOp *x = a, *y = b;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int event_compare(gconstpointer a, gconstpointer b)
{
    const Event *x = a, *y = b;
    return x->tick < y->tick ? -1 : x->tick > y->tick;
}

static int tick_compare(gconstpointer a, gconstpointer b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* When the first FLUSH was answered that was issued after `end`. */
static uint64_t flushed_at(const Model *model, uint64_t end)
{
    uint64_t earliest = TICK_NEVER;
    for (guint i = model->flushes->len; i > 0; i--) {
        const Flush *flush = &g_array_index(model->flushes, Flush, i - 1);
        if (flush->start < end) {
            break;
        }
        earliest = min_u64(earliest, flush->end);
    }
    return earliest;
}

static void add_events(Model *model, uint32_t index)
{
    Op *op = op_at(model, index);
    op->durable = op->end == TICK_NEVER ? TICK_NEVER : flushed_at(model, op->end);
    if (op->fua && op->end != TICK_NEVER) {
        op->durable = min_u64(op->durable, op->end);
        g_array_append_val(model->durable_ticks, op->end);
    }
    Event issued = {.tick = op->start, .op = index};
    g_array_append_val(model->events, issued);
    if (op->durable != TICK_NEVER && !op->weak) {
        Event durable = {.tick = op->durable, .op = index, .durable = true};
        g_array_append_val(model->events, durable);
    }
}

void model_finish(Model *model, Findings *findings)
{
    g_array_sort(model->flushes, flush_compare);
    g_array_sort(model->reads, read_compare);
    for (guint i = 0; i < model->reads->len; i++) {
        const ModelOp *read = &g_array_index(model->reads, ModelOp, i);
        if (read->end != TICK_NEVER) {
            check_read(model, read, findings);
        }
    }
    for (guint i = 0; i < model->flushes->len; i++) {
        g_array_append_val(model->durable_ticks, g_array_index(model->flushes, Flush, i).end);
    }
    for (uint32_t i = 0; i < model->ops->len; i++) {
        add_events(model, i);
    }
    g_array_sort(model->events, event_compare);
    g_array_sort(model->durable_ticks, tick_compare);
}

const uint64_t *model_durable_ticks(const Model *model, unsigned *count)
{
    *count = model->durable_ticks->len;
    return (const uint64_t *)model->durable_ticks->data;
}

/* The cut */

static void drop_superseded(Model *model, const Op *op)
{
    for (uint64_t cell = op->cell; cell < op->cell + op->cells; cell++) {
        CellList *list = &model->allowed[cell];
        uint32_t kept = 0;
        for (uint32_t i = 0; i < list->count; i++) {
            if (value_end(model, &list->items[i]) >= op->start) {
                list->items[kept++] = list->items[i];
            }
        }
        if (kept < list->count) {
            list->count = kept;
            model->is_right[cell * CELL / PAGE] = false;
        }
    }
}

void model_cut(Model *model, uint64_t cut)
{
    for (; model->next_event < model->events->len; model->next_event++) {
        const Event *event = &g_array_index(model->events, Event, model->next_event);
        const Op *op = op_at(model, event->op);
        if (event->tick >= cut) {
            break;
        }
        if (event->durable) {
            drop_superseded(model, op);
            continue;
        }
        for (uint64_t cell = op->cell; cell < op->cell + op->cells; cell++) {
            cell_add(&model->allowed[cell], (Value){.op = event->op, .value = op->value});
        }
    }
}

static bool cell_allows(const CellList *list, uint32_t value)
{
    for (uint32_t i = list->count; i > 0; i--) {
        if (list->items[i - 1].value == value) {
            return true;
        }
    }
    return false;
}

static void say_cell(const Model *model, uint64_t cell, uint32_t value, StampKind kind,
                     const uint8_t *bytes, Findings *findings)
{
    const CellList *list = &model->allowed[cell];
    if (kind == STAMP_FOREIGN) {
        findings->foreign++;
        findings_say(findings, "foreign bytes at %#lx: they belong to %#lx, written by request %u",
                     cell * CELL, (uint64_t)load_le32(bytes) * CELL, value);
    } else if (kind == STAMP_GARBAGE) {
        findings->garbage++;
        findings_say(findings, "garbage at %#lx: %016lx %016lx", cell * CELL, load_be64(bytes),
                     load_be64(bytes + 8));
    } else {
        findings->lost++;
        findings_say(findings, "lost at %#lx: request %u is there", cell * CELL, value);
    }
    for (uint32_t i = 0; i < list->count; i++) {
        const Op *op = list->items[i].op == INITIAL ? NULL : op_at(model, list->items[i].op);
        findings_say(findings, "    allowed: request %u, ticks %lu to %ld, durable at %ld%s",
                     list->items[i].value, op ? op->start : 0, op ? (long)op->end : 0,
                     op ? (long)op->durable : 0, op && op->observed ? " (a READ saw it)" : "");
    }
}

static bool check_cells(const Model *model, const uint8_t *content, uint64_t from, uint64_t to,
                        Findings *findings)
{
    bool good = true;
    for (uint64_t cell = from; cell < to; cell++) {
        uint32_t value;
        const uint8_t *bytes = content + cell * CELL;
        StampKind kind = stamp_read(bytes, cell, &value);
        if (kind != STAMP_OK || !cell_allows(&model->allowed[cell], value)) {
            say_cell(model, cell, value, kind, bytes, findings);
            good = false;
        }
    }
    return good;
}

bool model_check(Model *model, const uint8_t *content, Findings *findings)
{
    bool good = true;
    uint64_t size = model->cells * CELL;
    for (uint64_t at = 0; at < size; at += PAGE) {
        uint64_t length = min_u64(PAGE, size - at);
        bool *is_right = &model->is_right[at / PAGE];
        if (*is_right && memcmp(content + at, model->right + at, length) == 0) {
            continue;
        }
        *is_right = check_cells(model, content, at / CELL, (at + length) / CELL, findings);
        memcpy(model->right + at, content + at, length);
        good &= *is_right;
    }
    return good;
}
