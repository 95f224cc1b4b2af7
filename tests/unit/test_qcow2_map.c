/*
 * formats/qcow2-map.c, inflate.c: every kind of L2 entry, long runs, compressed clusters, and
 * entries that lie.
 */
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "formats/inflate.h"
#include "formats/qcow2.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

/*
 * An image made by hand, clusters of 4 KiB:
 *     0 header | 1 refcount table | 2 refcount block | 3 L1 | 4, 5 L2 | 6 ... data
 * L2 table 0 is cluster 4, table 1 cluster 5, the rest of the disk has none.
 */
#define CLUSTER  4096u
#define CLUSTERS 64u
#define SPAN     (512u * CLUSTER) /* of an L2 table */

typedef struct Rig {
    uint8_t bytes[CLUSTERS * CLUSTER];
    uint64_t size; /* of the file */
    Store *store;
    Image *image;
} Rig;

static Rig rig;

static void entry(unsigned index, uint64_t value)
{
    store_be64(rig.bytes + 4 * CLUSTER + index * 8, value);
}

static void setup(void)
{
    memset(&rig, 0, sizeof rig);
    rig.size = sizeof rig.bytes;
    Qcow2Header h = {
        .version = 3,
        .cluster_bits = 12,
        .size = 4 * SPAN,
        .l1_size = 4,
        .l1_table_offset = 3 * CLUSTER,
        .refcount_table_offset = CLUSTER,
        .refcount_table_clusters = 1,
        .refcount_order = 4,
        .header_length = 112,
    };
    Qcow2HeaderDisk disk;
    qcow2_header_pack(&h, &disk);
    memcpy(rig.bytes, &disk, sizeof disk);
    store_be64(rig.bytes + CLUSTER, 2 * CLUSTER);
    for (unsigned i = 0; i < CLUSTERS; i++) {
        store_be16(rig.bytes + 2 * CLUSTER + i * 2, 1);
    }
    store_be64(rig.bytes + 3 * CLUSTER, 4 * CLUSTER | QCOW2_COPIED);
    store_be64(rig.bytes + 3 * CLUSTER + 8, 5 * CLUSTER | QCOW2_COPIED);
}

static void teardown(void)
{
    image_unref(rig.image);
    if (rig.store != NULL) {
        store_unref(rig.store);
    }
}

static void open_rig(bool write)
{
    image_unref(rig.image);
    if (rig.store != NULL) {
        store_unref(rig.store);
    }
    rig.store = store_memory_new("image", rig.bytes, rig.size);
    ImageOpen how = {.format = &format_qcow2, .write = write};
    GError *error = NULL;
    rig.image = image_open_store(rig.store, &how, NULL, &error);
    ck_assert_msg(rig.image != NULL, "%s", error ? error->message : "");
}

/* The map as text: "data@HOST+LENGTH! zero+LENGTH ...", in clusters; ! is WRITABLE, ^ keeps host
 * space. */
static char *map_text(uint64_t offset, uint64_t length)
{
    static const char *const names[] = {"none", "zero", "data", "packed"};
    GString *text = g_string_new(NULL);
    ExtentList list;
    extent_list_init(&list);
    int r = image_map(rig.image, offset, length, &list);
    if (r < 0) {
        g_string_append_printf(text, "error %d ", -r);
    }
    for (unsigned i = 0; i < list.count; i++) {
        const Extent *e = &list.items[i];
        g_string_append(text, names[e->type]);
        if (e->type == EXTENT_DATA || (e->flags & EXTENT_HAS_HOST)) {
            g_string_append_printf(text, "@%.4g", (double)e->host_offset / CLUSTER);
        }
        g_string_append_printf(text, "+%.4g%s%s ", (double)e->length / CLUSTER,
                               e->flags & EXTENT_WRITABLE ? "!" : "",
                               e->flags & EXTENT_HAS_HOST ? "^" : "");
    }
    extent_list_clear(&list);
    g_strchomp(text->str);
    return g_string_free(text, false);
}

static void assert_map(uint64_t offset, uint64_t length, const char *expected)
{
    g_autofree char *got = map_text(offset, length);
    ck_assert_str_eq(got, expected);
}

START_TEST(map_every_kind)
{
    entry(1, QCOW2_ZERO);
    entry(2, 10 * CLUSTER | QCOW2_COPIED);
    entry(3, 11 * CLUSTER | QCOW2_COPIED);
    entry(4, 12 * CLUSTER);
    entry(5, 20 * CLUSTER | QCOW2_COPIED | QCOW2_ZERO);
    open_rig(false);
    assert_map(0, 8 * CLUSTER, "none+1 zero+1 data@10+3 zero@20+1^ none+2");
    assert_map(2 * CLUSTER + 1024, 2048, "data@10.25+0.5");
    assert_map(2 * CLUSTER + 1024, CLUSTER, "data@10.25+1");
    open_rig(true);
    assert_map(0, 8 * CLUSTER, "none+1 zero+1 data@10+2! data@12+1 zero@20+1^ none+2");
}
END_TEST

START_TEST(map_goes_on_through_cached_tables_only)
{
    entry(511, 10 * CLUSTER);
    store_be64(rig.bytes + 5 * CLUSTER, 11 * CLUSTER);
    open_rig(false);
    /* The second table was never read: an answer that is there does not wait for it. */
    assert_map(510 * CLUSTER, 4 * CLUSTER, "none+1 data@10+1");
    assert_map(SPAN, CLUSTER, "data@11+1");
    assert_map(510 * CLUSTER, 4 * CLUSTER, "none+1 data@10+2 none+1");
    /* No table at all costs nothing. */
    assert_map(2 * SPAN - CLUSTER, 2 * SPAN + CLUSTER, "none+1025");
}
END_TEST

START_TEST(map_damaged_entries_answer_eio)
{
    const struct {
        uint64_t value;
        bool in_v2;
    } bad[] = {
        {10 * CLUSTER + 512, false},                    /* not aligned */
        {10 * CLUSTER | 2, false},                      /* reserved */
        {10 * CLUSTER | UINT64_C(1) << 56, false},      /* reserved */
        {UINT64_C(1) << 50 | QCOW2_COPIED, false},      /* behind the end */
        {CLUSTERS * CLUSTER, false},                    /* behind the end */
        {QCOW2_COMPRESSED | CLUSTERS * CLUSTER, false}, /* behind the end */
        {QCOW2_COMPRESSED, false},                      /* in the header */
        {QCOW2_ZERO, true},                             /* version 2 has no zero clusters */
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        setup();
        if (bad[i].in_v2) {
            store_be32(rig.bytes + 4, 2);
        }
        entry(0, 10 * CLUSTER);
        entry(1, bad[i].value);
        open_rig(false);
        assert_map(CLUSTER, CLUSTER, "error 5");
        assert_map(0, 2 * CLUSTER, "data@10+1"); /* what is good before it is answered */
        teardown();
    }
    setup();
}
END_TEST

START_TEST(map_damage_seen_by_a_writer_stops_writing)
{
    entry(0, 10 * CLUSTER | QCOW2_COPIED);
    entry(1, 10 * CLUSTER + 512);
    open_rig(true);
    assert_map(0, CLUSTER, "data@10+1!");
    assert_map(CLUSTER, CLUSTER, "error 5");
    assert_map(0, CLUSTER, "data@10+1");
    uint8_t features[8];
    ck_assert_int_eq(store_read(rig.store, features, 8, 72), 0);
    ck_assert_uint_eq(load_be64(features), QCOW2_INCOMPAT_CORRUPT);
    ck_assert_int_eq(format_qcow2.unmap(rig.image, 0, CLUSTER, 0), -EIO);
    ck_assert_int_eq(format_qcow2.flush(rig.image), -EIO);
}
END_TEST

START_TEST(map_damaged_l1_entries_answer_eio)
{
    const uint64_t bad[] = {4 * CLUSTER + 512,
                            4 * CLUSTER | 1,
                            4 * CLUSTER | UINT64_C(1) << 62,
                            CLUSTERS * CLUSTER,
                            UINT64_C(1) << 55,
                            3 * CLUSTER,
                            CLUSTER};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        setup();
        store_be64(rig.bytes + 3 * CLUSTER, bad[i]);
        open_rig(false);
        assert_map(0, CLUSTER, "error 5");
        assert_map(SPAN, CLUSTER, "none+1");
        teardown();
    }
    setup();
}
END_TEST

START_TEST(map_file_ends_inside_a_cluster)
{
    entry(0, (CLUSTERS - 2) * CLUSTER);
    entry(1, (CLUSTERS - 1) * CLUSTER);
    memset(rig.bytes + (CLUSTERS - 2) * CLUSTER, 7, 2 * CLUSTER);
    rig.size = sizeof rig.bytes - CLUSTER / 2;
    open_rig(false);
    assert_map(0, 2 * CLUSTER, "data@62+2");
    uint8_t got[CLUSTER];
    ck_assert_int_eq(chain_read(rig.image, got, CLUSTER, CLUSTER), 0);
    ck_assert(got[CLUSTER / 2 - 1] == 7 && got[CLUSTER / 2] == 0 && got[CLUSTER - 1] == 0);
}
END_TEST

/* ---- compressed clusters ---- */

static uint64_t compressed_entry(uint64_t host, uint64_t length)
{
    uint64_t sectors = (host + length - 1) / 512 - host / 512;
    return QCOW2_COMPRESSED | sectors << (62 - (12 - 8)) | host;
}

static size_t deflate_raw(const uint8_t *from, size_t n, uint8_t *to, size_t room)
{
    z_stream stream = {
        .next_in = (uint8_t *)from, .avail_in = n, .next_out = to, .avail_out = room};
    ck_assert_int_eq(deflateInit2(&stream, 9, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
    ck_assert_int_eq(deflate(&stream, Z_FINISH), Z_STREAM_END);
    deflateEnd(&stream);
    return room - stream.avail_out;
}

static void pattern(uint8_t *cluster, unsigned seed)
{
    for (unsigned i = 0; i < CLUSTER; i++) {
        cluster[i] = (i * seed) >> 5;
    }
}

static void assert_reads(uint64_t offset, const uint8_t *expected, size_t n)
{
    uint8_t got[4 * CLUSTER];
    ck_assert_int_eq(chain_read(rig.image, got, n, offset), 0);
    ck_assert(memcmp(got, expected, n) == 0);
}

/* Two compressed clusters that share a host cluster; the second goes on into the next one and the
 * file ends with it. */
static void compress_two(bool zstd, uint8_t plain[2][CLUSTER])
{
    uint64_t host = (CLUSTERS - 1) * CLUSTER - 1500;
    for (unsigned i = 0; i < 2; i++) {
        pattern(plain[i], 37 + i * 1000);
        uint8_t packed[2 * CLUSTER];
        size_t n = zstd ? ZSTD_compress(packed, sizeof packed, plain[i], CLUSTER, 3)
                        : deflate_raw(plain[i], CLUSTER, packed, sizeof packed);
        ck_assert_uint_lt(n, CLUSTER);
        memcpy(rig.bytes + host, packed, n);
        entry(i, compressed_entry(host, n));
        host += n;
    }
    rig.size = host; /* not a whole sector */
    if (zstd) {
        store_be64(rig.bytes + 72, QCOW2_INCOMPAT_COMPRESSION);
        rig.bytes[104] = QCOW2_COMPRESSION_ZSTD;
    }
}

START_TEST(map_and_decode_compressed)
{
    uint8_t plain[2][CLUSTER];
    compress_two(_i == 1, plain);
    open_rig(false);
    assert_map(0, 3 * CLUSTER, "packed+1 packed+1 none+1");
    assert_map(100, 1000, "packed+0.2441");
    assert_reads(0, plain[0], CLUSTER);
    assert_reads(CLUSTER, plain[1], CLUSTER);
    assert_reads(1000, plain[0] + 1000, CLUSTER - 1000);
}
END_TEST

START_TEST(map_compressed_garbage_answers_eio)
{
    uint8_t plain[2][CLUSTER], got[CLUSTER];
    compress_two(false, plain);
    memset(rig.bytes + (CLUSTERS - 1) * CLUSTER - 1500, 0xff, 1000);
    open_rig(false);
    ck_assert_int_eq(chain_read(rig.image, got, CLUSTER, 0), -EIO);
}
END_TEST

START_TEST(map_compressed_clusters_are_replaced_and_freed)
{
    uint8_t plain[2][CLUSTER], data[CLUSTER];
    compress_two(false, plain);
    /* The first lies in cluster 62, the second in 62 and 63. */
    store_be16(rig.bytes + 2 * CLUSTER + 62 * 2, 2);
    open_rig(true);
    uint64_t refcount;
    Allocation a = {CLUSTER, CLUSTER}, *list = &a;
    extent_list_init(&a.extents);
    ck_assert_int_eq(format_qcow2.allocate(rig.image, &list, 1), 0);
    memset(data, 0x99, CLUSTER);
    ck_assert_int_eq(store_write(rig.store, data, CLUSTER, a.extents.items[0].host_offset), 0);
    ck_assert_int_eq(format_qcow2.commit(rig.image, &list, 1), 0);
    extent_list_clear(&a.extents);
    assert_reads(0, plain[0], CLUSTER);
    assert_reads(CLUSTER, data, CLUSTER);
    ck_assert_int_eq(image_finish(rig.image), 0);
    ck_assert_int_eq(qcow2_refcount_get(rig.image, 62, &refcount), 0);
    ck_assert_uint_eq(refcount, 1);
    ck_assert_int_eq(format_qcow2.unmap(rig.image, 0, CLUSTER, 0), 0);
    ck_assert_int_eq(image_finish(rig.image), 0);
    ck_assert_int_eq(qcow2_refcount_get(rig.image, 62, &refcount), 0);
    ck_assert_uint_eq(refcount, 0);
    assert_reads(CLUSTER, data, CLUSTER);
}
END_TEST

START_TEST(map_long_compressed_cluster_of_two_mebibytes_decodes_its_bits)
{
    Qcow2State s = {.cluster_bits = 21, .cluster_size = 2 << 20, .header = {.version = 3}};
    /* 62 - 13 = 49 bits of offset, 13 of sectors */
    Qcow2Cluster c = qcow2_l2_decode(
        &s, (Qcow2Entry){.word = QCOW2_COMPRESSED | UINT64_C(4096) << 49 | 0x123456789});
    ck_assert_int_eq(c.type, QCOW2_CLUSTER_COMPRESSED);
    ck_assert_uint_eq(c.host, 0x123456789);
    ck_assert_uint_eq(c.stored_length, 4097 * 512 - 0x123456789 % 512);
    s.cluster_bits = 9;
    s.cluster_size = 512;
    c = qcow2_l2_decode(&s, (Qcow2Entry){.word = QCOW2_COMPRESSED | UINT64_C(1) << 61 | 0x1ff});
    ck_assert_uint_eq(c.host, 0x1ff);
    ck_assert_uint_eq(c.stored_length, 1024 - 511);
    Qcow2Run run = qcow2_cluster_run(&s, &c);
    ck_assert(run.first == 0 && run.count == 2);
}
END_TEST

START_TEST(inflate_wants_exactly_one_unit)
{
    uint8_t plain[CLUSTER], packed[2 * CLUSTER], out[CLUSTER + 1];
    pattern(plain, 77);
    size_t n = deflate_raw(plain, CLUSTER, packed, sizeof packed);
    memset(packed + n, 0xee, 100); /* padding is ignored */
    ck_assert_int_eq(inflate_unit(packed, n + 100, out, CLUSTER, -12), 0);
    ck_assert(memcmp(out, plain, CLUSTER) == 0);
    ck_assert_int_eq(inflate_unit(packed, n, out, CLUSTER - 1, -12), -EIO);
    ck_assert_int_eq(inflate_unit(packed, n, out, CLUSTER + 1, -12), -EIO);
    ck_assert_int_eq(inflate_unit(packed, n - 1, out, CLUSTER, -12), -EIO);
    ck_assert_int_eq(inflate_unit(packed, 0, out, CLUSTER, -12), -EIO);

    n = ZSTD_compress(packed, sizeof packed, plain, CLUSTER, 3);
    memset(packed + n, 0xee, 100);
    ck_assert_int_eq(inflate_unit_zstd(packed, n + 100, out, CLUSTER), 0);
    ck_assert(memcmp(out, plain, CLUSTER) == 0);
    ck_assert_int_eq(inflate_unit_zstd(packed, n, out, CLUSTER - 1), -EIO);
    ck_assert_int_eq(inflate_unit_zstd(packed, n, out, CLUSTER + 1), -EIO);
    ck_assert_int_eq(inflate_unit_zstd(packed, n - 1, out, CLUSTER), -EIO);
    ck_assert_int_eq(inflate_unit_zstd(packed, 0, out, CLUSTER), -EIO);
}
END_TEST

START_TEST(refcounts_of_all_widths)
{
    for (uint32_t order = 0; order <= 6; order++) {
        uint8_t block[512] = {0};
        uint64_t max = UINT64_MAX >> (64 - (1u << order)), n = (512 * 8) >> order;
        for (uint64_t i = 0; i < n; i++) {
            qcow2_refcount_store(block, i, order, (i * 0x9e3779b97f4a7c15u) & max);
        }
        for (uint64_t i = 0; i < n; i++) {
            ck_assert_uint_eq(qcow2_refcount_load(block, i, order),
                              (i * 0x9e3779b97f4a7c15u) & max);
        }
    }
    uint8_t packed[2] = {0};
    qcow2_refcount_store(packed, 0, 1, 1); /* least significant bits first */
    qcow2_refcount_store(packed, 3, 1, 2);
    ck_assert_uint_eq(packed[0], 0x81);
    qcow2_refcount_store(packed, 0, 4, 0x1234);
    ck_assert(packed[0] == 0x12 && packed[1] == 0x34);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("map");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, map_every_kind);
    tcase_add_test(tcase, map_goes_on_through_cached_tables_only);
    tcase_add_test(tcase, map_damaged_entries_answer_eio);
    tcase_add_test(tcase, map_damage_seen_by_a_writer_stops_writing);
    tcase_add_test(tcase, map_damaged_l1_entries_answer_eio);
    tcase_add_test(tcase, map_file_ends_inside_a_cluster);
    tcase_add_loop_test(tcase, map_and_decode_compressed, 0, 2);
    tcase_add_test(tcase, map_compressed_garbage_answers_eio);
    tcase_add_test(tcase, map_compressed_clusters_are_replaced_and_freed);
    tcase_add_test(tcase, map_long_compressed_cluster_of_two_mebibytes_decodes_its_bits);
    tcase_add_test(tcase, inflate_wants_exactly_one_unit);
    tcase_add_test(tcase, refcounts_of_all_widths);
    return suite_run("qcow2_map", tcase);
}
