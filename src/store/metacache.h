/*
 * Cached metadata blocks of one store (refcount blocks, pieces of L2 tables, grain tables), bounded
 * in memory, written back in order.
 *
 * A dirty block belongs to one of two orders: META_FIRST is written before the next sync,
 * META_SECOND after it (docs/architecture.md, what a crash may do, rule 2). A dirty block never
 * leaves the cache by eviction: the owner asks metacache_is_full() after its changes and flushes.
 *
 * Threads: get, put from many pool threads at once; create, dirty, write, forget only under the
 * image's exclusive or write-back gate (one at a time), gets going on beside them. All may block.
 * [pool]
 */
#ifndef STORE_METACACHE_H
#define STORE_METACACHE_H

#include "store/store.h"

typedef struct MetaCache MetaCache;

typedef enum { META_CLEAN, META_FIRST, META_SECOND } MetaOrder;

typedef struct MetaBlock {
    uint64_t offset; /* in the store, a multiple of the block size */
    uint8_t *data;   /* block_size bytes; read it only while pinned, change it only under the
                        exclusive gate */
    MetaOrder order;
} MetaBlock;

/* block_size: a power of two, 512 to 64 KiB. limit: bytes of clean blocks kept; memory is taken as
 * blocks come, an idle cache costs next to nothing. The cache does not own the store. */
MetaCache *metacache_new(Store *store, uint32_t block_size, uint64_t limit);
void metacache_free(MetaCache *cache); /* dirty blocks are dropped; flush before */

/* Pins the block at offset, reading it when it is not there. 0 or -errno (then *block is NULL). */
int metacache_get(MetaCache *cache, uint64_t offset, MetaBlock **block);

/* Like metacache_get, but never reads from the store: -EAGAIN when the block is not there. [any] */
int metacache_get_cached(MetaCache *cache, uint64_t offset, MetaBlock **block);

/* Pins the block at offset zero-filled, without reading: the space is new. It starts clean. */
int metacache_create(MetaCache *cache, uint64_t offset, MetaBlock **block);

void metacache_put(MetaCache *cache, MetaBlock *block);

/* Says that a pinned block was changed. A block dirty in META_SECOND stays so when META_FIRST is
 * asked. */
void metacache_dirty(MetaCache *cache, MetaBlock *block, MetaOrder order);

/* Writes every dirty block of that order (neighbours in one write), making it clean; on failure
 * blocks that were not written stay dirty. */
int metacache_write(MetaCache *cache, MetaOrder order);

/* The same in groups of at most `most` blocks, ascending. Before one is written, `before` is told of
 * it (formats that keep a log); what it returns other than 0 ends all. */
int metacache_write_groups(MetaCache *cache, MetaOrder order, unsigned most,
                           int (*before)(void *opaque, MetaBlock *const *blocks, unsigned count),
                           void *opaque);

bool metacache_has_dirty(const MetaCache *cache, MetaOrder order);
bool metacache_is_full(const MetaCache *cache); /* dirty blocks take more than half of the limit */

/* Drops blocks of the range, dirty or not: the space has another use now. None may be pinned. */
void metacache_forget(MetaCache *cache, uint64_t offset, uint64_t length);

#endif
