/* store/metacache.c */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "store/metacache.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define BLOCK 512u
#define LIMIT (8 * BLOCK)

static const StoreOps *real_ops;
static StoreOps counting_ops;
static unsigned reads, writes;
static unsigned failing_write; /* this one and all later ones fail; 0: none */
static uint64_t write_lengths[64];

static int count_preadv(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    __atomic_add_fetch(&reads, 1, __ATOMIC_SEQ_CST);
    return real_ops->preadv(store, iov, count, offset);
}

static int count_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    write_lengths[writes++ % 64] = (uint64_t)count * BLOCK;
    if (failing_write != 0 && writes >= failing_write) {
        return -EIO;
    }
    return real_ops->pwritev(store, iov, count, offset);
}

static Store *new_store(void)
{
    Store *store = store_memory_new("meta", NULL, 64 * BLOCK);
    real_ops = store->ops;
    counting_ops = *store->ops;
    counting_ops.preadv = count_preadv;
    counting_ops.pwritev = count_pwritev;
    store->ops = &counting_ops;
    reads = writes = failing_write = 0;
    return store;
}

static MetaBlock *get(MetaCache *cache, unsigned block)
{
    MetaBlock *b;
    ck_assert_int_eq(metacache_get(cache, block * BLOCK, &b), 0);
    return b;
}

static void change(MetaCache *cache, unsigned block, uint8_t value, MetaOrder order)
{
    MetaBlock *b = get(cache, block);
    memset(b->data, value, BLOCK);
    metacache_dirty(cache, b, order);
    metacache_put(cache, b);
}

static uint8_t stored(Store *store, unsigned block)
{
    uint8_t byte;
    ck_assert_int_eq(store_read(store, &byte, 1, block * BLOCK), 0);
    return byte;
}

START_TEST(metacache_reads_a_block_once)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    MetaBlock *absent;
    ck_assert_int_eq(metacache_get_cached(cache, 0, &absent), -EAGAIN);
    ck_assert_ptr_null(absent);
    MetaBlock *a = get(cache, 0), *b = get(cache, 0);
    ck_assert_ptr_eq(a, b);
    metacache_put(cache, a);
    metacache_put(cache, b);
    ck_assert_int_eq(metacache_get_cached(cache, 0, &a), 0);
    metacache_put(cache, a);
    ck_assert_uint_eq(reads, 1);
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_create_does_not_read)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    MetaBlock *b;
    ck_assert_int_eq(metacache_create(cache, BLOCK, &b), 0);
    ck_assert_uint_eq(b->data[17], 0);
    ck_assert_int_eq(b->order, META_CLEAN);
    metacache_put(cache, b);
    ck_assert_uint_eq(reads, 0);
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_drops_the_least_recently_used)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    for (unsigned i = 0; i < 8; i++) {
        metacache_put(cache, get(cache, i));
    }
    metacache_put(cache, get(cache, 0));
    metacache_put(cache, get(cache, 8)); /* 1 has to go, not 0 */
    MetaBlock *b;
    ck_assert_int_eq(metacache_get_cached(cache, 0, &b), 0);
    metacache_put(cache, b);
    ck_assert_int_eq(metacache_get_cached(cache, BLOCK, &b), -EAGAIN);
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_keeps_what_is_dirty_or_pinned)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    MetaBlock *pinned = get(cache, 0);
    change(cache, 1, 0x11, META_SECOND);
    for (unsigned i = 2; i < 40; i++) {
        metacache_put(cache, get(cache, i));
    }
    MetaBlock *b;
    ck_assert_int_eq(metacache_get_cached(cache, 0, &b), 0);
    ck_assert_ptr_eq(b, pinned);
    metacache_put(cache, b);
    metacache_put(cache, pinned);
    ck_assert_int_eq(metacache_get_cached(cache, BLOCK, &b), 0);
    ck_assert_uint_eq(b->data[0], 0x11);
    metacache_put(cache, b);
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_writes_one_order_at_a_time_neighbours_together)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    change(cache, 3, 1, META_FIRST);
    change(cache, 2, 2, META_FIRST);
    change(cache, 1, 3, META_FIRST);
    change(cache, 6, 4, META_FIRST);
    change(cache, 4, 5, META_SECOND);
    ck_assert(metacache_has_dirty(cache, META_FIRST) && metacache_has_dirty(cache, META_SECOND));
    ck_assert_int_eq(metacache_write(cache, META_FIRST), 0);
    ck_assert_uint_eq(writes, 2);
    ck_assert_uint_eq(write_lengths[0], 3 * BLOCK);
    ck_assert(!metacache_has_dirty(cache, META_FIRST));
    ck_assert(stored(store, 1) == 3 && stored(store, 2) == 2 && stored(store, 3) == 1);
    ck_assert(stored(store, 6) == 4 && stored(store, 4) == 0);
    ck_assert_int_eq(metacache_write(cache, META_SECOND), 0);
    ck_assert_uint_eq(stored(store, 4), 5);
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_order_only_becomes_later)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    change(cache, 0, 1, META_FIRST);
    change(cache, 0, 2, META_SECOND);
    change(cache, 0, 3, META_FIRST);
    ck_assert(!metacache_has_dirty(cache, META_FIRST));
    ck_assert_int_eq(metacache_write(cache, META_FIRST), 0);
    ck_assert_uint_eq(stored(store, 0), 0);
    ck_assert_int_eq(metacache_write(cache, META_SECOND), 0);
    ck_assert_uint_eq(stored(store, 0), 3);
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_failed_write_stays_dirty)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    change(cache, 0, 1, META_FIRST);
    change(cache, 2, 2, META_FIRST);
    change(cache, 4, 3, META_FIRST);
    failing_write = 2;
    ck_assert_int_eq(metacache_write(cache, META_FIRST), -EIO);
    ck_assert(metacache_has_dirty(cache, META_FIRST));
    failing_write = 0;
    writes = 0;
    ck_assert_int_eq(metacache_write(cache, META_FIRST), 0);
    ck_assert_uint_eq(writes, 2); /* the first one was written before */
    ck_assert(stored(store, 0) == 1 && stored(store, 2) == 2 && stored(store, 4) == 3);
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_is_full_of_dirty_blocks)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    for (unsigned i = 0; i < 4; i++) {
        change(cache, i, 1, i % 2 ? META_FIRST : META_SECOND);
    }
    ck_assert(!metacache_is_full(cache));
    change(cache, 4, 1, META_FIRST);
    ck_assert(metacache_is_full(cache));
    metacache_free(cache);
}
END_TEST

START_TEST(metacache_forgets)
{
    g_autoptr(Store) store = new_store();
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    for (unsigned i = 0; i < 6; i++) {
        change(cache, i, 9, META_FIRST);
    }
    metacache_forget(cache, BLOCK, 2 * BLOCK);
    metacache_forget(cache, 4 * BLOCK,
                     UINT64_C(1) << 40); /* more than there is: looks at what there is */
    ck_assert_int_eq(metacache_write(cache, META_FIRST), 0);
    ck_assert(stored(store, 0) == 9 && stored(store, 1) == 0 && stored(store, 2) == 0);
    ck_assert(stored(store, 3) == 9 && stored(store, 4) == 0 && stored(store, 5) == 0);
    ck_assert_uint_eq(get(cache, 1)->data[0], 0);
    metacache_free(cache);
}
END_TEST

static void *hammer(void *opaque)
{
    MetaCache *cache = opaque;
    for (unsigned i = 0; i < 20000; i++) {
        unsigned block = (i * 7) % 32;
        MetaBlock *b;
        if (metacache_get(cache, block * BLOCK, &b) != 0 || b->data[3] != block) {
            return (void *)1;
        }
        metacache_put(cache, b);
    }
    return NULL;
}

START_TEST(metacache_many_threads_get)
{
    g_autoptr(Store) store = new_store();
    for (unsigned i = 0; i < 32; i++) {
        uint8_t data[BLOCK];
        memset(data, i, sizeof data);
        ck_assert_int_eq(store_write(store, data, sizeof data, i * BLOCK), 0);
    }
    MetaCache *cache = metacache_new(store, BLOCK, LIMIT);
    pthread_t threads[4];
    for (unsigned i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, hammer, cache), 0);
    }
    /* Beside them, what flush does: blocks that no map reads. */
    for (unsigned i = 0; i < 500; i++) {
        change(cache, 40 + i % 4, i, META_FIRST);
        ck_assert_int_eq(metacache_write(cache, META_FIRST), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        ck_assert_ptr_null(wrong);
    }
    metacache_free(cache);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("metacache");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, metacache_reads_a_block_once);
    tcase_add_test(tcase, metacache_create_does_not_read);
    tcase_add_test(tcase, metacache_drops_the_least_recently_used);
    tcase_add_test(tcase, metacache_keeps_what_is_dirty_or_pinned);
    tcase_add_test(tcase, metacache_writes_one_order_at_a_time_neighbours_together);
    tcase_add_test(tcase, metacache_order_only_becomes_later);
    tcase_add_test(tcase, metacache_failed_write_stays_dirty);
    tcase_add_test(tcase, metacache_is_full_of_dirty_blocks);
    tcase_add_test(tcase, metacache_forgets);
    tcase_add_test(tcase, metacache_many_threads_get);
    return suite_run("metacache", tcase);
}
