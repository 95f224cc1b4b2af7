/* formats/vmdk.c, formats/vmdk-sparse.c: what is read, and what is refused by which name */
#include <errno.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "tests/unit/vmdk-image.h"

/*
 * The sparse image of these tests, in sectors:
 *
 *     0 header   1 descriptor (4)   8 directory   9 table (4: 512 entries)   16 grains, 8 sectors each
 *
 * 60 sectors of 4 KiB grains: 7 whole ones and a half.
 */
#define GRAIN      4096u
#define DESCRIPTOR 1u
#define DIRECTORY  8u
#define TABLE      9u
#define GRAINS     16u
#define CAPACITY   60u
#define FILE_SIZE  ((GRAINS + 8u * 8) * SECTOR)

#define HEAD       "# Disk DescriptorFile\nversion=1\nCID=1\ncreateType=\"custom\"\n"

static const char descriptor_text[] = "# Disk DescriptorFile\n"
                                      "version=1\n"
                                      "CID=12345678\n"
                                      "parentCID=ffffffff\n"
                                      "createType=\"monolithicSparse\"\n"
                                      "RW 60 SPARSE \"any name.vmdk\"\n";

static void put_entry(uint8_t *file, unsigned grain, uint32_t sector)
{
    store_le32(file + TABLE * SECTOR + 4 * grain, sector);
}

/* Grain g is not here; the tests put in what they want. */
static uint8_t *sparse_file(void)
{
    uint8_t *file = g_malloc0(FILE_SIZE);
    store_le32(file, VMDK_MAGIC);
    store_le32(file + 4, 1);
    store_le32(file + 8, 3);
    store_le64(file + 12, CAPACITY);
    store_le64(file + 20, GRAIN / SECTOR);
    store_le64(file + 28, DESCRIPTOR);
    store_le64(file + 36, 4);
    store_le32(file + 44, 512);
    store_le64(file + 48, DIRECTORY);
    store_le64(file + 56, DIRECTORY);
    store_le64(file + 64, GRAINS);
    memcpy(file + 73, "\n \r\n", 4);
    memcpy(file + DESCRIPTOR * SECTOR, descriptor_text, sizeof descriptor_text);
    store_le32(file + DIRECTORY * SECTOR, TABLE);
    for (unsigned grain = 0; grain < 8; grain++) {
        memset(file + (GRAINS + 8 * grain) * SECTOR, 'a' + grain, GRAIN);
    }
    return file;
}

START_TEST(vmdk_maps_data_and_what_is_not_here)
{
    g_autofree uint8_t *file = sparse_file();
    put_entry(file, 0, GRAINS);
    put_entry(file, 1, GRAINS + 8);
    put_entry(file, 3, GRAINS);
    put_entry(file, 7, GRAINS + 8 * 7);
    g_autoptr(Image) image = must_open(file, FILE_SIZE, NULL);
    ck_assert_str_eq(image->format->name, "vmdk");
    ck_assert_uint_eq(image->size, CAPACITY * SECTOR);
    ck_assert_uint_eq(image->allocation_unit, GRAIN);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(image_map(image, 100, image->size - 100, &list), 0);
    static const struct {
        uint64_t offset, host_offset;
        ExtentType type;
    } expected[] = {
        {100, GRAINS * SECTOR + 100, EXTENT_DATA}, {2 * GRAIN, 0, EXTENT_UNALLOCATED},
        {3 * GRAIN, GRAINS * SECTOR, EXTENT_DATA}, {4 * GRAIN, 0, EXTENT_UNALLOCATED},
        {7 * GRAIN, 72 * SECTOR, EXTENT_DATA},
    };
    ck_assert_uint_eq(list.count, G_N_ELEMENTS(expected));
    for (unsigned i = 0; i < list.count; i++) {
        ck_assert_uint_eq(list.items[i].offset, expected[i].offset);
        ck_assert_int_eq(list.items[i].type, expected[i].type);
        if (expected[i].type == EXTENT_DATA) {
            ck_assert_uint_eq(list.items[i].host_offset, expected[i].host_offset);
        }
    }
    ck_assert_uint_eq(extent_list_end(&list), image->size);
    extent_list_clear(&list);
}
END_TEST

START_TEST(vmdk_entry_1_is_zero_only_with_the_flag)
{
    g_autofree uint8_t *file = sparse_file();
    put_entry(file, 0, 1);
    g_autoptr(Image) plain = must_open(file, FILE_SIZE, NULL);
    ck_assert_uint_eq(byte_at(plain, 0), '#');
    store_le32(file + 8, 3 | 4);
    g_autofree uint8_t *base_file = sparse_file();
    put_entry(base_file, 0, GRAINS);
    put_entry(base_file, 1, GRAINS);
    g_autoptr(Image) base = must_open(base_file, FILE_SIZE, NULL);
    g_autoptr(Image) zero = must_open(file, FILE_SIZE, base);
    ck_assert_uint_eq(byte_at(zero, 0), 0);
    ck_assert_uint_eq(byte_at(zero, GRAIN), 'a');
}
END_TEST

START_TEST(vmdk_refuses_header_fields_by_name)
{
    static const WrongField wrong[] = {
        {0, 4, VMDK_COWD_MAGIC, "grainSize is 0"},
        {4, 4, 0, "version is 0"},
        {4, 4, 4, "version is 4"},
        {8, 4, 0x10003, "compressAlgorithm is 0"},
        {77, 2, 1, "compressAlgorithm is 1"},
        {77, 2, 9, "compressAlgorithm is 9"},
        {74, 1, '\n', "newline test is 0a 0a 0d 0a"},
        {12, 8, 0, "capacity is 0"},
        {12, 8, UINT64_MAX, "capacity is 18446744073709551615"},
        {12, 8, 1ull << 54, "capacity is"},
        {12, 8, (1ull << 54) - 1, "gdOffset is sector 8"},
        {20, 8, 0, "grainSize is 0"},
        {20, 8, 7, "grainSize is 7"},
        {20, 8, 4, "grainSize is 4"},
        {20, 8, 24, "grainSize is 24"},
        {20, 8, 65536, "grainSize is 65536"},
        {20, 8, 1ull << 63, "grainSize is"},
        {28, 8, 1ull << 60, "descriptorOffset is"},
        {28, 8, 0, "holds no descriptor"},
        {36, 8, 2049, "descriptorSize is 2049"},
        {36, 8, UINT64_MAX, "descriptorSize is"},
        {36, 8, 0, "holds no descriptor"},
        {36, 8, 1000, "descriptorOffset is sector 1"},
        {44, 4, 0, "numGTEsPerGT is 0"},
        {44, 4, 513, "numGTEsPerGT is 513"},
        {56, 8, 0, "gdOffset is 0"},
        {56, 8, 80, "gdOffset is sector 80"},
        {56, 8, UINT64_MAX - 1, "gdOffset is sector"},
        {56, 8, UINT64_MAX, "gdOffset is -1, but the marker"},
    };
    g_autofree uint8_t *file = sparse_file();
    assert_fields_refused(file, FILE_SIZE, wrong, G_N_ELEMENTS(wrong));
}
END_TEST

START_TEST(vmdk_refuses_every_truncated_header)
{
    g_autofree uint8_t *file = sparse_file();
    for (uint64_t size = 4; size <= DIRECTORY * SECTOR; size += 4) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Image) image = open_bytes(file, size, NULL, &error);
        ck_assert_ptr_null(image);
    }
    assert_refused(file, 100, "image is truncated");
    store_le64(file + 56, UINT64_MAX);
    assert_refused(file, 3 * SECTOR, "image is truncated");
}
END_TEST

START_TEST(vmdk_table_beyond_the_end_is_an_error_not_a_hole)
{
    g_autofree uint8_t *file = sparse_file();
    store_le32(file + DIRECTORY * SECTOR, FILE_SIZE / SECTOR - 3);
    g_autoptr(Image) image = must_open(file, FILE_SIZE, NULL);
    uint8_t byte;
    ck_assert_int_eq(chain_read(image, &byte, 1, 0), -EIO);
}
END_TEST

START_TEST(vmdk_grain_beyond_the_end_is_an_error)
{
    g_autofree uint8_t *file = sparse_file();
    put_entry(file, 0, GRAINS);
    put_entry(file, 1, FILE_SIZE / SECTOR + 8);
    put_entry(file, 2, UINT32_MAX);
    g_autoptr(Image) image = must_open(file, FILE_SIZE, NULL);
    uint8_t byte;
    ck_assert_uint_eq(byte_at(image, GRAIN - 1), 'a');
    ck_assert_int_eq(chain_read(image, &byte, 1, GRAIN), -EIO);
    ck_assert_int_eq(chain_read(image, &byte, 1, 2 * GRAIN), -EIO);
}
END_TEST

START_TEST(vmdk_directory_may_cross_blocks_and_have_gaps)
{
    enum { TABLES = 1500, TABLE_ENTRIES = 1, AT = 600 };
    uint64_t size = (AT + TABLES * 4 / SECTOR + 2 + 16) * SECTOR;
    g_autofree uint8_t *start = sparse_file();
    g_autofree uint8_t *file = g_malloc0(size);
    memcpy(file, start, DIRECTORY * SECTOR);
    store_le64(file + 12, TABLES * (GRAIN / SECTOR));
    store_le32(file + 44, TABLE_ENTRIES);
    store_le64(file + 56, AT + 1);
    /* Only the last grain is there. */
    store_le32(file + (AT + 1) * SECTOR + 4 * (TABLES - 1), TABLE);
    store_le32(file + TABLE * SECTOR, GRAINS);
    memset(file + GRAINS * SECTOR, 'x', GRAIN);
    g_autoptr(Image) image = must_open(file, size, NULL);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(chain_map(image, 0, image->size, 0, &list), 0);
    ck_assert_uint_eq(list.count, 2);
    ck_assert_uint_eq(list.items[1].offset, (TABLES - 1) * (uint64_t)GRAIN);
    ck_assert_uint_eq(list.items[1].host_offset, GRAINS * SECTOR);
    extent_list_clear(&list);
}
END_TEST

static uint32_t put_stream(uint8_t *file, uint32_t sector, uint64_t lba, uint8_t fill,
                           uint64_t length)
{
    uint8_t grain[2 * GRAIN];
    memset(grain, fill, length);
    uLongf stored = 8 * SECTOR;
    ck_assert_int_eq(compress(file + sector * SECTOR + 12, &stored, grain, length), Z_OK);
    store_le64(file + sector * SECTOR, lba);
    store_le32(file + sector * SECTOR + 8, stored);
    return stored;
}

static uint8_t *stream_file(void)
{
    uint8_t *file = sparse_file();
    store_le32(file + 8, 0x30001);
    store_le16(file + 77, 1);
    return file;
}

START_TEST(vmdk_reads_compressed_grains)
{
    g_autofree uint8_t *file = stream_file();
    put_entry(file, 1, GRAINS);
    put_stream(file, GRAINS, 8, 'q', GRAIN);
    put_entry(file, 7, GRAINS + 8);
    put_stream(file, GRAINS + 8, 56, 'r', GRAIN / 2); /* only what lies within the disk */
    g_autoptr(Image) image = must_open(file, FILE_SIZE, NULL);
    ck_assert_uint_eq(byte_at(image, GRAIN - 1), 0);
    ck_assert_uint_eq(byte_at(image, GRAIN), 'q');
    ck_assert_uint_eq(byte_at(image, 2 * GRAIN - 1), 'q');
    ck_assert_uint_eq(byte_at(image, CAPACITY * SECTOR - 1), 'r');
}
END_TEST

START_TEST(vmdk_reads_compressed_grains_without_markers)
{
    g_autofree uint8_t *file = stream_file();
    store_le32(file + 8, 0x10001);
    put_entry(file, 1, GRAINS);
    uint32_t stored = put_stream(file, GRAINS, 8, 'q', GRAIN);
    memmove(file + GRAINS * SECTOR, file + GRAINS * SECTOR + 12, stored);
    g_autoptr(Image) image = must_open(file, FILE_SIZE, NULL);
    ck_assert_uint_eq(byte_at(image, GRAIN + 17), 'q');
}
END_TEST

START_TEST(vmdk_refuses_damaged_grains)
{
    g_autofree uint8_t *file = stream_file();
    for (unsigned grain = 0; grain < 7; grain++) {
        put_entry(file, grain, GRAINS + 8 * grain);
        put_stream(file, GRAINS + 8 * grain, 8 * grain, 'q', GRAIN);
    }
    uint8_t *grains = file + GRAINS * SECTOR;
    store_le64(grains + 1 * GRAIN, 16);                      /* the marker of another */
    store_le32(grains + 2 * GRAIN + 8, 0);                   /* no stream */
    store_le32(grains + 3 * GRAIN + 8, 2 * GRAIN + 1);       /* too long */
    grains[4 * GRAIN + 20] ^= 0x55;                          /* damaged */
    put_stream(file, GRAINS + 8 * 5, 8 * 5, 'q', GRAIN / 2); /* too little */
    put_stream(file, GRAINS + 8 * 6, 8 * 6, 'q', 2 * GRAIN); /* too much */
    g_autoptr(Image) image = must_open(file, FILE_SIZE, NULL);
    uint8_t byte;
    ck_assert_uint_eq(byte_at(image, 0), 'q');
    for (unsigned grain = 1; grain < 7; grain++) {
        ck_assert_msg(chain_read(image, &byte, 1, grain * GRAIN) == -EIO, "grain %u", grain);
    }
}
END_TEST

/* The header says -1, the footer before the end of the stream says where. */
static uint8_t *footer_file(uint64_t *size)
{
    g_autofree uint8_t *file = stream_file();
    *size = FILE_SIZE + 3 * SECTOR;
    uint8_t *stream = g_malloc0(*size);
    memcpy(stream, file, FILE_SIZE);
    store_le32(stream + FILE_SIZE + 12, 3);
    memcpy(stream + FILE_SIZE + SECTOR, file, SECTOR);
    store_le64(stream + 56, UINT64_MAX);
    put_entry(stream, 0, GRAINS);
    put_stream(stream, GRAINS, 0, 'f', GRAIN);
    return stream;
}

START_TEST(vmdk_finds_the_directory_by_the_footer)
{
    uint64_t size;
    g_autofree uint8_t *stream = footer_file(&size);
    g_autoptr(Image) image = must_open(stream, size, NULL);
    ck_assert_uint_eq(byte_at(image, 5), 'f');
    uint8_t *footer = stream + FILE_SIZE + SECTOR;
    store_le64(footer + 56, UINT64_MAX);
    assert_refused(stream, size, "gdOffset of the footer is -1");
    store_le64(footer + 56, DIRECTORY);
    store_le32(footer, 0);
    assert_refused(stream, size, "magic of the footer is 00000000");
    store_le32(stream + FILE_SIZE + 12, 1);
    assert_refused(stream, size, "type 1");
    assert_refused(stream, size - SECTOR, "gdOffset is -1");
}
END_TEST

START_TEST(vmdk_cid_of_the_parent_must_match)
{
    g_autofree uint8_t *base_file = sparse_file();
    put_entry(base_file, 0, GRAINS);
    g_autoptr(Image) base = must_open(base_file, FILE_SIZE, NULL);
    static const char with_parent[] = "# Disk DescriptorFile\nversion=1\nCID=00000002\n"
                                      "parentCID=%s\ncreateType=\"monolithicSparse\"\n"
                                      "parentFileNameHint=\"base.vmdk\"\n";
    g_autofree uint8_t *file = sparse_file();
    g_snprintf((char *)file + SECTOR, 4 * SECTOR, with_parent, "12345678");
    g_autoptr(Image) image = must_open(file, FILE_SIZE, base);
    ck_assert_uint_eq(byte_at(image, 0), 'a');
    ck_assert_str_eq(image->backing_name, "base.vmdk");
    ck_assert_str_eq(image->backing_format, "vmdk");

    g_autoptr(GError) error = NULL;
    g_snprintf((char *)file + SECTOR, 4 * SECTOR, with_parent, "12345679");
    ck_assert_ptr_null(open_bytes(file, FILE_SIZE, base, &error));
    ck_assert(strstr(error->message, "parentCID is 12345679") != NULL);
    ck_assert(strstr(error->message, "12345678") != NULL);
    g_clear_error(&error);

    ImageOpen how = {.format = &format_raw};
    g_autoptr(Store) store = store_memory_new("base.raw", base_file, FILE_SIZE);
    g_autoptr(Image) raw = image_open_store(store, &how, NULL, NULL);
    ck_assert_ptr_null(open_bytes(file, FILE_SIZE, raw, &error));
    ck_assert(strstr(error->message, "must be vmdk") != NULL);
}
END_TEST

START_TEST(vmdk_streams_are_not_opened_for_writing)
{
    g_autofree uint8_t *file = stream_file();
    g_autoptr(Store) store = store_memory_new("test.vmdk", file, FILE_SIZE);
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.write = true};
    ck_assert_ptr_null(image_open_store(store, &how, NULL, &error));
    ck_assert_int_eq(error->code, ENOTSUP);
    ck_assert(strstr(error->message, "streamOptimized") != NULL);
}
END_TEST

START_TEST(vmdk_refuses_descriptor_files_that_are_none)
{
    assert_refused(HEAD, strlen(HEAD), "names no extents");
    g_autoptr(GString) text = g_string_new(HEAD);
    while (text->len <= VMDK_DESCRIPTOR_MAX) {
        g_string_append(text, "# a comment that goes on and on and on and on and on and on\n");
    }
    assert_refused(text->str, text->len, "1048576 at most");
}
END_TEST

START_TEST(vmdk_reads_an_embedded_descriptor_of_any_size)
{
    enum { SECTORS = 1000 };
    g_autofree uint8_t *file = sparse_file();
    uint64_t size = FILE_SIZE + SECTORS * SECTOR;
    g_autofree uint8_t *large = g_malloc0(size);
    memcpy(large, file, FILE_SIZE);
    store_le64(large + 28, FILE_SIZE / SECTOR);
    store_le64(large + 36, SECTORS);
    char *text = (char *)large + FILE_SIZE;
    memset(text, '\n', SECTORS * SECTOR);
    memcpy(text, HEAD, strlen(HEAD));
    memcpy(text + 900 * SECTOR, "CID=77", 6);
    g_autoptr(Image) image = must_open(large, size, NULL);
    GVariantBuilder data;
    g_variant_builder_init(&data, G_VARIANT_TYPE_VARDICT);
    image->format->info(image, &data);
    g_autoptr(GVariant) info = g_variant_ref_sink(g_variant_builder_end(&data));
    guint32 cid = 0;
    ck_assert(g_variant_lookup(info, "cid", "u", &cid));
    ck_assert_uint_eq(cid, 0x77);
}
END_TEST

static void write_file(const char *folder, const char *name, const void *bytes, gssize size)
{
    g_autofree char *path = g_build_filename(folder, name, NULL);
    ck_assert(g_file_set_contents(path, bytes, size, NULL));
}

static Image *open_folder(const char *folder, const char *text, GError **error)
{
    ImageOpen how = {0};
    write_file(folder, "disk.vmdk", text, -1);
    g_autofree char *path = g_build_filename(folder, "disk.vmdk", NULL);
    return image_open(path, &how, error);
}

static void assert_folder_refused(const char *folder, const char *text, const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_folder(folder, text, &error);
    ck_assert_msg(image == NULL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error->message, words) != NULL, "'%s' is not in: %s", words,
                  error->message);
}

START_TEST(vmdk_joins_extents_of_every_kind)
{
    g_autofree char *folder = g_dir_make_tmp("cownbd-vmdk-XXXXXX", NULL);
    g_autofree uint8_t *file = sparse_file();
    put_entry(file, 0, GRAINS);
    put_entry(file, 7, GRAINS + 8);
    write_file(folder, "s.vmdk", file, FILE_SIZE);
    char flat[4 * SECTOR];
    memset(flat, '1', 2 * SECTOR);
    memset(flat + 2 * SECTOR, '2', 2 * SECTOR);
    write_file(folder, "f f.vmdk", flat, sizeof flat);
    g_autoptr(GError) error = NULL;
    /* 59 of the 60 sectors of the sparse extent: the next begins inside a grain. */
    g_autoptr(Image) image = open_folder(folder,
                                         HEAD "RW 59 SPARSE \"s.vmdk\"\n"
                                              "RDONLY 2 FLAT \"f f.vmdk\" 1\n"
                                              "RW 3 ZERO\n"
                                              "RW 1 VMFS \"f f.vmdk\"\n"
                                              "NOACCESS 1 FLAT \"nowhere.vmdk\" 0\n",
                                         &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    ck_assert_uint_eq(image->size, 66 * SECTOR);
    ck_assert_uint_eq(byte_at(image, 0), 'a');
    ck_assert_uint_eq(byte_at(image, GRAIN), 0);
    ck_assert_uint_eq(byte_at(image, 59 * SECTOR - 1), 'b');
    ck_assert_uint_eq(byte_at(image, 59 * SECTOR), '1');
    ck_assert_uint_eq(byte_at(image, 60 * SECTOR), '2');
    ck_assert_uint_eq(byte_at(image, 61 * SECTOR), 0);
    ck_assert_uint_eq(byte_at(image, 64 * SECTOR), '1');
    uint8_t byte;
    ck_assert_int_eq(chain_read(image, &byte, 1, 65 * SECTOR), -EIO);

    assert_folder_refused(folder, HEAD "RW 61 SPARSE \"s.vmdk\"\n", "capacity of extent");
    assert_folder_refused(folder, HEAD "RW 5 FLAT \"f f.vmdk\" 0\n", "is truncated");
    assert_folder_refused(folder, HEAD "RW 4 FLAT \"f f.vmdk\" 1\n", "is truncated");
    assert_folder_refused(folder, HEAD "RW 4 SPARSE \"f f.vmdk\"\n", "magic of the header");
    assert_folder_refused(folder, HEAD "RW 4 SPARSE \"disk.vmdk\"\n", "is truncated");
    assert_folder_refused(folder, HEAD "RW 4 FLAT \"gone.vmdk\" 0\n", "No such file");
    assert_folder_refused(folder, HEAD "RW 1 FLAT \"/etc/passwd\" 0\n", "--allow-path /etc");

    const char *argv[] = {"rm", "-rf", folder, NULL};
    g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL,
                 NULL);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vmdk");
    tcase_add_test(tcase, vmdk_maps_data_and_what_is_not_here);
    tcase_add_test(tcase, vmdk_entry_1_is_zero_only_with_the_flag);
    tcase_add_test(tcase, vmdk_refuses_header_fields_by_name);
    tcase_add_test(tcase, vmdk_refuses_every_truncated_header);
    tcase_add_test(tcase, vmdk_table_beyond_the_end_is_an_error_not_a_hole);
    tcase_add_test(tcase, vmdk_grain_beyond_the_end_is_an_error);
    tcase_add_test(tcase, vmdk_directory_may_cross_blocks_and_have_gaps);
    tcase_add_test(tcase, vmdk_reads_compressed_grains);
    tcase_add_test(tcase, vmdk_reads_compressed_grains_without_markers);
    tcase_add_test(tcase, vmdk_refuses_damaged_grains);
    tcase_add_test(tcase, vmdk_finds_the_directory_by_the_footer);
    tcase_add_test(tcase, vmdk_cid_of_the_parent_must_match);
    tcase_add_test(tcase, vmdk_streams_are_not_opened_for_writing);
    tcase_add_test(tcase, vmdk_refuses_descriptor_files_that_are_none);
    tcase_add_test(tcase, vmdk_reads_an_embedded_descriptor_of_any_size);
    tcase_add_test(tcase, vmdk_joins_extents_of_every_kind);
    return suite_run("vmdk", tcase);
}
