/*
 * formats/qcow2-alloc.c, -table.c, -l2.c, -flush.c: what a random run meets too seldom. A refcount
 * table that grows, internal snapshots, a full disk, failing transfers, and refcounts that lie.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/qcow2.h"
#include "tests/lib/qcow2-walk.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

/* ---- a store whose operations can be made to fail ---- */

typedef enum { FAIL_READ, FAIL_WRITE, FAIL_SYNC, FAIL_TRUNCATE, FAIL_KINDS } FailKind;

static struct {
    const StoreOps *real;
    StoreOps ops;
    FailKind kind;
    uint64_t at, count; /* the at-th operation of kind fails; 0: none */
    bool forever;
    uint64_t size_limit; /* truncate beyond it: -ENOSPC; 0: none */
} fail;

static int failing(FailKind kind)
{
    if (kind != fail.kind || fail.at == 0) {
        return 0;
    }
    fail.count++;
    return fail.count == fail.at || (fail.forever && fail.count > fail.at) ? -EIO : 0;
}

static int fail_preadv(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    int r = failing(FAIL_READ);
    return r < 0 ? r : fail.real->preadv(store, iov, count, offset);
}

static int fail_pwritev(Store *store, const struct iovec *iov, int count, uint64_t offset)
{
    int r = failing(FAIL_WRITE);
    return r < 0 ? r : fail.real->pwritev(store, iov, count, offset);
}

static int fail_sync(Store *store)
{
    return failing(FAIL_SYNC);
}

static int fail_truncate(Store *store, uint64_t size)
{
    if (fail.size_limit != 0 && size > fail.size_limit) {
        return -ENOSPC;
    }
    int r = failing(FAIL_TRUNCATE);
    return r < 0 ? r : fail.real->truncate(store, size);
}

static void make_failing(Store *store)
{
    memset(&fail, 0, sizeof fail);
    fail.real = store->ops;
    fail.ops = *store->ops;
    fail.ops.preadv = fail_preadv;
    fail.ops.pwritev = fail_pwritev;
    fail.ops.sync = fail_sync;
    fail.ops.truncate = fail_truncate;
    store->ops = &fail.ops;
}

/* ---- images ---- */

static Store *new_store(const char *cluster_size, const char *refcount_bits, uint64_t size)
{
    Store *store = store_memory_new("image", NULL, 0);
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, (char *)"cluster_size", (char *)cluster_size);
    g_hash_table_insert(options, (char *)"refcount_bits", (char *)refcount_bits);
    FormatCreate how = {.size = size, .options = options};
    GError *error = NULL;
    ck_assert_msg(format_qcow2.create(store, &how, &error), "%s", error ? error->message : "");
    return store;
}

static Image *try_open(Store *store, bool write, GError **error)
{
    ImageOpen how = {.format = &format_qcow2, .write = write};
    return image_open_store(store, &how, NULL, error);
}

static Image *open_store(Store *store, bool write)
{
    GError *error = NULL;
    Image *image = try_open(store, write, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return image;
}

static void assert_walk(Store *store, bool leaks_ok)
{
    uint64_t size;
    const uint8_t *bytes = store_memory_content(store, &size);
    g_autofree char *problem = qcow2_walk(bytes, size, leaks_ok);
    ck_assert_msg(problem == NULL, "%s", problem);
}

static int fill_host(Image *image, const Extent *e, uint8_t value)
{
    g_autofree uint8_t *data = g_malloc(e->length);
    memset(data, value, e->length);
    return store_write(image->store, data, e->length, e->host_offset);
}

static int allocate_and_fill(Image *image, uint64_t offset, uint64_t length, uint8_t value)
{
    Allocation a = {offset, length}, *list = &a;
    extent_list_init(&a.extents);
    int r = format_qcow2.allocate(image, &list, 1);
    if (r == 0) {
        for (unsigned i = 0; r == 0 && i < a.extents.count; i++) {
            r = fill_host(image, &a.extents.items[i], value);
        }
        r = r < 0 ? r : format_qcow2.commit(image, &list, 1);
        if (r < 0) {
            format_qcow2.abandon(image, &list, 1);
        }
    }
    extent_list_clear(&a.extents);
    return r;
}

/* Fills whole clusters with a byte, in place where that is allowed. */
static int put(Image *image, uint64_t offset, uint64_t length, uint8_t value)
{
    int r = 0;
    uint64_t end = offset + length;
    while (r == 0 && offset < end) {
        ExtentList map;
        extent_list_init(&map);
        r = image_map(image, offset, end - offset, &map);
        for (unsigned i = 0; r == 0 && i < map.count; i++) {
            const Extent *e = &map.items[i];
            r = e->flags & EXTENT_WRITABLE ? fill_host(image, e, value)
                                           : allocate_and_fill(image, e->offset, e->length, value);
        }
        offset = r == 0 ? extent_list_end(&map) : offset;
        extent_list_clear(&map);
    }
    return r;
}

static void assert_bytes(Image *image, uint64_t offset, uint64_t length, uint8_t value)
{
    g_autofree uint8_t *got = g_malloc(length);
    ck_assert_int_eq(chain_read(image, got, length, offset), 0);
    g_autofree uint8_t *want = g_malloc(length);
    memset(want, value, length);
    ck_assert_msg(memcmp(got, want, length) == 0, "offset %" PRIu64 ": %02x ..., want %02x", offset,
                  got[0], value);
}

static void finish(Image *image)
{
    ck_assert_int_eq(image_finish(image), 0);
    image_unref(image);
}

/* ---- the refcount table ---- */

START_TEST(space_refcount_table_grows)
{
    /* 64 clusters a block, 64 blocks a table cluster: a table cluster covers 2 MiB. */
    const uint64_t size = 12 << 20, step = 96 << 10;
    g_autoptr(Store) store = new_store("512", "64", 1 << 20);
    /* A small virtual size gave a small table; now a larger one, with its L1 at the end. */
    uint64_t l1_entries = size / (64 * 512), end = align_up(store_size(store), 512);
    ck_assert_int_eq(store_truncate(store, end), 0);
    uint8_t header[112];
    g_autoptr(Image) image = open_store(store, true);
    Qcow2Run l1;
    bool fresh;
    ck_assert_int_eq(qcow2_alloc_run(image, l1_entries / 64, &l1, &fresh), 0);
    ck_assert_uint_eq(l1.count, l1_entries / 64);
    uint64_t old = qcow2_state(image)->header.l1_table_offset / 512;
    uint64_t old_clusters = div_round_up(qcow2_state(image)->header.l1_size, 64);
    ck_assert_int_eq(qcow2_flush(image), 0);
    g_clear_pointer(&image, image_unref);
    ck_assert_int_eq(store_read(store, header, sizeof header, 0), 0);
    store_be64(header + 24, size);
    store_be32(header + 36, l1_entries);
    store_be64(header + 40, l1.first * 512);
    ck_assert_int_eq(store_write(store, header, sizeof header, 0), 0);

    image = open_store(store, true);
    qcow2_alloc_return(image, (Qcow2Run){old, old_clusters});
    ck_assert_int_eq(qcow2_flush(image), 0);
    assert_walk(store, false);
    uint32_t clusters = qcow2_state(image)->header.refcount_table_clusters;
    for (uint64_t at = 0; at < size; at += step) {
        ck_assert_int_eq(put(image, at, min_u64(step, size - at), 1 + at / step % 255), 0);
        if (at > size / 2 &&
            at / step % 3 == 0) { /* the first half: the table grows more than once unwritten */
            ck_assert_int_eq(format_qcow2.flush(image), 0);
            assert_walk(store, true);
        }
    }
    finish(g_steal_pointer(&image));
    assert_walk(store, false);
    image = open_store(store, false);
    ck_assert_uint_gt(qcow2_state(image)->header.refcount_table_clusters, clusters + 2);
    for (uint64_t at = 0; at < size; at += step) {
        assert_bytes(image, at, min_u64(step, size - at), 1 + at / step % 255);
    }
}
END_TEST

/* ---- snapshots ---- */

static void clear_copied(Store *store, uint64_t table, uint64_t entries, bool tables_below)
{
    for (uint64_t i = 0; i < entries; i++) {
        uint8_t raw[8];
        ck_assert_int_eq(store_read(store, raw, 8, table + i * 8), 0);
        uint64_t entry = load_be64(raw), host = entry & QCOW2_OFFSET_MASK;
        store_be64(raw, entry & ~QCOW2_COPIED);
        ck_assert_int_eq(store_write(store, raw, 8, table + i * 8), 0);
        if (tables_below && host != 0) {
            clear_copied(store, host, 4096 / 8, false);
        }
    }
}

static void add_references(Image *image, uint64_t table, uint64_t entries, bool tables_below)
{
    for (uint64_t i = 0; i < entries; i++) {
        uint8_t raw[8];
        ck_assert_int_eq(store_read(image->store, raw, 8, table + i * 8), 0);
        uint64_t host = load_be64(raw) & QCOW2_OFFSET_MASK, refcount;
        if (host != 0) {
            ck_assert_int_eq(qcow2_refcount_get(image, host / 4096, &refcount), 0);
            ck_assert_int_eq(qcow2_refcount_set(image, host / 4096, refcount + 1), 0);
            if (tables_below) {
                add_references(image, host, 4096 / 8, false);
            }
        }
    }
}

/* Takes an internal snapshot of an image with 4 KiB clusters and one cluster of L1; gives where its
 * L1 is. */
static uint64_t take_snapshot(Store *store)
{
    Image *image = open_store(store, true);
    const Qcow2Header h = qcow2_state(image)->header;
    Qcow2Run l1, table;
    bool fresh;
    ck_assert_int_eq(qcow2_alloc_run(image, 1, &l1, &fresh), 0);
    ck_assert_int_eq(qcow2_alloc_run(image, 1, &table, &fresh), 0);
    add_references(image, h.l1_table_offset, h.l1_size, true);
    finish(image);
    clear_copied(store, h.l1_table_offset, h.l1_size, true);
    uint8_t copy[4096] = {0}, entry[4096] = {0}, field[8];
    ck_assert_int_eq(store_read(store, copy, h.l1_size * 8, h.l1_table_offset), 0);
    ck_assert_int_eq(store_write(store, copy, sizeof copy, l1.first * 4096), 0);
    store_be64(entry, l1.first * 4096);
    store_be32(entry + 8, h.l1_size);
    store_be16(entry + 12, 1);
    store_be16(entry + 14, 4);
    store_be32(entry + 36, 16);
    store_be64(entry + 48, h.size);
    memcpy(entry + 56, "1snap", 5);
    ck_assert_int_eq(store_write(store, entry, sizeof entry, table.first * 4096), 0);
    store_be32(field, 1);
    ck_assert_int_eq(store_write(store, field, 4, 60), 0);
    store_be64(field, table.first * 4096);
    ck_assert_int_eq(store_write(store, field, 8, 64), 0);
    assert_walk(store, false);
    return l1.first * 4096;
}

START_TEST(space_snapshots_are_left_as_they_were)
{
    const uint64_t size = 8 << 20;
    g_autoptr(Store) store = new_store("4k", "16", size);
    Image *image = open_store(store, true);
    ck_assert_int_eq(put(image, 0, 6 << 20, 0x11), 0);
    ck_assert_int_eq(format_qcow2.unmap(image, 1 << 20, 65536, UNMAP_ZERO | UNMAP_KEEP_SPACE), 0);
    finish(image);
    uint64_t l1 = take_snapshot(store);

    image = open_store(store, true);
    ExtentList map;
    extent_list_init(&map);
    ck_assert_int_eq(image_map(image, 0, size, &map), 0);
    ck_assert(!(map.items[0].flags & EXTENT_WRITABLE));
    extent_list_clear(&map);
    ck_assert_int_eq(put(image, 4096, 4096, 0x22), 0);
    ck_assert_int_eq(put(image, 1 << 20, 8192, 0x33), 0); /* zero with shared host space */
    ck_assert_int_eq(format_qcow2.unmap(image, 3 << 20, 65536, 0), 0);
    ck_assert_int_eq(format_qcow2.unmap(image, 5 << 20, 65536, UNMAP_ZERO | UNMAP_KEEP_SPACE), 0);
    ck_assert_int_eq(format_qcow2.flush(image), 0);
    assert_walk(store, true);
    ck_assert_int_eq(put(image, 7 << 20, 65536, 0x44), 0);
    finish(image);
    assert_walk(store, false);

    image = open_store(store, false);
    assert_bytes(image, 0, 4096, 0x11);
    assert_bytes(image, 4096, 4096, 0x22);
    assert_bytes(image, 1 << 20, 8192, 0x33);
    assert_bytes(image, 3 << 20, 65536, 0);
    assert_bytes(image, 5 << 20, 65536, 0);
    assert_bytes(image, 7 << 20, 65536, 0x44);
    uint32_t l1_size = qcow2_state(image)->l1_size;
    uint64_t active = qcow2_state(image)->header.l1_table_offset;
    image_unref(image);

    /* Back to the snapshot: its L1 in place of the active one, for reading. */
    g_autofree uint8_t *copy = g_malloc(l1_size * 8);
    ck_assert_int_eq(store_read(store, copy, l1_size * 8, l1), 0);
    ck_assert_int_eq(store_write(store, copy, l1_size * 8, active), 0);
    image = open_store(store, false);
    assert_bytes(image, 0, 1 << 20, 0x11);
    assert_bytes(image, 1 << 20, 65536, 0);
    assert_bytes(image, (1 << 20) + 65536, (5 << 20) - 65536, 0x11);
    assert_bytes(image, 6 << 20, 2 << 20, 0);
    image_unref(image);
}
END_TEST

/* ---- a full disk ---- */

START_TEST(space_full_disk_answers_enospc_and_loses_nothing)
{
    g_autoptr(Store) store = new_store("4k", "16", 8 << 20);
    make_failing(store);
    Image *image = open_store(store, true);
    fail.size_limit = align_up(store_size(store), 4096) + 64 * 4096;
    uint64_t written = 0;
    int r = 0;
    while (r == 0) {
        r = put(image, written, 3 * 4096, 0x77);
        written += r == 0 ? 3 * 4096 : 0;
    }
    ck_assert_int_eq(r, -ENOSPC);
    ck_assert_uint_gt(written, 50 * 4096);
    /* Freed space can be used again: the allocation does the two flushes that make it free. */
    ck_assert_int_eq(format_qcow2.unmap(image, 0, 3 * 4096, 0), 0);
    ck_assert_int_eq(put(image, written, 3 * 4096, 0x78), 0);
    finish(image);
    assert_walk(store, false);
    image = open_store(store, false);
    assert_bytes(image, 0, 3 * 4096, 0);
    assert_bytes(image, 3 * 4096, written - 3 * 4096, 0x77);
    assert_bytes(image, written, 3 * 4096, 0x78);
    image_unref(image);
}
END_TEST

START_TEST(space_is_trimmed_when_writing_ends)
{
    g_autoptr(Store) store = new_store("64k", "16", 64 << 20);
    Image *image = open_store(store, true);
    ck_assert_int_eq(put(image, 0, 65536, 1), 0);
    finish(image);
    ck_assert_uint_le(store_size(store), 7 * 65536);
    image = open_store(store, true);
    ck_assert_int_eq(put(image, 1 << 20, 1 << 20, 1), 0);
    ck_assert_int_eq(format_qcow2.unmap(image, 1 << 20, 1 << 20, 0), 0);
    finish(image);
    ck_assert_uint_le(store_size(store), 7 * 65536);
    assert_walk(store, false);
}
END_TEST

/* ---- failing transfers ---- */

/* A fixed run that touches everything; goes on after errors. *flushed: the last byte written before
 * a flush that succeeded, to the first cluster. */
static void fixed_run(Image *image, uint8_t *flushed)
{
    for (unsigned round = 0; round < 4; round++) {
        uint8_t value = 1 + round;
        bool written = put(image, 0, 512, value) == 0;
        put(image, 4096 + round * 65536, 65536, value);
        format_qcow2.unmap(image, 8192, 16384, round % 2 ? UNMAP_ZERO : UNMAP_KEEP_SPACE);
        if (round == 2) {
            put(image, 400 << 10, 300 << 10, value);
        }
        if (format_qcow2.flush(image) == 0 && written) {
            *flushed = value;
        } else {
            *flushed = 0; /* anything may be there */
        }
    }
}

static void run_with_failure(FailKind kind, uint64_t at, bool forever, uint64_t *count)
{
    g_autoptr(Store) store = new_store("512", "16", 1 << 20);
    make_failing(store);
    Image *image = open_store(store, true);
    fail.kind = kind;
    fail.at = at;
    fail.forever = forever;
    uint8_t flushed = 0;
    fixed_run(image, &flushed);
    bool finished = image_finish(image) == 0;
    *count = fail.count;
    fail.at = 0;
    image_unref(image);
    assert_walk(store, true);
    image = open_store(store, true);
    g_autofree uint8_t *all = g_malloc(image->size);
    ck_assert_int_eq(chain_read(image, all, image->size, 0), 0);
    ck_assert(flushed == 0 || (all[0] == flushed && all[511] == flushed));
    ck_assert(!forever || at > *count || !finished || kind == FAIL_TRUNCATE || kind == FAIL_READ);
    ck_assert_int_eq(put(image, 0, image->size, 9), 0);
    finish(image);
    assert_walk(store, true);
}

START_TEST(space_every_failure_leaves_a_sound_image)
{
    for (unsigned forever = 0; forever < 2; forever++) {
        uint64_t count = UINT64_MAX;
        for (uint64_t at = 1; at <= count; at++) {
            run_with_failure(_i, at, forever, &count);
            ck_assert_uint_gt(count, 0);
        }
    }
}
END_TEST

/* ---- refcounts that lie ---- */

enum { ON_L1, ON_REFCOUNT_TABLE, ON_REFCOUNT_BLOCK, ON_L2, METADATA_KINDS };

/* The cluster of one kind of metadata, with a refcount of 0; another L2 table has been made behind it. */
static uint64_t free_metadata(Store *store, int kind)
{
    Image *image = open_store(store, true);
    ck_assert_int_eq(put(image, 0, 4096, 1), 0);
    ck_assert_int_eq(format_qcow2.flush(image), 0);
    const Qcow2State *s = qcow2_state(image);
    uint64_t block;
    ck_assert_int_eq(store_read(image->store, &block, 8, s->header.refcount_table_offset), 0);
    const uint64_t places[METADATA_KINDS] = {
        [ON_L1] = s->header.l1_table_offset,
        [ON_REFCOUNT_TABLE] = s->header.refcount_table_offset,
        [ON_REFCOUNT_BLOCK] = GUINT64_FROM_BE(block),
        [ON_L2] = s->l1[0] & QCOW2_OFFSET_MASK,
    };
    ck_assert_int_eq(qcow2_refcount_set(image, places[kind] / 4096, 0), 0);
    ck_assert_int_eq(format_qcow2.flush(image), 0);
    image_unref(image);
    return places[kind];
}

START_TEST(space_metadata_is_never_handed_out)
{
    g_autoptr(Store) store = new_store("4k", "16", 1 << 20);
    uint64_t place = free_metadata(store, _i);
    uint8_t before[4096], after[4096];
    ck_assert_int_eq(store_read(store, before, sizeof before, place), 0);
    Image *image = open_store(store, true);
    ck_assert_int_eq(put(image, 4096, 4096, 0xee), -EIO);
    ck_assert_int_eq(put(image, 8192, 4096, 0xee), -EIO);
    ck_assert_int_eq(format_qcow2.flush(image), -EIO);
    image_unref(image);
    ck_assert_int_eq(store_read(store, after, sizeof after, place), 0);
    ck_assert_mem_eq(before, after, sizeof before);

    GError *error = NULL;
    ck_assert(try_open(store, true, &error) == NULL);
    ck_assert_msg(strstr(error->message, "corrupt bit") != NULL, "%s", error->message);
    g_clear_error(&error);
    image = open_store(store, false);
    assert_bytes(image, 0, 4096, 1);
    assert_bytes(image, 4096, (1 << 20) - 4096, 0);
    image_unref(image);
}
END_TEST

/* Guest offset 4096 lies where the refcount table does. */
static void put_entry_on_refcounts(Store *store, uint64_t flags)
{
    Image *image = open_store(store, true);
    ck_assert_int_eq(put(image, 0, 4096, 1), 0);
    uint64_t table = qcow2_state(image)->header.refcount_table_offset;
    uint64_t l2 = qcow2_state(image)->l1[0] & QCOW2_OFFSET_MASK;
    finish(image);
    uint8_t raw[8];
    store_be64(raw, table | QCOW2_COPIED | flags);
    ck_assert_int_eq(store_write(store, raw, 8, l2 + 8), 0);
}

START_TEST(space_an_l2_entry_on_metadata_is_damage)
{
    g_autoptr(Store) store = new_store("4k", "16", 1 << 20);
    put_entry_on_refcounts(store, 0);
    Image *image = open_store(store, true);
    ExtentList map;
    extent_list_init(&map);
    ck_assert_int_eq(image_map(image, 4096, 4096, &map), -EIO);
    extent_list_clear(&map);
    ck_assert_int_eq(put(image, 65536, 4096, 1), -EIO);
    image_unref(image);
}
END_TEST

/* It reads as zeroes, so nobody looks where it lies before it is written. */
START_TEST(space_a_preallocated_cluster_on_metadata_is_damage)
{
    g_autoptr(Store) store = new_store("4k", "16", 1 << 20);
    put_entry_on_refcounts(store, QCOW2_ZERO);
    uint64_t size, size_now;
    const uint8_t *bytes = store_memory_content(store, &size);
    g_autofree uint8_t *before = g_memdup2(bytes, size);
    Image *image = open_store(store, true);
    ck_assert_int_eq(put(image, 4096, 4096, 0xee), -EIO);
    image_unref(image);
    /* All but the header, which says now that the image is damaged. */
    bytes = store_memory_content(store, &size_now);
    ck_assert_uint_eq(size_now, size);
    ck_assert_mem_eq(bytes + 4096, before + 4096, size - 4096);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("space");
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, space_refcount_table_grows);
    tcase_add_test(tcase, space_snapshots_are_left_as_they_were);
    tcase_add_test(tcase, space_full_disk_answers_enospc_and_loses_nothing);
    tcase_add_test(tcase, space_is_trimmed_when_writing_ends);
    tcase_add_loop_test(tcase, space_every_failure_leaves_a_sound_image, 0, FAIL_KINDS);
    tcase_add_loop_test(tcase, space_metadata_is_never_handed_out, 0, METADATA_KINDS);
    tcase_add_test(tcase, space_an_l2_entry_on_metadata_is_damage);
    tcase_add_test(tcase, space_a_preallocated_cluster_on_metadata_is_damage);
    return suite_run("qcow2_space", tcase);
}
