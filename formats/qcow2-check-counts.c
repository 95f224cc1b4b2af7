/*
 * qcow2 check: two numbers for each host cluster, wanted and found.
 *
 * They lie in chunks of 1024 clusters that are made when the first of them is not zero: a hostile
 * file that claims to be huge costs nothing, and a small one little. Numbers of 65535 and more are
 * rare and kept aside. Memory has a limit; when it is reached, `full` says that the numbers cannot
 * be trusted.
 */
#include "formats/qcow2-check.h"

#define LARGE       UINT16_MAX
#define LARGE_BYTES 64 /* about what one large number costs */

void counts_init(Counts *counts, uint64_t limit)
{
    *counts = (Counts){
        .chunks = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free),
        .limit = limit,
    };
}

void counts_clear(Counts *counts)
{
    g_clear_pointer(&counts->chunks, g_hash_table_unref);
    g_clear_pointer(&counts->large_wanted, g_hash_table_unref);
    g_clear_pointer(&counts->large_found, g_hash_table_unref);
    counts->last = NULL;
}

static bool take_memory(Counts *counts, uint64_t bytes)
{
    if (bytes > counts->limit - counts->bytes) {
        counts->full = true;
        return false;
    }
    counts->bytes += bytes;
    return true;
}

/* The chunk of a cluster, or NULL: it is all zero (and could not be made, if that was asked). */
static CountChunk *find_chunk(Counts *counts, uint64_t cluster, bool make)
{
    uint64_t first = cluster & ~(uint64_t)(COUNT_CHUNK - 1);
    if (counts->last && counts->last->first == first) {
        return counts->last;
    }
    CountChunk *chunk = g_hash_table_lookup(counts->chunks, &first);
    if (!chunk && make && take_memory(counts, sizeof *chunk)) {
        chunk = g_new0(CountChunk, 1);
        chunk->first = first;
        g_hash_table_insert(counts->chunks, &chunk->first, chunk);
    }
    if (chunk) {
        counts->last = chunk;
    }
    return chunk;
}

static uint64_t load_number(const uint16_t *small, GHashTable *large, uint64_t cluster)
{
    if (*small < LARGE) {
        return *small;
    }
    const uint64_t *number = large ? g_hash_table_lookup(large, &cluster) : NULL;
    return number ? *number : LARGE;
}

static void store_number(Counts *counts, uint16_t *small, GHashTable **large, uint64_t cluster,
                         uint64_t value)
{
    *small = min_u64(value, LARGE);
    if (value < LARGE) {
        return;
    }
    if (!*large) {
        *large = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
    }
    uint64_t *number = g_hash_table_lookup(*large, &cluster);
    if (number) {
        *number = value;
    } else if (take_memory(counts, LARGE_BYTES)) {
        g_hash_table_insert(*large, g_memdup2(&cluster, sizeof cluster),
                            g_memdup2(&value, sizeof value));
    }
}

uint64_t counts_wanted(Counts *counts, uint64_t cluster)
{
    CountChunk *chunk = find_chunk(counts, cluster, false);
    return chunk ? load_number(&chunk->wanted[cluster % COUNT_CHUNK], counts->large_wanted, cluster)
                 : 0;
}

uint64_t counts_found(Counts *counts, uint64_t cluster)
{
    CountChunk *chunk = find_chunk(counts, cluster, false);
    return chunk ? load_number(&chunk->found[cluster % COUNT_CHUNK], counts->large_found, cluster)
                 : 0;
}

void counts_set_wanted(Counts *counts, uint64_t cluster, uint64_t value)
{
    CountChunk *chunk = find_chunk(counts, cluster, true);
    if (chunk) {
        store_number(counts, &chunk->wanted[cluster % COUNT_CHUNK], &counts->large_wanted, cluster,
                     value);
    }
}

void counts_set_found(Counts *counts, uint64_t cluster, uint64_t value)
{
    CountChunk *chunk = find_chunk(counts, cluster, true);
    if (chunk) {
        store_number(counts, &chunk->found[cluster % COUNT_CHUNK], &counts->large_found, cluster,
                     value);
    }
}

static int compare_chunks(gconstpointer a, gconstpointer b)
{
    const CountChunk *const *x = a, *const *y = b;
    return (*x)->first < (*y)->first ? -1 : (*x)->first > (*y)->first;
}

GPtrArray *counts_sorted(Counts *counts)
{
    GPtrArray *sorted = g_ptr_array_sized_new(g_hash_table_size(counts->chunks));
    GHashTableIter iter;
    gpointer chunk;
    g_hash_table_iter_init(&iter, counts->chunks);
    while (g_hash_table_iter_next(&iter, NULL, &chunk)) {
        g_ptr_array_add(sorted, chunk);
    }
    g_ptr_array_sort(sorted, compare_chunks);
    return sorted;
}
