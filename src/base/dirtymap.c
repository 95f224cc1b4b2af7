/*
 * Which parts of a disk were written.
 *
 *     chunks[i] -> 512 words of 64 bits: granules i * 32768 to i * 32768 + 32767
 *               or NULL: none of them is marked
 *               or all_ones: all of them are
 *
 * A chunk is made by whoever marks first: of two at once, one gives its own away. Words are changed by
 * atomic OR alone. What reads a mark has seen whatever led to it by other means (an answered request).
 */
#include "base/dirtymap.h"

#include <endian.h>
#include <glib.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"

#define WORDS       512u              /* of a chunk */
#define CHUNK_BYTES (WORDS * 8)       /* of the serial form */
#define CHUNK_BITS  (CHUNK_BYTES * 8) /* granules */

typedef _Atomic uint64_t Word;

struct DirtyMap {
    uint64_t size, granules, bytes;
    unsigned granularity_bits;
    uint64_t chunk_count;
    _Atomic(Word *) chunks[];
};

static Word all_ones[WORDS] = {[0 ... WORDS - 1] = UINT64_MAX};

uint64_t dirtymap_serial_size(uint64_t size, unsigned granularity_bits)
{
    return div_round_up(div_round_up(size, UINT64_C(1) << granularity_bits), 8);
}

DirtyMap *dirtymap_new(uint64_t size, unsigned granularity_bits)
{
    uint64_t bytes = dirtymap_serial_size(size, granularity_bits);
    if (bytes > DIRTYMAP_BYTES_MAX) {
        return NULL;
    }
    uint64_t chunks = div_round_up(bytes, CHUNK_BYTES);
    DirtyMap *map = g_try_malloc0(sizeof *map + chunks * sizeof map->chunks[0]);
    if (map) {
        map->size = size;
        map->granules = div_round_up(size, UINT64_C(1) << granularity_bits);
        map->bytes = bytes;
        map->granularity_bits = granularity_bits;
        map->chunk_count = chunks;
    }
    return map;
}

static void drop_chunk(DirtyMap *map, uint64_t index)
{
    Word *chunk = map->chunks[index];
    if (chunk != all_ones) {
        g_free(chunk);
    }
    map->chunks[index] = NULL;
}

void dirtymap_clear(DirtyMap *map)
{
    for (uint64_t i = 0; i < map->chunk_count; i++) {
        drop_chunk(map, i);
    }
}

void dirtymap_free(DirtyMap *map)
{
    if (map) {
        dirtymap_clear(map);
        g_free(map);
    }
}

static Word *get_chunk(const DirtyMap *map, uint64_t index)
{
    return atomic_load_explicit(&map->chunks[index], memory_order_acquire);
}

static Word *need_chunk(DirtyMap *map, uint64_t index)
{
    Word *chunk = get_chunk(map, index);
    if (chunk == NULL) {
        Word *made = g_malloc0(CHUNK_BYTES);
        if (atomic_compare_exchange_strong(&map->chunks[index], &chunk, made)) {
            return made;
        }
        g_free(made);
    }
    return chunk;
}

/* The bits from..to-1 of a word, 0 <= from < to <= 64. */
static uint64_t mask_of(unsigned from, unsigned to)
{
    return (UINT64_MAX >> (64 - (to - from))) << from;
}

static void set_bits(DirtyMap *map, uint64_t first, uint64_t end)
{
    while (first < end) {
        uint64_t word_end = min_u64(end, align_down(first, 64) + 64);
        Word *chunk = need_chunk(map, first / CHUNK_BITS);
        if (chunk == all_ones) {
            first = (first / CHUNK_BITS + 1) * CHUNK_BITS;
            continue;
        }
        uint64_t mask = mask_of(first % 64, (word_end - 1) % 64 + 1);
        Word *word = &chunk[first % CHUNK_BITS / 64];
        if ((atomic_load_explicit(word, memory_order_relaxed) & mask) != mask) {
            atomic_fetch_or_explicit(word, mask, memory_order_relaxed);
        }
        first = word_end;
    }
}

void dirtymap_mark(DirtyMap *map, uint64_t offset, uint64_t length)
{
    if (length > 0) {
        set_bits(map, offset >> map->granularity_bits,
                 ((offset + length - 1) >> map->granularity_bits) + 1);
    }
}

static uint64_t word_at(const DirtyMap *map, uint64_t granule)
{
    const Word *chunk = get_chunk(map, granule / CHUNK_BITS);
    return chunk ? atomic_load_explicit(&chunk[granule % CHUNK_BITS / 64], memory_order_relaxed)
                 : 0;
}

/* How far from granule on all say `marked`, at most to end. */
static uint64_t same_until(const DirtyMap *map, uint64_t granule, uint64_t end, bool marked)
{
    while (granule < end) {
        if (granule % CHUNK_BITS == 0 && get_chunk(map, granule / CHUNK_BITS) == NULL && !marked) {
            granule += CHUNK_BITS;
            continue;
        }
        uint64_t word = word_at(map, granule);
        uint64_t other = (marked ? ~word : word) >> granule % 64;
        if (other != 0) {
            granule += (unsigned)__builtin_ctzll(other);
            break;
        }
        granule = align_down(granule, 64) + 64;
    }
    return min_u64(granule, end);
}

bool dirtymap_get(const DirtyMap *map, uint64_t offset, uint64_t length, uint64_t *run)
{
    uint64_t granule = offset >> map->granularity_bits;
    uint64_t last = (offset + length - 1) >> map->granularity_bits;
    bool marked = word_at(map, granule) >> granule % 64 & 1;
    uint64_t end = same_until(map, granule, last + 1, marked);
    *run = end > last ? length : (end << map->granularity_bits) - offset;
    return marked;
}

/* One chunk's part of dirtymap_save: `at` and length lie in it. */
static void save_piece(const DirtyMap *map, uint64_t at, uint64_t length, uint8_t *bytes)
{
    const Word *chunk = at < map->bytes ? get_chunk(map, at / CHUNK_BYTES) : NULL;
    for (uint64_t i = 0; i < length; i += 8) {
        uint64_t word = chunk ? chunk[(at + i) % CHUNK_BYTES / 8] : 0;
        uint64_t granule = (at + i) * 8;
        if (granule + 64 > map->granules) { /* all_ones has bits behind the end */
            word = granule < map->granules ? word & mask_of(0, map->granules - granule) : 0;
        }
        store_le64(bytes + i, word);
    }
}

DirtyMapFill dirtymap_save(const DirtyMap *map, uint64_t at, uint64_t length, uint8_t *bytes)
{
    uint64_t ones = 0, zeroes = 0;
    for (uint64_t done = 0, n; done < length; done += n) {
        n = min_u64(length - done, CHUNK_BYTES - (at + done) % CHUNK_BYTES);
        save_piece(map, at + done, n, bytes + done);
    }
    for (uint64_t i = 0; i < length; i++) {
        zeroes += bytes[i] == 0;
        ones += bytes[i] == 0xff;
    }
    return zeroes == length ? DIRTYMAP_NONE : ones == length ? DIRTYMAP_ALL : DIRTYMAP_SOME;
}

static bool is_zero(const uint8_t *bytes, uint64_t length)
{
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

/* One chunk's part of dirtymap_load. */
static void load_piece(DirtyMap *map, uint64_t at, uint64_t length, const uint8_t *bytes)
{
    uint64_t index = at / CHUNK_BYTES;
    if (!bytes && length == CHUNK_BYTES) {
        drop_chunk(map, index);
        map->chunks[index] = all_ones;
        return;
    }
    if (map->chunks[index] == NULL && bytes && is_zero(bytes, length)) {
        return;
    }
    Word *chunk = need_chunk(map, index);
    for (uint64_t i = 0; i < length && chunk != all_ones; i += 8) {
        uint64_t word = bytes ? load_le64(bytes + i) : UINT64_MAX, granule = (at + i) * 8;
        if (granule + 64 > map->granules) {
            word = granule < map->granules ? word & mask_of(0, map->granules - granule) : 0;
        }
        chunk[(at + i) % CHUNK_BYTES / 8] = word;
    }
}

void dirtymap_load(DirtyMap *map, uint64_t at, uint64_t length, const uint8_t *bytes)
{
    uint64_t end = min_u64(at + length, align_up(map->bytes, 512));
    for (uint64_t done = at, n; done < end; done += n) {
        n = min_u64(end - done, CHUNK_BYTES - done % CHUNK_BYTES);
        load_piece(map, done, n, bytes ? bytes + (done - at) : NULL);
    }
}
