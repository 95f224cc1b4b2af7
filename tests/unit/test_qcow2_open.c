/*
 * formats/qcow2.c, qcow2-header.c, qcow2-snapshot.c: headers that must be refused, each with the
 * name of its field, and what opening for writing does to feature bits.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/qcow2.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define CLUSTER 4096u

/*
 * A small image, made by hand:
 *     0 header | 1 refcount table | 2 refcount block | 3 L1 | 4 L2 | 5 data | 6, 7 free
 */
typedef struct Bytes {
    uint8_t b[8 * CLUSTER];
} Bytes;

static Bytes sound_image(uint32_t version)
{
    Bytes image = {0};
    Qcow2Header h = {
        .version = version,
        .cluster_bits = 12,
        .size = 1 << 20,
        .l1_size = 1,
        .l1_table_offset = 3 * CLUSTER,
        .refcount_table_offset = CLUSTER,
        .refcount_table_clusters = 1,
        .refcount_order = 4,
        .header_length = version < 3 ? QCOW2_V2_HEADER_LENGTH : 112,
    };
    Qcow2HeaderDisk disk;
    qcow2_header_pack(&h, &disk);
    memcpy(image.b, &disk, h.header_length);
    store_be64(image.b + CLUSTER, 2 * CLUSTER);
    for (unsigned i = 0; i < 6; i++) {
        store_be16(image.b + 2 * CLUSTER + i * 2, 1);
    }
    store_be64(image.b + 3 * CLUSTER, 4 * CLUSTER | QCOW2_COPIED);
    store_be64(image.b + 4 * CLUSTER, 5 * CLUSTER | QCOW2_COPIED);
    memset(image.b + 5 * CLUSTER, 0x5a, CLUSTER);
    return image;
}

static Image *open_bytes(const Bytes *bytes, uint64_t size, bool write, Store **store,
                         GError **error)
{
    Store *made = store_memory_new("image", bytes->b, size);
    ImageOpen how = {.format = &format_qcow2, .write = write};
    Image *image = image_open_store(made, &how, NULL, error);
    if (store != NULL) {
        *store = store_ref(made);
    }
    store_unref(made);
    return image;
}

/* Refused, with a message that has all of `words` (one string, separated by |). */
static void assert_refused(const Bytes *bytes, uint64_t size, bool write, const char *words)
{
    g_autoptr(GError) error = NULL;
    ck_assert_msg(open_bytes(bytes, size, write, NULL, &error) == NULL, "accepted, want %s", words);
    ck_assert_ptr_nonnull(error);
    g_auto(GStrv) list = g_strsplit(words, "|", -1);
    for (unsigned i = 0; list[i] != NULL; i++) {
        ck_assert_msg(strstr(error->message, list[i]) != NULL, "'%s' lacks '%s'", error->message,
                      list[i]);
    }
    ck_assert_msg(strchr(error->message, '\n') == NULL, "more than one line: %s", error->message);
}

/* The first cluster of the disk reads as its data, as far as the file has it. */
static void assert_accepted(const Bytes *bytes, uint64_t size, bool write)
{
    GError *error = NULL;
    g_autoptr(Image) image = open_bytes(bytes, size, write, NULL, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    uint8_t got[2 * CLUSTER];
    ck_assert_int_eq(chain_read(image, got, sizeof got, 0), 0);
    uint64_t there = min_u64(size - 5 * CLUSTER, CLUSTER);
    for (uint64_t i = 0; i < sizeof got; i++) {
        ck_assert_uint_eq(got[i], i < there ? 0x5a : 0);
    }
}

START_TEST(open_accepts_sound_images)
{
    for (uint32_t version = 2; version <= 3; version++) {
        Bytes image = sound_image(version);
        assert_accepted(&image, sizeof image, false);
        assert_accepted(&image, sizeof image, true);
        assert_accepted(&image, 5 * CLUSTER + 100,
                        false); /* the last cluster is cut short: zeroes */
    }
}
END_TEST

/* One field with a value that must be refused. */
typedef struct Refusal {
    uint32_t version;
    unsigned offset, bytes;
    uint64_t value;
    const char *words;
} Refusal;

static const Refusal refusals[] = {
    {3, 0, 4, 0x514649fa, "magic"},
    {3, 4, 4, 1, "version is 1|2 or 3"},
    {3, 4, 4, 4, "version is 4"},
    {3, 8, 8, 8, "backing_file_offset is 8"},
    {3, 8, 8, CLUSTER + 1, "backing_file_offset is 4097"},
    {3, 20, 4, 8, "cluster_bits is 8|9 to 21"},
    {3, 20, 4, 22, "cluster_bits is 22"},
    {3, 20, 4, 0xffffffff, "cluster_bits is 4294967295"},
    {3, 24, 8, 3 << 20, "l1_size is 1|at least 2"},
    {3, 24, 8, UINT64_MAX, "size is 18446744073709551615"},
    {3, 24, 8, INT64_MAX, "size is|32 MiB"},
    {3, 32, 4, 1, "is encrypted|secret"},
    {3, 32, 4, 2, "crypt_method is 2|LUKS|extension"},
    {3, 32, 4, 7, "crypt_method is 7|2 (LUKS)"},
    {3, 36, 4, 0, "l1_size is 0"},
    {3, 36, 4, 0x400001, "l1_size|33554432"},
    {3, 36, 4, 0x10000, "l1_table_offset|inside the file"},
    {3, 40, 8, 3 * CLUSTER + 8, "l1_table_offset is 12296"},
    {3, 40, 8, 0, "l1_table_offset is 0"},
    {3, 40, 8, CLUSTER, "l1_table_offset is 4096|overlap"},
    {3, 40, 8, 8 * CLUSTER, "l1_table_offset|inside the file"},
    {3, 40, 8, UINT64_MAX - CLUSTER + 1, "l1_table_offset|2^63"},
    {3, 48, 8, 100, "refcount_table_offset is 100"},
    {3, 48, 8, 0, "refcount_table_offset is 0"},
    {3, 48, 8, 64 * CLUSTER, "refcount_table_offset|inside the file"},
    {3, 48, 8, INT64_MAX - CLUSTER + 1, "refcount_table_offset"},
    {3, 56, 4, 0, "refcount_table_clusters is 0"},
    {3, 56, 4, 0xffffffff, "refcount_table_clusters|8388608"},
    {3, 60, 4, 65537, "nb_snapshots is 65537"},
    {3, 60, 4, 1, "snapshots_offset is 0"},
    {3, 72, 8, 1 << 2, "external data file"},
    {3, 72, 8, 1 << 4, "extended L2"},
    {3, 72, 8, UINT64_C(1) << 63, "incompatible_features|bit 63"},
    {3, 72, 8, 1 << 3, "compression_type is 0|must be clear"},
    {3, 96, 4, 7, "refcount_order is 7|0 to 6"},
    {3, 96, 4, 0xffffffff, "refcount_order"},
    {3, 100, 4, 96, "header_length is 96|104"},
    {3, 100, 4, 108, "header_length is 108|multiple of 8"},
    {3, 100, 4, 8192, "header_length is 8192"},
    {3, 100, 4, 0xfffffff8, "header_length is 4294967288"},
    {3, 104, 1, 1, "compression_type is 1|must be set"},
    {3, 104, 1, 2, "compression_type is 2"},
    {3, 112, 8, UINT64_C(0xe2792aca7fffffff), "header extension 0xe2792aca|length"},
    {2, 20, 4, 0, "cluster_bits is 0"},
    {2, 32, 4, 1, "is encrypted|secret"},
    {2, 40, 8, 1, "l1_table_offset is 1"},
};

static void set_field(Bytes *image, unsigned offset, unsigned bytes, uint64_t value)
{
    uint8_t raw[8];
    store_be64(raw, value);
    memcpy(image->b + offset, raw + 8 - bytes, bytes);
}

START_TEST(open_refuses_a_field)
{
    const Refusal *r = &refusals[_i];
    Bytes image = sound_image(r->version);
    if (r->offset == 8) {
        set_field(&image, 16, 4, 10);
    }
    set_field(&image, r->offset, r->bytes, r->value);
    assert_refused(&image, sizeof image, false, r->words);
}
END_TEST

START_TEST(open_refuses_a_short_file)
{
    Bytes image = sound_image(3);
    assert_refused(&image, 0, false, "magic");
    assert_refused(&image, 71, false, "magic");
    assert_refused(&image, 80, false, "ends inside the header");
    assert_refused(&image, CLUSTER, false, "inside the file");
}
END_TEST

START_TEST(open_refuses_unknown_features_by_their_names)
{
    Bytes image = sound_image(3);
    set_field(&image, 72, 8, UINT64_C(1) << 17 | UINT64_C(1) << 40);
    set_field(&image, 112, 4, QCOW2_EXT_FEATURE_NAMES);
    set_field(&image, 116, 4, 96);
    image.b[120] = 1; /* a compatible feature of the same number */
    image.b[121] = 17;
    strcpy((char *)image.b + 122, "wrong");
    image.b[168] = 0;
    image.b[169] = 17;
    strcpy((char *)image.b + 170, "time travel");
    assert_refused(&image, sizeof image, false, "incompatible_features|time travel, bit 40");
}
END_TEST

START_TEST(open_refuses_a_long_backing_name)
{
    Bytes image = sound_image(3);
    set_field(&image, 8, 8, 1024);
    set_field(&image, 16, 4, 1024);
    assert_refused(&image, sizeof image, false, "backing_file_size is 1024|1023");
    set_field(&image, 8, 8, CLUSTER - 4);
    set_field(&image, 16, 4, 5);
    assert_refused(&image, sizeof image, false, "backing_file_size is 5|at most 4");
}
END_TEST

START_TEST(open_reads_backing_name_and_format)
{
    Bytes image = sound_image(3);
    set_field(&image, 112, 4, QCOW2_EXT_BACKING_FORMAT);
    set_field(&image, 116, 4, 3);
    memcpy(image.b + 120, "raw", 3);
    set_field(&image, 8, 8, 200);
    set_field(&image, 16, 4, 8);
    memcpy(image.b + 200, "base.img", 8);
    g_autoptr(Image) opened = open_bytes(&image, sizeof image, false, NULL, NULL);
    ck_assert_ptr_nonnull(opened);
    ck_assert_str_eq(opened->backing_name, "base.img");
    ck_assert_str_eq(opened->backing_format, "raw");
    ck_assert_uint_eq(opened->size, 1 << 20);
    ck_assert_uint_eq(opened->allocation_unit, CLUSTER);
}
END_TEST

/* A snapshot table in cluster 6 with one entry. */
static Bytes image_with_snapshot(void)
{
    Bytes image = sound_image(3);
    set_field(&image, 60, 4, 1);
    set_field(&image, 64, 8, 6 * CLUSTER);
    uint8_t *entry = image.b + 6 * CLUSTER;
    store_be64(entry, 7 * CLUSTER);
    store_be32(entry + 8, 1);
    store_be16(entry + 12, 1);
    store_be16(entry + 14, 3);
    memcpy(entry + 40, "1abc", 4);
    return image;
}

START_TEST(open_reads_snapshots)
{
    Bytes image = image_with_snapshot();
    g_autoptr(Image) opened = open_bytes(&image, sizeof image, false, NULL, NULL);
    ck_assert_ptr_nonnull(opened);
    const GArray *snapshots = qcow2_state(opened)->snapshots;
    ck_assert_uint_eq(snapshots->len, 1);
    const Qcow2Snapshot *snapshot = &g_array_index(snapshots, Qcow2Snapshot, 0);
    ck_assert_str_eq(snapshot->id, "1");
    ck_assert_str_eq(snapshot->name, "abc");
    ck_assert_uint_eq(snapshot->disk_size, 1 << 20);
}
END_TEST

START_TEST(open_refuses_damaged_snapshots)
{
    const struct {
        unsigned offset, bytes;
        uint64_t value;
        const char *words;
    } bad[] = {
        {0, 8, 7 * CLUSTER + 512, "snapshot 0|l1_table_offset is 29184"},
        {0, 8, 80 * CLUSTER, "snapshot 0|l1_table_offset"},
        {8, 4, 0x400001, "snapshot 0|l1_size is 4194305"},
        {8, 4, 4096, "snapshot 0|l1_table_offset"},
        {36, 4, 1025, "snapshot 0|extra data size is 1025"},
        {14, 2, 0xffff, "snapshot 0|inside the file"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        Bytes image = image_with_snapshot();
        set_field(&image, 6 * CLUSTER + bad[i].offset, bad[i].bytes, bad[i].value);
        assert_refused(&image, sizeof image, false, bad[i].words);
    }
}
END_TEST

START_TEST(open_corrupt_image_for_reading_only)
{
    Bytes image = sound_image(3);
    set_field(&image, 72, 8, QCOW2_INCOMPAT_CORRUPT);
    assert_accepted(&image, sizeof image, false);
    assert_refused(&image, sizeof image, true, "corrupt bit|check");
}
END_TEST

static uint64_t stored_be64(Store *store, uint64_t offset)
{
    uint8_t raw[8];
    ck_assert_int_eq(store_read(store, raw, 8, offset), 0);
    return load_be64(raw);
}

START_TEST(open_for_writing_rebuilds_refcounts_of_a_dirty_image)
{
    Bytes image = sound_image(3);
    set_field(&image, 72, 8, QCOW2_INCOMPAT_DIRTY);
    set_field(&image, 80, 8, QCOW2_COMPAT_LAZY_REFCOUNTS);
    store_be16(image.b + 2 * CLUSTER + 5 * 2, 0); /* the data's refcount was never written */
    assert_accepted(&image, sizeof image, false);
    g_autoptr(Store) store = NULL;
    GError *error = NULL;
    g_autoptr(Image) opened = open_bytes(&image, sizeof image, true, &store, &error);
    ck_assert_msg(opened != NULL, "%s", error ? error->message : "");
    ck_assert_uint_eq(stored_be64(store, 72), 0);
    ck_assert_uint_eq(stored_be64(store, 80), QCOW2_COMPAT_LAZY_REFCOUNTS);
    uint64_t refcount;
    ck_assert_int_eq(qcow2_refcount_get(opened, 5, &refcount), 0);
    ck_assert_uint_eq(refcount, 1);
}
END_TEST

START_TEST(open_for_writing_clears_autoclear_bits)
{
    Bytes image = sound_image(3);
    set_field(&image, 88, 8, 0x8000000000000003u);
    g_autoptr(Store) read_store = NULL, write_store = NULL;
    set_field(&image, 112, 4, QCOW2_EXT_BITMAPS);
    set_field(&image, 116, 4, 24);
    set_field(&image, 120, 4, 1);
    set_field(&image, 128, 8, 32);
    set_field(&image, 136, 8, 6 * CLUSTER);
    Image *opened = open_bytes(&image, sizeof image, false, &read_store, NULL);
    ck_assert_ptr_nonnull(opened);
    ck_assert_uint_eq(stored_be64(read_store, 88), 0x8000000000000003u);
    image_unref(opened);
    opened = open_bytes(&image, sizeof image, true, &write_store, NULL);
    ck_assert_ptr_nonnull(opened);
    ck_assert_uint_eq(stored_be64(write_store, 88), 0);
    image_unref(opened);

    set_field(&image, 120, 4, 65536);
    assert_refused(&image, sizeof image, false, "nb_bitmaps is 65536");
    set_field(&image, 120, 4, 1);
    set_field(&image, 136, 8, 6 * CLUSTER + 1);
    assert_refused(&image, sizeof image, false, "bitmap_directory_offset");
}
END_TEST

START_TEST(open_for_writing_refuses_a_table_used_twice)
{
    Bytes image = sound_image(3);
    set_field(&image, 24, 8, 4 << 20);
    set_field(&image, 36, 4, 2);
    store_be64(image.b + 3 * CLUSTER + 8, 4 * CLUSTER);
    assert_accepted(&image, sizeof image, false);
    assert_refused(&image, sizeof image, true, "at 16384|used twice|check");
    store_be64(image.b + 3 * CLUSTER + 8, 2 * CLUSTER);
    assert_refused(&image, sizeof image, true, "at 8192|used twice");
}
END_TEST

START_TEST(open_probes)
{
    Bytes image = sound_image(3);
    ck_assert_int_eq(format_qcow2.probe(image.b, 4096, "x"), 100);
    ck_assert_int_eq(format_qcow2.probe(image.b, 7, "x"), 0);
    set_field(&image, 4, 4, 1);
    ck_assert_int_eq(format_qcow2.probe(image.b, 4096, "x"), 0);
    image.b[0] = 'q';
    ck_assert_int_eq(format_qcow2.probe(image.b, 4096, "x"), 0);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("open");
    tcase_add_test(tcase, open_accepts_sound_images);
    tcase_add_loop_test(tcase, open_refuses_a_field, 0, G_N_ELEMENTS(refusals));
    tcase_add_test(tcase, open_refuses_a_short_file);
    tcase_add_test(tcase, open_refuses_unknown_features_by_their_names);
    tcase_add_test(tcase, open_refuses_a_long_backing_name);
    tcase_add_test(tcase, open_reads_backing_name_and_format);
    tcase_add_test(tcase, open_reads_snapshots);
    tcase_add_test(tcase, open_refuses_damaged_snapshots);
    tcase_add_test(tcase, open_corrupt_image_for_reading_only);
    tcase_add_test(tcase, open_for_writing_rebuilds_refcounts_of_a_dirty_image);
    tcase_add_test(tcase, open_for_writing_clears_autoclear_bits);
    tcase_add_test(tcase, open_for_writing_refuses_a_table_used_twice);
    tcase_add_test(tcase, open_probes);
    return suite_run("qcow2_open", tcase);
}
