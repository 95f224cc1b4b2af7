/*
 * The cache of metadata blocks.
 *
 * A hash finds a block by its offset. Each block is, besides, in at most one list:
 *
 *     clean, not pinned    -> idle, least recently used last: the only blocks that eviction may
 * take dirty in an order    -> the list of that order, pinned or not clean and pinned     -> none
 *
 * What must stay true: `used` counts every block in the hash, and whenever it is over the limit
 * there is no idle block left; so memory is bounded by the limit, plus what is pinned, plus what is
 * dirty (which the owner bounds by asking metacache_is_full). The mutex guards hash, lists and
 * pins, never a transfer: two threads that miss the same block both read it and the second throws
 * its copy away, which is harmless because blocks only change while nobody reads them.
 */
#include "store/metacache.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define WRITE_BATCH 64 /* blocks in one vectored write */

typedef struct Link {
    struct Link *previous, *next;
} Link;

typedef struct Entry {
    MetaBlock block; /* first: a MetaBlock * is an Entry * */
    Link link;
    unsigned pins;
    uint8_t bytes[];
} Entry;

struct MetaCache {
    Store *store;
    uint32_t block_size;
    uint64_t limit;
    pthread_mutex_t lock;
    GHashTable *blocks; /* &entry->block.offset -> Entry */
    Link idle;
    Link dirty[3]; /* by MetaOrder; [META_CLEAN] is unused */
    _Atomic uint64_t dirty_count[3];
};

static void list_init(Link *head)
{
    head->previous = head->next = head;
}

static void list_add(Link *head, Link *link)
{
    link->next = head->next;
    link->previous = head;
    head->next->previous = link;
    head->next = link;
}

static void list_remove(Link *link)
{
    if (link->next != NULL) {
        link->previous->next = link->next;
        link->next->previous = link->previous;
        link->previous = link->next = NULL;
    }
}

static Entry *link_entry(Link *link)
{
    return (Entry *)((char *)link - offsetof(Entry, link));
}

MetaCache *metacache_new(Store *store, uint32_t block_size, uint64_t limit)
{
    assert(is_power_of_two(block_size) && block_size >= 512 && block_size <= 65536);
    MetaCache *cache = g_new0(MetaCache, 1);
    cache->store = store;
    cache->block_size = block_size;
    cache->limit = limit;
    pthread_mutex_init(&cache->lock, NULL);
    cache->blocks = g_hash_table_new(g_int64_hash, g_int64_equal);
    list_init(&cache->idle);
    list_init(&cache->dirty[META_FIRST]);
    list_init(&cache->dirty[META_SECOND]);
    return cache;
}

/* The lock is held. */
static void entry_drop(MetaCache *cache, Entry *entry)
{
    assert(entry->pins == 0);
    if (entry->block.order != META_CLEAN) {
        cache->dirty_count[entry->block.order]--;
    }
    list_remove(&entry->link);
    g_hash_table_remove(cache->blocks, &entry->block.offset);
    g_free(entry);
}

void metacache_free(MetaCache *cache)
{
    if (cache == NULL) {
        return;
    }
    GHashTableIter iter;
    gpointer entry;
    g_hash_table_iter_init(&iter, cache->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &entry)) {
        g_free(entry);
    }
    g_hash_table_destroy(cache->blocks);
    pthread_mutex_destroy(&cache->lock);
    g_free(cache);
}

/* The lock is held. */
static void evict(MetaCache *cache)
{
    while (cache->idle.previous != &cache->idle &&
           (uint64_t)g_hash_table_size(cache->blocks) * cache->block_size > cache->limit) {
        entry_drop(cache, link_entry(cache->idle.previous));
    }
}

/* The lock is held. NULL when the block is not there. */
static Entry *pin(MetaCache *cache, uint64_t offset)
{
    Entry *entry = g_hash_table_lookup(cache->blocks, &offset);
    if (entry != NULL) {
        entry->pins++;
        if (entry->block.order == META_CLEAN) {
            list_remove(&entry->link);
        }
    }
    return entry;
}

static Entry *entry_new(const MetaCache *cache, uint64_t offset)
{
    Entry *entry = g_try_malloc(sizeof(Entry) + cache->block_size);
    if (entry != NULL) {
        *entry = (Entry){.block = {.offset = offset, .order = META_CLEAN}};
        entry->block.data = entry->bytes;
    }
    return entry;
}

/* Puts a fresh entry in, pinned, unless somebody was faster: then that one is pinned. */
static Entry *insert(MetaCache *cache, Entry *entry)
{
    with_mutex(&cache->lock);
    Entry *there = pin(cache, entry->block.offset);
    if (there != NULL) {
        g_free(entry);
        return there;
    }
    entry->pins = 1;
    g_hash_table_insert(cache->blocks, &entry->block.offset, entry);
    evict(cache);
    return entry;
}

int metacache_get_cached(MetaCache *cache, uint64_t offset, MetaBlock **block)
{
    assert(offset % cache->block_size == 0);
    with_mutex(&cache->lock);
    Entry *entry = pin(cache, offset);
    *block = entry != NULL ? &entry->block : NULL;
    return entry != NULL ? 0 : -EAGAIN;
}

int metacache_get(MetaCache *cache, uint64_t offset, MetaBlock **block)
{
    if (metacache_get_cached(cache, offset, block) == 0) {
        return 0;
    }
    Entry *entry = entry_new(cache, offset);
    if (entry == NULL) {
        return -ENOMEM;
    }
    int r = store_read(cache->store, entry->bytes, cache->block_size, offset);
    if (r < 0) {
        g_free(entry);
        return r;
    }
    *block = &insert(cache, entry)->block;
    return 0;
}

int metacache_create(MetaCache *cache, uint64_t offset, MetaBlock **block)
{
    if (metacache_get_cached(cache, offset, block) < 0) {
        Entry *entry = entry_new(cache, offset);
        if (entry == NULL) {
            return -ENOMEM;
        }
        *block = &insert(cache, entry)->block;
    }
    memset((*block)->data, 0, cache->block_size);
    return 0;
}

void metacache_put(MetaCache *cache, MetaBlock *block)
{
    Entry *entry = (Entry *)block;
    with_mutex(&cache->lock);
    assert(entry->pins > 0);
    entry->pins--;
    if (entry->pins == 0 && block->order == META_CLEAN) {
        list_add(&cache->idle, &entry->link);
        evict(cache);
    }
}

/* The lock is held. */
static void set_order(MetaCache *cache, Entry *entry, MetaOrder order)
{
    if (entry->block.order != META_CLEAN) {
        cache->dirty_count[entry->block.order]--;
    }
    list_remove(&entry->link);
    entry->block.order = order;
    if (order != META_CLEAN) {
        cache->dirty_count[order]++;
        list_add(&cache->dirty[order], &entry->link);
    }
}

void metacache_dirty(MetaCache *cache, MetaBlock *block, MetaOrder order)
{
    Entry *entry = (Entry *)block;
    with_mutex(&cache->lock);
    assert(entry->pins > 0 && order != META_CLEAN);
    if (block->order < order) {
        set_order(cache, entry, order);
    }
}

static int compare_offsets(const void *a, const void *b)
{
    const Entry *x = *(const Entry *const *)a, *y = *(const Entry *const *)b;
    return x->block.offset < y->block.offset ? -1 : x->block.offset > y->block.offset;
}

/* Pins every dirty block of that order and gives them in the order of their offsets. */
static GPtrArray *collect(MetaCache *cache, MetaOrder order)
{
    GPtrArray *list = g_ptr_array_new();
    with_mutex(&cache->lock);
    for (Link *link = cache->dirty[order].next; link != &cache->dirty[order]; link = link->next) {
        link_entry(link)->pins++;
        g_ptr_array_add(list, link_entry(link));
    }
    g_ptr_array_sort(list, compare_offsets);
    return list;
}

/* Writes the neighbours that start at list[at] and end before list[end], at most a batch of them;
 * *count says how many. */
static int write_neighbours(MetaCache *cache, GPtrArray *list, unsigned at, unsigned end,
                            unsigned *count)
{
    struct iovec iov[WRITE_BATCH];
    uint64_t offset = ((Entry *)list->pdata[at])->block.offset;
    unsigned n = 0;
    while (n < WRITE_BATCH && at + n < end) {
        Entry *entry = list->pdata[at + n];
        if (entry->block.offset != offset + (uint64_t)n * cache->block_size) {
            break;
        }
        iov[n++] = (struct iovec){entry->bytes, cache->block_size};
    }
    *count = n;
    return store_writev(cache->store, iov, n, offset);
}

/* What was written is clean; all of it is unpinned. */
static void release(MetaCache *cache, GPtrArray *list, unsigned written)
{
    with_mutex(&cache->lock);
    for (unsigned i = 0; i < list->len; i++) {
        Entry *entry = list->pdata[i];
        if (i < written) {
            set_order(cache, entry, META_CLEAN);
        }
        if (--entry->pins == 0 && entry->block.order == META_CLEAN) {
            list_add(&cache->idle, &entry->link);
        }
    }
    evict(cache);
}

int metacache_write_groups(MetaCache *cache, MetaOrder order, unsigned most,
                           int (*before)(void *opaque, MetaBlock *const *blocks, unsigned count),
                           void *opaque)
{
    g_autoptr(GPtrArray) list = collect(cache, order);
    int r = 0;
    unsigned written = 0, end = 0, n;
    while (r == 0 && written < list->len) {
        if (written == end) {
            unsigned count = min_u64(most, list->len - end);
            r = before ? before(opaque, (MetaBlock *const *)(list->pdata + end), count) : 0;
            end += count;
        }
        if (r == 0) {
            r = write_neighbours(cache, list, written, end, &n);
            written += r == 0 ? n : 0;
        }
    }
    release(cache, list, written);
    return r;
}

int metacache_write(MetaCache *cache, MetaOrder order)
{
    return metacache_write_groups(cache, order, UINT_MAX, NULL, NULL);
}

bool metacache_has_dirty(const MetaCache *cache, MetaOrder order)
{
    return cache->dirty_count[order] != 0;
}

bool metacache_is_full(const MetaCache *cache)
{
    uint64_t dirty = cache->dirty_count[META_FIRST] + cache->dirty_count[META_SECOND];
    return dirty * cache->block_size > cache->limit / 2;
}

/* The lock is held. Looks at every block there is. */
static void forget_by_scan(MetaCache *cache, uint64_t offset, uint64_t length)
{
    g_autoptr(GPtrArray) list = g_ptr_array_new();
    GHashTableIter iter;
    gpointer value;
    g_hash_table_iter_init(&iter, cache->blocks);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Entry *entry = value;
        if (ranges_overlap(entry->block.offset, cache->block_size, offset, length)) {
            g_ptr_array_add(list, entry);
        }
    }
    for (unsigned i = 0; i < list->len; i++) {
        entry_drop(cache, list->pdata[i]);
    }
}

void metacache_forget(MetaCache *cache, uint64_t offset, uint64_t length)
{
    if (length == 0) {
        return;
    }
    with_mutex(&cache->lock);
    if (length / cache->block_size > g_hash_table_size(cache->blocks)) {
        forget_by_scan(cache, offset, length);
        return;
    }
    for (uint64_t at = align_down(offset, cache->block_size); at < offset + length;
         at += cache->block_size) {
        Entry *entry = g_hash_table_lookup(cache->blocks, &at);
        if (entry != NULL) {
            entry_drop(cache, entry);
        }
    }
}
