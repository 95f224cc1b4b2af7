/*
 * Copies a disk.
 *
 * Each piece: map it, read what is not zero, tell data from zeroes, hand it to the writer. Pieces
 * that the map calls zero are neither read nor, in a blank image, written.
 */
#include "tools/copy.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "tools/buffers.h"
#include "tools/bulk.h"
#include "tools/reader.h"
#include "tools/writer.h"

typedef struct Copy {
    Image *source;
    const CopyOptions *options;
    Writer *writer;
    Buffers *buffers;              /* one a thread: a piece of the source */
    Buffers *below;                /* the same piece of the target's backing */
    uint64_t unit;                 /* of the target */
    _Atomic uint64_t write_failed; /* the first piece that could not be written; UINT64_MAX */
} Copy;

/* How data of an extent is stored: as the user wants it, or as it was. */
static PartKind data_kind(const CopyOptions *options, const Extent *extent)
{
    bool as_it_was = options->own && extent->type == EXTENT_ENCODED;
    return options->compress || as_it_was ? PART_ENCODED : PART_DATA;
}

/* Whether the target shall have it from elsewhere. */
static bool is_kept(const CopyOptions *options, const Extent *extent)
{
    return options->own && (!extent->image || extent->depth > 0);
}

/* What the map of a piece and its bytes say, as parts of the target. */
static GArray *parts_of(const Copy *copy, const ExtentList *map, const uint8_t *bytes)
{
    const CopyOptions *options = copy->options;
    GArray *parts = parts_new();
    uint64_t start = map->items[0].offset;
    for (unsigned i = 0; i < map->count; i++) {
        const Extent *extent = &map->items[i];
        uint64_t offset = extent->offset - options->source_offset;
        PartKind kind = data_kind(options, extent);
        if (is_kept(options, extent)) {
            parts_add(parts, offset, extent->length, PART_KEEP);
        } else if (extent_is_zero(extent)) {
            parts_add(parts, offset, extent->length, options->grain == 0 ? kind : PART_ZERO);
        } else {
            parts_add_data(parts, offset, extent->length, bytes + (extent->offset - start),
                           options->grain, kind);
        }
    }
    return parts;
}

static int read_below(Copy *copy, unsigned slot, uint64_t offset, uint64_t length,
                      const uint8_t **below)
{
    ExtentList map;
    extent_list_init(&map);
    uint8_t *buffer = buffers_get(copy->below, slot);
    int r = buffer ? reader_map(copy->options->backing, offset, length, &map) : -ENOMEM;
    r = r < 0 ? r : reader_read(&map, offset, length, buffer);
    extent_list_clear(&map);
    *below = buffer;
    return r;
}

static void note_write_failure(Copy *copy, uint64_t offset)
{
    uint64_t first = copy->write_failed;
    while (offset < first && !atomic_compare_exchange_weak(&copy->write_failed, &first, offset)) {
    }
}

static int write_piece(Copy *copy, unsigned slot, uint64_t offset, uint64_t length,
                       const ExtentList *map, const uint8_t *bytes)
{
    g_autoptr(GArray) parts = parts_of(copy, map, bytes);
    if (copy->options->backing) {
        const uint8_t *below;
        int r = read_below(copy, slot, offset, length, &below);
        if (r < 0) {
            return r;
        }
        GArray *left = parts_without_equal(parts, copy->unit, bytes, below);
        g_array_unref(parts);
        parts = left;
    }
    int r = writer_write(copy->writer, slot, offset, length, bytes, parts);
    if (r < 0) {
        note_write_failure(copy, offset);
    }
    return r;
}

static bool all_kept(const CopyOptions *options, const ExtentList *map)
{
    bool kept = true;
    for (unsigned i = 0; kept && i < map->count; i++) {
        kept = is_kept(options, &map->items[i]);
    }
    return kept;
}

/* Nothing to read, and nothing to write in a blank image. */
static bool is_nothing(const Copy *copy, const ExtentList *map)
{
    const CopyOptions *options = copy->options;
    return options->blank && options->grain != 0 && reader_all_zero(map);
}

static int copy_mapped(Copy *copy, unsigned slot, uint64_t offset, uint64_t length,
                       const ExtentList *map, uint64_t *next)
{
    const CopyOptions *options = copy->options;
    if (is_nothing(copy, map)) {
        *next = reader_zero_until(copy->source, options->source_offset + *next,
                                  options->source_offset + options->length) -
                options->source_offset;
        return 0;
    }
    if (all_kept(options, map)) {
        return 0;
    }
    uint8_t *buffer = buffers_get(copy->buffers, slot);
    int r = buffer ? salvage_read(options->salvage, map, map->items[0].offset, length, buffer)
                   : -ENOMEM;
    return r < 0 ? r : write_piece(copy, slot, offset, length, map, buffer);
}

/* The map of a piece of the target, which may go on behind what is copied: whole units are written. */
static int map_source(const Copy *copy, uint64_t offset, uint64_t length, ExtentList *map)
{
    const CopyOptions *options = copy->options;
    uint64_t start = options->source_offset + offset;
    uint64_t inside = min_u64(length, options->length - offset);
    int r = salvage_map(options->salvage, copy->source, start, inside, map);
    if (r == 0 && inside < length) {
        extent_list_add_zero(map, start + inside, length - inside, NULL);
    }
    return r;
}

static int copy_piece(void *opaque, unsigned slot, uint64_t offset, uint64_t length, uint64_t *next)
{
    Copy *copy = opaque;
    ExtentList map;
    extent_list_init(&map);
    int r = map_source(copy, offset, length, &map);
    r = r < 0 ? r : copy_mapped(copy, slot, offset, length, &map, next);
    extent_list_clear(&map);
    return r;
}

int copy_disk(Image *source, Image *target, const CopyOptions *options, CopyFailure *failure)
{
    uint64_t piece = buffers_piece(target->largest_unit);
    unsigned threads = buffers_threads(options->threads, piece);
    WriterOptions how = {
        .blank = options->blank,
        .over_backing = target->backing_name != NULL,
        .fine = options->own && target->encryption,
        .threads = threads,
        .piece = piece,
    };
    g_autoptr(Writer) writer = writer_new(target, &how);
    g_autoptr(Buffers) buffers = buffers_new(threads, piece), below = buffers_new(threads, piece);
    Copy copy = {
        .source = source,
        .options = options,
        .writer = writer,
        .buffers = buffers,
        .below = below,
        .write_failed = UINT64_MAX,
        .unit = max_u64(target->largest_unit, options->grain ? options->grain : 1),
    };
    Bulk bulk = {
        .length = min_u64(align_up(options->length, target->largest_unit), target->size),
        .piece = piece,
        .threads = threads,
        .rate = options->rate,
        .work = copy_piece,
        .opaque = &copy,
        .progress = options->progress,
        .context = options->context,
    };
    int r = bulk_run(&bulk, &failure->offset);
    failure->writing = copy.write_failed == failure->offset;
    return r;
}
