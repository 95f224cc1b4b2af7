/* formats/vmdk-cowd.c, formats/vmdk-sesparse.c: the sparse extents of ESX, read and refused */
#include <errno.h>
#include <glib/gstdio.h>

#include "tests/unit/vmdk-image.h"

/*
 * COWD, in sectors of one grain each:    0 header   4 directory   5 table (32: 4096 entries)   40 grains
 */
#define COWD_DIRECTORY 4u
#define COWD_TABLE     5u
#define COWD_GRAINS    40u
#define COWD_CAPACITY  5000u /* two tables */
#define COWD_SIZE      ((COWD_GRAINS + 8) * SECTOR)

static uint8_t *cowd_file(void)
{
    uint8_t *file = g_malloc0(COWD_SIZE);
    store_le32(file, VMDK_COWD_MAGIC);
    store_le32(file + 4, 1);
    store_le32(file + 8, 3);
    store_le32(file + 12, COWD_CAPACITY);
    store_le32(file + 16, 1);
    store_le32(file + 20, COWD_DIRECTORY);
    store_le32(file + 24, 2);
    store_le32(file + 28, COWD_GRAINS);
    store_le32(file + COWD_DIRECTORY * SECTOR, COWD_TABLE);
    for (unsigned grain = 0; grain < 8; grain++) {
        memset(file + (COWD_GRAINS + grain) * SECTOR, 'a' + grain, SECTOR);
    }
    return file;
}

static void cowd_put(uint8_t *file, unsigned grain, uint32_t sector)
{
    store_le32(file + COWD_TABLE * SECTOR + 4 * grain, sector);
}

START_TEST(cowd_reads_grains_of_a_sector)
{
    g_autofree uint8_t *file = cowd_file();
    cowd_put(file, 0, COWD_GRAINS + 1);
    cowd_put(file, 1, COWD_GRAINS + 2);
    cowd_put(file, 4095, COWD_GRAINS + 7);
    g_autoptr(Image) image = must_open(file, COWD_SIZE, NULL);
    ck_assert_uint_eq(image->size, COWD_CAPACITY * SECTOR);
    ck_assert_ptr_null(image->backing_name);
    ck_assert_uint_eq(byte_at(image, SECTOR - 1), 'b');
    ck_assert_uint_eq(byte_at(image, SECTOR), 'c');
    ck_assert_uint_eq(byte_at(image, 2 * SECTOR), 0);
    ck_assert_uint_eq(byte_at(image, 4095 * SECTOR), 'h');
    ck_assert_uint_eq(byte_at(image, image->size - 1), 0);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(image_map(image, 0, image->size, &list), 0);
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(list.items[0].length, 2 * SECTOR);
    ck_assert_int_eq(list.items[1].type, EXTENT_UNALLOCATED);
    extent_list_clear(&list);
}
END_TEST

START_TEST(cowd_refuses_header_fields_by_name)
{
    static const WrongField wrong[] = {
        {4, 4, 0, "version is 0: must be 1"},
        {4, 4, 2, "version is 2: must be 1"},
        {8, 4, 8, "flags are 0x8"},
        {8, 4, 0x80000001, "flags are 0x80000001"},
        {8, 4, 5, "flags are 0x5: the disk is marked inconsistent"},
        {8, 4, 2, "holds no descriptor"},
        {12, 4, 0, "numSectors is 0 sectors"},
        {12, 4, 2 * 4096 + 1, "numGDEntries is 2: must be 3 at least, for numSectors 8193"},
        {12, 4, UINT32_MAX, "gdOffset is sector 4"},
        {16, 4, 0, "grainSize is 0 sectors"},
        {16, 4, 3, "grainSize is 3 sectors: must be a power of two from 1 to 32768"},
        {16, 4, 65536, "grainSize is 65536 sectors"},
        {16, 4, UINT32_MAX, "grainSize is 4294967295 sectors"},
        {20, 4, 0, "gdOffset is 0"},
        {20, 4, COWD_SIZE / SECTOR, "gdOffset is sector 48"},
        {20, 4, UINT32_MAX, "gdOffset is sector 4294967295"},
        {24, 4, 0, "numGDEntries is 0: must be 2 at least"},
        {24, 4, 1, "numGDEntries is 1: must be 2 at least"},
    };
    g_autofree uint8_t *file = cowd_file();
    assert_fields_refused(file, COWD_SIZE, wrong, G_N_ELEMENTS(wrong));
    for (uint64_t size = 8; size < COWD_DIRECTORY * SECTOR + 8; size += 4) {
        assert_refused(file, size, size < 4 * SECTOR ? "image is truncated" : "gdOffset");
    }
}
END_TEST

/*
 * seSparse, in sectors:    0 header   1 volatile header   2 directory   8 tables (2 of 64)   136 grains, 8 each
 */
#define SE_DIRECTORY 2u
#define SE_TABLES    8u
#define SE_TABLE     64u
#define SE_GRAINS    136u
#define SE_GRAIN     4096u
#define SE_CAPACITY  (4096 * 8 + 8u) /* two tables */
#define SE_SIZE      ((SE_GRAINS + 8u * 8) * SECTOR)
#define SE_TYPE(n)   ((uint64_t)(n) << 60)

static void se_area(uint8_t *file, unsigned at, uint64_t sector, uint64_t sectors)
{
    store_le64(file + at, sector);
    store_le64(file + at + 8, sectors);
}

static void se_put(uint8_t *file, unsigned grain, uint64_t entry)
{
    store_le64(file + SE_TABLES * SECTOR + 8 * grain, entry);
}

/* The table of the disk's first part is the area's second. */
static uint8_t *se_file(void)
{
    uint8_t *file = g_malloc0(SE_SIZE);
    store_le64(file, VMDK_SESPARSE_MAGIC);
    store_le64(file + 8, 0x200000001);
    store_le64(file + 16, SE_CAPACITY);
    store_le64(file + 24, SE_GRAIN / SECTOR);
    store_le64(file + 32, SE_TABLE);
    se_area(file, 80, 1, 1);
    se_area(file, 128, SE_DIRECTORY, 1);
    se_area(file, 144, SE_TABLES, 2 * SE_TABLE);
    se_area(file, 192, SE_GRAINS, 1 << 20);
    store_le64(file + SECTOR, 0xcafecafe);
    store_le64(file + SE_DIRECTORY * SECTOR, SE_TYPE(1) | 1);
    store_le64(file + SE_DIRECTORY * SECTOR + 8, SE_TYPE(1));
    for (unsigned grain = 0; grain < 8; grain++) {
        memset(file + (SE_GRAINS + 8 * grain) * SECTOR, 'a' + grain, SE_GRAIN);
    }
    return file;
}

/* An extent in a descriptor file, for it cannot be opened alone. */
static Image *se_open(const uint8_t *file, uint64_t size, GError **error)
{
    static const char text[] = "# Disk DescriptorFile\nversion=1\nCID=1\ncreateType=\"seSparse\"\n"
                               "RW 32776 SESPARSE \"d-sesparse.vmdk\"\n";
    g_autofree char *folder = g_dir_make_tmp("cownbd-sesparse-XXXXXX", NULL);
    g_autofree char *disk = g_build_filename(folder, "d.vmdk", NULL);
    g_autofree char *extent = g_build_filename(folder, "d-sesparse.vmdk", NULL);
    ck_assert(g_file_set_contents(disk, text, -1, NULL));
    ck_assert(g_file_set_contents(extent, (const char *)file, size, NULL));
    Image *image = image_open(disk, &(ImageOpen){0}, error);
    g_unlink(disk);
    g_unlink(extent);
    g_rmdir(folder);
    return image;
}

static Image *se_must_open(const uint8_t *file)
{
    g_autoptr(GError) error = NULL;
    Image *image = se_open(file, SE_SIZE, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    return image;
}

/* Grain g of the second half of the disk is in the area's first table. */
START_TEST(sesparse_reads_every_type_of_entry)
{
    g_autofree uint8_t *file = se_file();
    uint64_t first = SE_TABLE * SECTOR / 8;
    se_put(file, first + 0, SE_TYPE(3) | UINT64_C(5) << 48);
    se_put(file, first + 1, SE_TYPE(1) | 77);
    se_put(file, first + 2, SE_TYPE(2));
    se_put(file, first + 3, 0);
    se_put(file, first + 4, SE_TYPE(3));
    se_put(file, first + 4095, SE_TYPE(3) | UINT64_C(7) << 48);
    se_put(file, 0, SE_TYPE(3) | UINT64_C(2) << 48);
    g_autoptr(Image) image = se_must_open(file);
    ck_assert_uint_eq(image->size, SE_CAPACITY * SECTOR);
    static const struct {
        uint64_t grains;
        ExtentType type;
        uint8_t byte;
    } expected[] = {
        {1, EXTENT_DATA, 'f'},
        {2, EXTENT_ZERO, 0},
        {1, EXTENT_UNALLOCATED, 0},
        {1, EXTENT_DATA, 'a'},
    };
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(image_map(image, 0, image->size, &list), 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(expected); i++) {
        ck_assert_uint_eq(list.items[i].length, expected[i].grains * SE_GRAIN);
        ck_assert_int_eq(list.items[i].type, expected[i].type);
        ck_assert_uint_eq(byte_at(image, list.items[i].offset), expected[i].byte);
    }
    extent_list_clear(&list);
    ck_assert_uint_eq(byte_at(image, 4095 * SE_GRAIN), 'h');
    ck_assert_uint_eq(byte_at(image, UINT64_C(4096) * SE_GRAIN), 'c');
}
END_TEST

START_TEST(sesparse_entries_that_cannot_be_true_are_errors)
{
    static const uint64_t grains[] = {
        1,
        UINT64_C(1) << 59,
        SE_TYPE(4),
        SE_TYPE(15) | 1,
        SE_TYPE(3) | UINT64_C(8) << 48, /* behind the end of file */
        SE_TYPE(3) | 1, /* 4096 grains in: within the area, behind the end of file */
        SE_TYPE(3) | UINT64_C(0xfff) << 48 | 0xffff, /* behind the area */
        SE_TYPE(3) | UINT64_C(1) << 47,
    };
    static const uint64_t tables[] = {
        1,
        SE_TYPE(1) | 2,
        SE_TYPE(1) | UINT32_MAX,
        SE_TYPE(1) | UINT64_C(1) << 48,
        SE_TYPE(2),
        SE_TYPE(3),
        UINT64_MAX,
    };
    uint8_t byte;
    for (unsigned i = 0; i < G_N_ELEMENTS(grains); i++) {
        g_autofree uint8_t *file = se_file();
        se_put(file, SE_TABLE * SECTOR / 8, grains[i]);
        g_autoptr(Image) image = se_must_open(file);
        ck_assert_msg(chain_read(image, &byte, 1, 0) == -EIO, "grain entry %u", i);
        ck_assert_uint_eq(byte_at(image, SE_GRAIN), 0);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(tables); i++) {
        g_autofree uint8_t *file = se_file();
        store_le64(file + SE_DIRECTORY * SECTOR, tables[i]);
        g_autoptr(Image) image = se_must_open(file);
        ck_assert_msg(chain_read(image, &byte, 1, 0) == -EIO, "directory entry %u", i);
    }
}
END_TEST

START_TEST(sesparse_refuses_header_fields_by_name)
{
    static const WrongField wrong[] = {
        {0, 8, UINT64_C(0xcafebabf), "magic of the header is cafebabf"},
        {0, 8, UINT64_C(0x1cafebabe), "magic of the header is cafebabe"},
        {8, 8, UINT64_C(0x200000002), "version is 0x200000002: must be 0x200000001"},
        {8, 8, UINT64_C(0x100000001), "version is 0x100000001"},
        {16, 8, 0, "capacity is 0 sectors"},
        {16, 8, 8, "the capacity of extent"},
        {16, 8, UINT64_C(1) << 54, "capacity is 18014398509481984 sectors"},
        {16, 8, 65 * 4096 * 8, "the grain directory has 1 sectors: must be 2 at least"},
        {24, 8, 0, "grain size is 0x0: must be 0x8"},
        {24, 8, 16, "grain size is 0x10: must be 0x8"},
        {32, 8, 128, "grain table size is 0x80: must be 0x40"},
        {40, 8, 1, "flags is 0x1: must be 0x0"},
        {48, 1, 1, "reserved bytes"},
        {79, 1, 1, "reserved bytes"},
        {80, 8, SE_SIZE / SECTOR, "volatile header offset is sector 200"},
        {80, 8, UINT64_MAX, "volatile header offset is sector"},
        {80, 8, 2, "volatile header's magic is 0x1000000000000001: must be 0xcafecafe"},
        {128, 8, 0, "grain directory offset is 0"},
        {128, 8, SE_SIZE / SECTOR, "grain directory offset is sector 200"},
        {128, 8, UINT64_MAX, "grain directory offset is sector"},
        {136, 8, 0, "the grain directory has 0 sectors: must be 1 at least"},
        {144, 8, UINT64_C(1) << 54, "the grain tables are 128 sectors from 18014398509481984"},
        {152, 8, UINT64_MAX, "the grain tables are 18446744073709551615 sectors"},
        {192, 8, UINT64_MAX, "the grains are 1048576 sectors from 18446744073709551615"},
        {200, 8, UINT64_C(1) << 54, "the grains are 18014398509481984 sectors"},
        {208, 1, 1, "reserved bytes"},
        {511, 1, 1, "reserved bytes"},
        {512 + 24, 8, 1, "its journal must be replayed (replay journal is 1)"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree uint8_t *file = se_file();
        uint8_t value[8];
        store_le64(value, wrong[i].value);
        memcpy(file + wrong[i].offset, value, wrong[i].size);
        g_autoptr(Image) image = se_open(file, SE_SIZE, &error);
        ck_assert_msg(image == NULL, "'%s' was not refused", wrong[i].words);
        ck_assert_msg(strstr(error->message, wrong[i].words) != NULL, "'%s' is not in: %s",
                      wrong[i].words, error->message);
    }
}
END_TEST

START_TEST(sesparse_is_no_disk_by_itself_and_may_be_cut_short)
{
    g_autofree uint8_t *file = se_file();
    assert_refused(file, SE_SIZE, "holds no descriptor");
    for (uint64_t size = 8; size < 3 * SECTOR; size += 8) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Image) image = se_open(file, size, &error);
        ck_assert_msg((image != NULL) == (size >= SE_DIRECTORY * SECTOR + 16), "%u",
                      (unsigned)size);
    }
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vmdk_esx");
    tcase_add_test(tcase, cowd_reads_grains_of_a_sector);
    tcase_add_test(tcase, cowd_refuses_header_fields_by_name);
    tcase_add_test(tcase, sesparse_reads_every_type_of_entry);
    tcase_add_test(tcase, sesparse_entries_that_cannot_be_true_are_errors);
    tcase_add_test(tcase, sesparse_refuses_header_fields_by_name);
    tcase_add_test(tcase, sesparse_is_no_disk_by_itself_and_may_be_cut_short);
    return suite_run("vmdk_esx", tcase);
}
