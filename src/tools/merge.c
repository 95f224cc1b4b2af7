/*
 * Moves data between an image and what lies below it.
 *
 *     down (commit)     top    D..Z..D        up (rebase)    top       D......
 *                       base   ddd.ddd                       old       .aab.cc
 *                       ----------------                     new       .aax..c
 *                       base   Ddd.ddD  Z: zero              ----------------
 *                                 Z                          top       D..b.c.
 *
 * Down, the image that is written is part of the chain that is read: its map is held still while the
 * chain is mapped, and no piece reads what another one writes.
 */
#include "tools/merge.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "tools/buffers.h"
#include "tools/bulk.h"
#include "tools/reader.h"
#include "tools/writer.h"

#define GRAIN 4096 /* zeroes are looked for in blocks of it */

typedef struct Merge {
    Image *top;
    Image *base;    /* down: the image that is written */
    Image *old;     /* up */
    unsigned depth; /* down */
    Writer *writer;
    Buffers *buffers, *others;
    uint64_t unit;
    _Atomic uint64_t write_failed; /* the first piece that could not be written; UINT64_MAX */
} Merge;

static int write_piece(Merge *merge, unsigned slot, uint64_t offset, uint64_t length,
                       const uint8_t *bytes, const GArray *parts)
{
    int r = writer_write(merge->writer, slot, offset, length, bytes, parts);
    uint64_t first = merge->write_failed;
    while (r < 0 && offset < first &&
           !atomic_compare_exchange_weak(&merge->write_failed, &first, offset)) {
    }
    return r;
}

/* ---- down ----------------------------------------------------------------------------------- */

/* What an extent of the chain is to the image below: something new, or what it has itself. */
static bool is_above(const Merge *merge, const Extent *extent)
{
    return extent->image && extent->depth < merge->depth;
}

static bool any_above(const Merge *merge, const ExtentList *map)
{
    for (unsigned i = 0; i < map->count; i++) {
        if (is_above(merge, &map->items[i])) {
            return true;
        }
    }
    return false;
}

static GArray *parts_above(const Merge *merge, const ExtentList *map, const uint8_t *bytes)
{
    GArray *parts = parts_new();
    uint64_t start = map->items[0].offset;
    for (unsigned i = 0; i < map->count; i++) {
        const Extent *extent = &map->items[i];
        if (!is_above(merge, extent)) {
            parts_add(parts, extent->offset, extent->length, PART_KEEP);
        } else if (extent_is_zero(extent)) {
            parts_add(parts, extent->offset, extent->length, PART_ZERO);
        } else {
            parts_add_data(parts, extent->offset, extent->length, bytes + (extent->offset - start),
                           GRAIN, PART_DATA);
        }
    }
    return parts;
}

static int read_tail(Merge *merge, uint64_t offset, uint64_t length, uint8_t *bytes)
{
    writer_hold_map(merge->writer);
    int r = chain_read(merge->base, bytes, length, offset);
    writer_release_map(merge->writer);
    return r;
}

static int merge_mapped_down(Merge *merge, unsigned slot, uint64_t offset, uint64_t length,
                             const ExtentList *map)
{
    uint8_t *bytes = buffers_get(merge->buffers, slot);
    uint64_t inside = extent_list_end(map) - offset;
    if (!any_above(merge, map)) {
        return 0;
    }
    int r = bytes ? reader_read(map, offset, inside, bytes) : -ENOMEM;
    if (r == 0 && inside < length) { /* the base is larger, and its unit goes on behind top's end */
        r = read_tail(merge, offset + inside, length - inside, bytes + inside);
    }
    if (r < 0) {
        return r;
    }
    g_autoptr(GArray) parts = parts_above(merge, map, bytes);
    parts_add(parts, offset + inside, length - inside, PART_KEEP);
    return write_piece(merge, slot, offset, length, bytes, parts);
}

static int merge_piece_down(void *opaque, unsigned slot, uint64_t offset, uint64_t length,
                            uint64_t *next)
{
    Merge *merge = opaque;
    ExtentList map;
    extent_list_init(&map);
    writer_hold_map(merge->writer);
    int r = reader_map(merge->top, offset, min_u64(length, merge->top->size - offset), &map);
    writer_release_map(merge->writer);
    r = r < 0 ? r : merge_mapped_down(merge, slot, offset, length, &map);
    extent_list_clear(&map);
    return r;
}

/* ---- up ------------------------------------------------------------------------------------- */

/* Reads a range of what is below; NULL is zeroes. */
static int read_below(Image *image, uint64_t offset, uint64_t length, uint8_t *bytes)
{
    ExtentList map;
    if (!image) {
        memset(bytes, 0, length);
        return 0;
    }
    extent_list_init(&map);
    int r = reader_map(image, offset, length, &map);
    r = r < 0 ? r : reader_read(&map, offset, length, bytes);
    extent_list_clear(&map);
    return r;
}

/* Whether the range reads as zeroes, as far as that is known without reading it. */
static bool below_is_zero(Image *image, uint64_t offset, uint64_t length)
{
    return !image || reader_zero_until(image, offset, offset + length) == offset + length;
}

/* A range that stays as it is. A unit that gets something is written whole, so what the first and the last unit of the
 * range hold must be in bytes, the bytes of the piece. */
static int keep(Merge *merge, uint64_t offset, uint64_t length, GArray *parts, uint8_t *bytes,
                uint64_t piece)
{
    uint64_t unit = merge->top->largest_unit, end = offset + length;
    uint64_t head = min_u64(align_up(offset, unit), end), tail = align_down(end, unit);
    tail = max_u64(tail, head);
    parts_add(parts, offset, length, PART_KEEP);
    writer_hold_map(merge->writer);
    int r = chain_read(merge->top, bytes + (offset - piece), head - offset, offset);
    r = r < 0 ? r : chain_read(merge->top, bytes + (tail - piece), end - tail, tail);
    writer_release_map(merge->writer);
    return r;
}

/* A range that top does not have: what of it differs? */
static int compare_below(Merge *merge, unsigned slot, uint64_t offset, uint64_t length,
                         GArray *parts, uint8_t *bytes, uint64_t piece)
{
    Image *new = merge->top->backing;
    if (below_is_zero(merge->old, offset, length) && below_is_zero(new, offset, length)) {
        return keep(merge, offset, length, parts, bytes, piece);
    }
    uint8_t *other = buffers_get(merge->others, slot);
    bytes += offset - piece;
    int r = other ? read_below(merge->old, offset, length, bytes) : -ENOMEM;
    r = r < 0 ? r : read_below(new, offset, length, other);
    if (r < 0) {
        return r;
    }
    g_autoptr(GArray) all = parts_new();
    parts_add_data(all, offset, length, bytes, GRAIN, PART_DATA);
    g_autoptr(GArray) left = parts_without_equal(all, merge->unit, bytes, other);
    for (guint i = 0; i < left->len; i++) {
        const Part *part = &g_array_index(left, Part, i);
        parts_add(parts, part->offset, part->length, part->kind);
    }
    return 0;
}

/* top's own map, for all of the range. */
static int map_own(Merge *merge, uint64_t offset, uint64_t length, ExtentList *map)
{
    int r = 0;
    writer_hold_map(merge->writer);
    for (uint64_t at = offset; r == 0 && at < offset + length; at = extent_list_end(map)) {
        r = image_map(merge->top, at, offset + length - at, map);
    }
    writer_release_map(merge->writer);
    return r;
}

static int merge_mapped_up(Merge *merge, unsigned slot, uint64_t offset, uint64_t length,
                           const ExtentList *map)
{
    g_autoptr(GArray) parts = parts_new();
    uint8_t *bytes = buffers_get(merge->buffers, slot);
    int r = bytes ? 0 : -ENOMEM;
    for (unsigned i = 0; r == 0 && i < map->count; i++) {
        const Extent *extent = &map->items[i];
        if (extent->type == EXTENT_UNALLOCATED) {
            r = compare_below(merge, slot, extent->offset, extent->length, parts, bytes, offset);
        } else {
            r = keep(merge, extent->offset, extent->length, parts, bytes, offset);
        }
    }
    return r < 0 ? r : write_piece(merge, slot, offset, length, bytes, parts);
}

static int merge_piece_up(void *opaque, unsigned slot, uint64_t offset, uint64_t length,
                          uint64_t *next)
{
    Merge *merge = opaque;
    ExtentList map;
    extent_list_init(&map);
    int r = map_own(merge, offset, length, &map);
    r = r < 0 ? r : merge_mapped_up(merge, slot, offset, length, &map);
    extent_list_clear(&map);
    return r;
}

/* ---- both ----------------------------------------------------------------------------------- */

typedef int MergePiece(void *opaque, unsigned slot, uint64_t offset, uint64_t length,
                       uint64_t *next);

static int run(Merge *merge, Image *target, MergePiece *work, const MergeOptions *options,
               MergeFailure *failure)
{
    uint64_t piece = buffers_piece(target->largest_unit);
    unsigned threads = buffers_threads(options->threads, 2 * piece);
    WriterOptions how = {.over_backing = true, .threads = threads, .piece = piece};
    g_autoptr(Writer) writer = writer_new(target, &how);
    g_autoptr(Buffers) buffers = buffers_new(threads, piece), others = buffers_new(threads, piece);
    merge->writer = writer;
    merge->buffers = buffers;
    merge->others = others;
    merge->unit = max_u64(target->largest_unit, GRAIN);
    merge->write_failed = UINT64_MAX;
    Bulk bulk = {
        .length = min_u64(align_up(merge->top->size, target->largest_unit), target->size),
        .piece = piece,
        .threads = threads,
        .rate = options->rate,
        .work = work,
        .opaque = merge,
        .progress = options->progress,
        .context = options->context,
    };
    int r = bulk.length > 0 ? bulk_run(&bulk, &failure->offset) : 0;
    failure->writing = merge->write_failed == failure->offset;
    return r;
}

int merge_down(Image *top, unsigned depth, const MergeOptions *options, MergeFailure *failure)
{
    Merge merge = {.top = top, .depth = depth};
    Image *base = top;
    for (unsigned i = 0; i < depth; i++) {
        base = base->backing;
    }
    g_assert(base->write && base->size >= top->size);
    merge.base = base;
    return run(&merge, base, merge_piece_down, options, failure);
}

int merge_up(Image *top, Image *old, const MergeOptions *options, MergeFailure *failure)
{
    Merge merge = {.top = top, .old = old};
    return run(&merge, top, merge_piece_up, options, failure);
}
