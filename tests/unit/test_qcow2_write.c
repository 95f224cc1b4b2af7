/*
 * formats/qcow2-write.c, -unmap.c, -flush.c, -alloc.c, -refcount.c, -table.c, -l2.c
 *
 * Random allocate, write, commit, abandon, unmap, flush and reopen against a plain model of bytes,
 * for every refcount width and many cluster sizes. A walker that shares no code with the format
 * then counts all references of the file.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "map/image.h"
#include "tests/lib/qcow2-walk.h"
#include "tests/lib/random.h"
#include "tests/lib/scale.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define RANGES_MAX 3

/* An image under test, and what must be in it. */
typedef struct Rig {
    Store *store;
    Image *image, *backing;
    uint64_t cluster_size, clusters;
    uint8_t *model; /* guest bytes */
    uint64_t cache;
    /* Host offset -> 1 + number of flushes when it was freed; NULL: not watched. */
    GHashTable *quarantine;
    uint64_t flushes;
    Random random;
} Rig;

static void check_refcounts(Store *store)
{
    uint64_t size;
    const uint8_t *bytes = store_memory_content(store, &size);
    g_autofree char *problem = qcow2_walk(bytes, size, false);
    ck_assert_msg(problem == NULL, "%s", problem);
}

/* ---- the rig ---- */

static void rig_open(Rig *rig, bool write)
{
    GError *error = NULL;
    ImageOpen how = {.format = &format_qcow2, .write = write, .metadata_cache = rig->cache};
    rig->image = image_open_store(rig->store, &how, rig->backing, &error);
    ck_assert_msg(rig->image != NULL, "%s", error ? error->message : "");
}

static void rig_start(Rig *rig, unsigned cluster_bits, unsigned refcount_bits, const char *compat,
                      uint64_t clusters, uint64_t backing_clusters, uint64_t seed)
{
    *rig = (Rig){.cluster_size = UINT64_C(1) << cluster_bits, .clusters = clusters};
    rig->random = random_new(seed);
    uint64_t size = clusters * rig->cluster_size;
    if (clusters > 3) {
        size -= rig->cluster_size / 4; /* a disk need not end with a whole cluster */
    }
    rig->model = g_malloc0(clusters * rig->cluster_size);
    GError *error = NULL;
    if (backing_clusters > 0) {
        memset(rig->model, 0xba, backing_clusters * rig->cluster_size);
        Store *base = store_memory_new("base", rig->model, backing_clusters * rig->cluster_size);
        ImageOpen how = {.format = &format_raw};
        rig->backing = image_open_store(base, &how, NULL, &error);
        store_unref(base);
        ck_assert(rig->backing != NULL);
    }
    rig->store = store_memory_new("image", NULL, 0);
    g_autoptr(GHashTable) options = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, g_free);
    g_hash_table_insert(options, (char *)"cluster_size",
                        g_strdup_printf("%lu", (unsigned long)rig->cluster_size));
    g_hash_table_insert(options, (char *)"compat", g_strdup(compat));
    if (strcmp(compat, "1.1") == 0) {
        g_hash_table_insert(options, (char *)"refcount_bits", g_strdup_printf("%u", refcount_bits));
    }
    FormatCreate how = {.size = size, .options = options};
    if (backing_clusters > 0) {
        how.backing_name = "base";
        how.backing_format = "raw";
    }
    ck_assert_msg(format_qcow2.create(rig->store, &how, &error), "%s", error ? error->message : "");
    rig_open(rig, true);
}

static void rig_end(Rig *rig)
{
    image_unref(rig->image);
    image_unref(rig->backing);
    store_unref(rig->store);
    g_clear_pointer(&rig->quarantine, g_hash_table_destroy);
    g_free(rig->model);
}

static void rig_compare(Rig *rig)
{
    g_autofree uint8_t *got = g_malloc(rig->image->size);
    ck_assert_int_eq(chain_read(rig->image, got, rig->image->size, 0), 0);
    for (uint64_t c = 0; c < rig->clusters; c++) {
        uint64_t at = c * rig->cluster_size, n = min_u64(rig->cluster_size, rig->image->size - at);
        ck_assert_msg(memcmp(got + at, rig->model + at, n) == 0, "cluster %lu: got %02x, want %02x",
                      (unsigned long)c, got[at], rig->model[at]);
    }
}

static void rig_reopen(Rig *rig, bool write)
{
    ck_assert_int_eq(image_finish(rig->image), 0);
    ck_assert(!format_qcow2.is_dirty(rig->image));
    image_unref(rig->image);
    check_refcounts(rig->store);
    rig_open(rig, write);
    if (rig->quarantine) {
        g_hash_table_remove_all(rig->quarantine);
    }
}

static uint64_t clipped(const Rig *rig, uint64_t first, uint64_t count)
{
    return min_u64(count * rig->cluster_size, rig->image->size - first * rig->cluster_size);
}

/* The map of one cluster. */
static Extent map_cluster(Rig *rig, uint64_t cluster)
{
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(
        image_map(rig->image, cluster * rig->cluster_size, clipped(rig, cluster, 1), &list), 0);
    ck_assert_uint_eq(list.count, 1);
    Extent extent = list.items[0];
    ck_assert_uint_eq(extent.length, clipped(rig, cluster, 1));
    extent_list_clear(&list);
    return extent;
}

/* Remembers where a cluster lies before it is dropped. */
static void watch(Rig *rig, uint64_t cluster)
{
    Extent e = map_cluster(rig, cluster);
    if (rig->quarantine && (e.type == EXTENT_DATA || (e.flags & EXTENT_HAS_HOST))) {
        g_hash_table_insert(rig->quarantine, GSIZE_TO_POINTER(e.host_offset),
                            GSIZE_TO_POINTER(rig->flushes + 1));
    }
}

/* After the change: what is still (or again) referred to is not in quarantine. */
static void watched(Rig *rig, uint64_t cluster)
{
    Extent e = map_cluster(rig, cluster);
    if (rig->quarantine && (e.type == EXTENT_DATA || (e.flags & EXTENT_HAS_HOST))) {
        g_hash_table_remove(rig->quarantine, GSIZE_TO_POINTER(e.host_offset));
    }
}

static bool is_zero(const uint8_t *p, uint64_t n)
{
    return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static void check_reserved(Rig *rig, const Allocation *a)
{
    uint64_t at = a->offset, size;
    const uint8_t *bytes = store_memory_content(rig->store, &size);
    for (unsigned i = 0; i < a->extents.count; i++) {
        const Extent *e = &a->extents.items[i];
        ck_assert_uint_eq(e->offset, at);
        ck_assert_int_eq(e->type, EXTENT_DATA);
        ck_assert(e->flags & EXTENT_NEW);
        uint64_t host_end = e->host_offset + align_up(e->length, rig->cluster_size);
        ck_assert_uint_le(host_end, size);
        if (e->flags & EXTENT_FRESH) {
            ck_assert(is_zero(bytes + e->host_offset, host_end - e->host_offset));
        }
        for (uint64_t h = e->host_offset; rig->quarantine && h < host_end; h += rig->cluster_size) {
            size_t freed =
                GPOINTER_TO_SIZE(g_hash_table_lookup(rig->quarantine, GSIZE_TO_POINTER(h)));
            ck_assert_msg(freed == 0 || rig->flushes - (freed - 1) >= 2,
                          "host offset %lu reused after %lu flushes", (unsigned long)h,
                          (unsigned long)(rig->flushes - (freed - 1)));
        }
        at = extent_end(e);
    }
    ck_assert_uint_eq(at, a->offset + a->length);
}

/* Writes whole clusters, or, where space is fresh and the disk zero there, their first half. */
static void fill(Rig *rig, uint64_t offset, uint64_t length, uint64_t host, bool fresh, bool keep)
{
    for (uint64_t done = 0; done < length; done += rig->cluster_size) {
        uint8_t *model = rig->model + offset + done, value = 1 + random_below(&rig->random, 250);
        uint64_t n = min_u64(rig->cluster_size, length - done);
        g_autofree uint8_t *data = g_malloc(n);
        memset(data, value, n);
        if (fresh && is_zero(model, n)) {
            n = (n + 1) / 2;
        }
        ck_assert_int_eq(store_write(rig->store, data, n, host + done), 0);
        if (keep) {
            memcpy(model, data, n);
        }
    }
}

static void write_reserved(Rig *rig, const Allocation *a, bool keep)
{
    for (unsigned i = 0; i < a->extents.count; i++) {
        const Extent *e = &a->extents.items[i];
        fill(rig, e->offset, e->length, e->host_offset, e->flags & EXTENT_FRESH, keep);
    }
}

static void flush(Rig *rig)
{
    ck_assert_int_eq(format_qcow2.flush(rig->image), 0);
    rig->flushes++;
}

/* Picks up to RANGES_MAX disjoint ranges, writes in place what can be, and makes allocations of the
 * rest. */
static unsigned pick_ranges(Rig *rig, Allocation *a)
{
    unsigned count = 0, wanted = 1 + random_below(&rig->random, RANGES_MAX);
    uint64_t next = random_below(&rig->random, rig->clusters);
    while (count < wanted && next < rig->clusters) {
        uint64_t n = 0,
                 most = 1 + random_below(&rig->random, random_percent(&rig->random, 10) ? 300 : 4);
        while (n < most && next + n < rig->clusters) {
            Extent e = map_cluster(rig, next + n);
            if (e.flags & EXTENT_WRITABLE) {
                fill(rig, e.offset, e.length, e.host_offset, false, true);
                break;
            }
            n++;
        }
        if (n > 0) {
            a[count] = (Allocation){next * rig->cluster_size, clipped(rig, next, n)};
            extent_list_init(&a[count++].extents);
        }
        next += n + 1 + random_below(&rig->random, 3);
    }
    return count;
}

static void step_write(Rig *rig)
{
    Allocation a[RANGES_MAX], *list[RANGES_MAX] = {&a[0], &a[1], &a[2]};
    unsigned count = pick_ranges(rig, a);
    if (count == 0) {
        return;
    }
    ck_assert_int_eq(format_qcow2.allocate(rig->image, list, count), 0);
    bool keep = random_percent(&rig->random, 85);
    for (unsigned i = 0; i < count; i++) {
        ck_assert_int_eq(a[i].result, 0);
        check_reserved(rig, &a[i]);
        write_reserved(rig, &a[i], keep);
    }
    if (random_percent(&rig->random, 20)) {
        flush(rig); /* while they are in flight */
    }
    if (!keep) {
        format_qcow2.abandon(rig->image, list, count);
    } else {
        for (unsigned i = 0; i < count; i++) {
            for (uint64_t c = 0; c < div_round_up(a[i].length, rig->cluster_size); c++) {
                watch(rig, a[i].offset / rig->cluster_size + c);
            }
        }
        ck_assert_int_eq(format_qcow2.commit(rig->image, list, count), 0);
    }
    for (unsigned i = 0; i < count; i++) {
        for (uint64_t c = 0; c < div_round_up(a[i].length, rig->cluster_size); c++) {
            Extent e = map_cluster(rig, a[i].offset / rig->cluster_size + c);
            ck_assert(!keep || (e.flags & EXTENT_WRITABLE));
            watched(rig, a[i].offset / rig->cluster_size + c);
        }
        extent_list_clear(&a[i].extents);
    }
}

static void step_unmap(Rig *rig)
{
    uint64_t first = random_below(&rig->random, rig->clusters);
    uint64_t count = 1 + random_below(&rig->random, random_percent(&rig->random, 20) ? 200 : 5);
    count = min_u64(count, rig->clusters - first);
    UnmapFlags flags = random_below(&rig->random, 4);
    for (uint64_t c = 0; c < count; c++) {
        watch(rig, first + c);
    }
    int r = format_qcow2.unmap(rig->image, first * rig->cluster_size, clipped(rig, first, count),
                               flags);
    ck_assert(r == 0 || r == -ENOTSUP);
    if (r == 0) {
        memset(rig->model + first * rig->cluster_size, 0, count * rig->cluster_size);
    }
    for (uint64_t c = 0; c < count; c++) {
        Extent e = map_cluster(rig, first + c);
        ck_assert(r < 0 || !(flags & UNMAP_KEEP_SPACE) || (e.flags & EXTENT_HAS_HOST));
        watched(rig, first + c);
    }
}

static void run(Rig *rig, unsigned steps)
{
    for (unsigned i = 0; i < steps; i++) {
        uint64_t dice = random_below(&rig->random, 100);
        if (dice < 55) {
            step_write(rig);
        } else if (dice < 85) {
            step_unmap(rig);
        } else if (dice < 97) {
            flush(rig);
        } else {
            rig_reopen(rig, true);
            rig_compare(rig);
        }
    }
    rig_compare(rig);
    rig_reopen(rig, false);
    rig_compare(rig);
}

static uint64_t clusters_for(unsigned cluster_bits)
{
    return cluster_bits == 21 ? 4 : cluster_bits >= 16 ? 60 : cluster_bits >= 12 ? 300 : 1200;
}

static const unsigned cluster_bits_list[] = {9, 10, 12, 16, 21};

START_TEST(write_random_all_widths)
{
    unsigned order = _i % 7, bits = cluster_bits_list[_i / 7];
    for (unsigned seed = 0; seed < (bits == 21 ? 1 : scaled(3)); seed++) {
        Rig rig;
        rig_start(&rig, bits, 1u << order, "1.1", clusters_for(bits), 0, seed);
        rig.quarantine = g_hash_table_new(NULL, NULL);
        run(&rig, bits == 21 ? 30 : 150);
        rig_end(&rig);
    }
}
END_TEST

START_TEST(write_random_over_a_backing)
{
    unsigned bits = cluster_bits_list[_i % 4];
    for (unsigned seed = 0; seed < scaled(3); seed++) {
        Rig rig;
        uint64_t clusters = clusters_for(bits);
        rig_start(&rig, bits, 16, _i < 4 ? "1.1" : "0.10", clusters, clusters * 2 / 3, 100 + seed);
        rig.quarantine = g_hash_table_new(NULL, NULL);
        run(&rig, 150);
        rig_end(&rig);
    }
}
END_TEST

START_TEST(write_random_with_a_cache_that_is_always_full)
{
    for (unsigned seed = 0; seed < scaled(3); seed++) {
        Rig rig;
        rig_start(&rig, cluster_bits_list[_i], 16, "1.1", clusters_for(cluster_bits_list[_i]), 0,
                  seed);
        image_unref(rig.image);
        rig.cache = 8192;
        rig_open(&rig, true);
        run(&rig, 150);
        rig_end(&rig);
    }
}
END_TEST

/* ---- maps beside a flush ---- */

static pthread_rwlock_t gate = PTHREAD_RWLOCK_INITIALIZER;
static atomic_bool stop;

static void *map_for_ever(void *opaque)
{
    Rig *rig = opaque;
    Random random = random_new((uintptr_t)&random);
    while (!stop) {
        ExtentList list;
        extent_list_init(&list);
        pthread_rwlock_rdlock(&gate);
        uint64_t offset = random_below(&random, rig->clusters - 1) * rig->cluster_size;
        int r = image_map(rig->image, offset, rig->image->size - offset, &list);
        pthread_rwlock_unlock(&gate);
        extent_list_clear(&list);
        if (r < 0) {
            return (void *)1;
        }
    }
    return NULL;
}

START_TEST(write_maps_run_beside_flush)
{
    Rig rig;
    pthread_t threads[2];
    rig_start(&rig, 9, 16, "1.1", 4000, 0, 7);
    image_unref(rig.image);
    rig.cache = 65536;
    rig_open(&rig, true);
    stop = false;
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, map_for_ever, &rig), 0);
    }
    for (unsigned i = 0; i < 60; i++) {
        pthread_rwlock_wrlock(&gate);
        step_write(&rig);
        step_unmap(&rig);
        pthread_rwlock_unlock(&gate);
        flush(&rig);
    }
    stop = true;
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        ck_assert_ptr_null(failed);
    }
    rig_reopen(&rig, false);
    rig_compare(&rig);
    rig_end(&rig);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("random");
    tcase_set_timeout(tcase, 240);
    tcase_add_loop_test(tcase, write_random_all_widths, 0, 35);
    tcase_add_loop_test(tcase, write_random_over_a_backing, 0, 8);
    tcase_add_loop_test(tcase, write_random_with_a_cache_that_is_always_full, 0, 4);
    tcase_add_test(tcase, write_maps_run_beside_flush);
    return suite_run("qcow2_write", tcase);
}
