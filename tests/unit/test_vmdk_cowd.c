/* formats/vmdk-cowd.c, formats/vmdk-entry.c: COWD, written, checked and made; formats/vmdk-scan.c: what writers refuse */
#include "formats/vmdk-impl.h"
#include "tests/lib/image-files.h"
#include "tests/lib/store-scratch.h"
#include "tests/unit/vmdk-image.h"

/*
 * The image of these tests is a root, a disk by itself: 3 MiB in grains of a sector, two tables. In sectors:
 *
 *     0 header   4 directory   5 the first table (32)   37 grains
 */
#define SECTORS        6144u
#define DIRECTORY      (4 * SECTOR)
#define TABLE          (5 * SECTOR)
#define GRAINS         37u
#define FREE_SECTOR    28u
#define UNCLEAN_OFFSET 1648u

/* With `count` grains, grain i filled with 'a' + i. */
static Store *root_store(unsigned count)
{
    uint64_t size = (GRAINS + count) * SECTOR;
    g_autofree uint8_t *bytes = g_malloc0(size);
    const uint32_t head[] = {VMDK_COWD_MAGIC, 1, 3, SECTORS, 1, 4, 2, GRAINS + count};
    for (unsigned i = 0; i < G_N_ELEMENTS(head); i++) {
        store_le32(bytes + 4 * i, head[i]);
    }
    store_le32(bytes + DIRECTORY, TABLE / SECTOR);
    for (unsigned i = 0; i < count; i++) {
        store_le32(bytes + TABLE + 4 * i, GRAINS + i);
        memset(bytes + (GRAINS + i) * SECTOR, 'a' + (int)i, SECTOR);
    }
    return store_memory_new("root.vmdk", bytes, size);
}

static void put_word(Store *store, uint64_t offset, uint32_t value)
{
    uint8_t bytes[4];
    store_le32(bytes, value);
    ck_assert_int_eq(store_write(store, bytes, sizeof bytes, offset), 0);
}

START_TEST(cowd_what_is_written_lies_before_free_sector)
{
    g_autoptr(Store) store = root_store(2);
    g_autoptr(Image) image = open_store(store, NULL, true, false);
    write_at(image, 4000 * SECTOR, 3 * SECTOR, 'x');
    ck_assert_uint_eq(word_at(store, UNCLEAN_OFFSET), 1);
    ck_assert_int_eq(image->format->flush(image), 0);
    ck_assert_uint_eq(word_at(store, FREE_SECTOR), GRAINS + 5);
    write_at(image, 5000 * SECTOR, SECTOR, 'y'); /* of the other table */
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(word_at(store, FREE_SECTOR), GRAINS + 5 + 32 + 1);
    ck_assert_uint_eq(word_at(store, DIRECTORY + 4), GRAINS + 5);
    ck_assert_uint_eq(word_at(store, UNCLEAN_OFFSET), 0);
    ck_assert_uint_eq(store_size(store), (GRAINS + 38) * SECTOR);
    g_autoptr(Image) again = open_store(store, NULL, false, false);
    ck_assert_uint_eq(byte_at(again, 0), 'a');
    ck_assert_uint_eq(byte_at(again, 4002 * SECTOR), 'x');
    ck_assert_uint_eq(byte_at(again, 4003 * SECTOR), 0);
    ck_assert_uint_eq(byte_at(again, 5000 * SECTOR), 'y');
    assert_clean(store);
}
END_TEST

/* The next grain of a program that goes by it would come to lie on one that is there. */
START_TEST(cowd_a_free_sector_before_what_is_used_is_mended)
{
    g_autoptr(Store) store = root_store(4);
    put_word(store, FREE_SECTOR, GRAINS + 3);
    ck_assert_uint_eq(check(store, CHECK_REPORT_ONLY).corruptions, 1);
    CheckResult mended = check(store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(mended.corruptions_fixed, 1);
    ck_assert_uint_eq(mended.corruptions, 0);
    ck_assert_uint_eq(word_at(store, FREE_SECTOR), GRAINS + 4);
    assert_clean(store);
}
END_TEST

START_TEST(cowd_two_grains_in_one_place_are_parted)
{
    g_autoptr(Store) store = root_store(3);
    put_word(store, TABLE + 4, GRAINS);
    ck_assert_uint_eq(check(store, CHECK_REPORT_ONLY).corruptions, 1);
    ck_assert_uint_eq(check(store, CHECK_REPAIR_ALL).corruptions_fixed, 1);
    ck_assert_uint_ge(word_at(store, FREE_SECTOR), word_at(store, TABLE + 4) + 1);
    ck_assert_uint_eq(check(store, CHECK_REPORT_ONLY).corruptions, 0);
    g_autoptr(Image) image = open_store(store, NULL, false, false);
    ck_assert_uint_eq(byte_at(image, SECTOR), 'a');
}
END_TEST

START_TEST(cowd_writers_refuse_what_lies_on_something_else)
{
    static const struct {
        uint64_t offset;
        uint32_t value;
        const char *words;
    } wrong[] = {
        {20, 1, "the header at 512 lies on something else"},     /* the directory */
        {24, 100000, "gdOffset is sector 4, with 400000 bytes"}, /* its length */
        {DIRECTORY, 3, "the grain table at 1536 lies on something else"},
        {DIRECTORY, 10, "the grain table at 5120 is not in the file"},
        {TABLE, 4, "the grain at 2048 lies on something else"},
        {TABLE, GRAINS + 2, "the grain at 19968 is not in the file"},
        {TABLE, GRAINS + 1, "the grain at 19456 lies on something else"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(Store) store = root_store(2);
        put_word(store, wrong[i].offset, wrong[i].value);
        ImageOpen how = {.format = &format_vmdk, .write = true};
        g_autoptr(GError) error = NULL;
        ck_assert_ptr_null(image_open_store(store, &how, NULL, &error));
        ck_assert_msg(strstr(error->message, wrong[i].words) != NULL, "'%s' is not in: %s",
                      wrong[i].words, error->message);
    }
}
END_TEST

static void make(ImageFiles *files, const char *grain_size, Image *backing)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, "subformat", "vmfsSparse");
    g_hash_table_insert(options, "grain_size", (char *)grain_size);
    FormatCreate how = {.size = SECTORS * SECTOR, .options = options, .backing = backing};
    how.backing_name = backing ? "base.vmdk" : NULL;
    how.backing_format = backing ? "vmdk" : NULL;
    g_autoptr(GError) error = NULL;
    bool made = image_files_create(files, "disk.vmdk", &format_vmdk, &how, &error);
    ck_assert_msg(made, "%s", made ? "" : error->message);
}

START_TEST(cowd_is_made_over_a_parent)
{
    static const char *const grains[] = {"512", "4k", "64k", "16M"};
    ImageFiles parent = {0};
    make(&parent, "512", NULL);
    ImageOpen how = {.format = &format_vmdk};
    g_autoptr(Image) below = image_files_open(&parent, &how, NULL, NULL);
    ck_assert_ptr_nonnull(below);
    for (unsigned i = 0; i < G_N_ELEMENTS(grains); i++) {
        ImageFiles files = {0};
        make(&files, grains[i], below);
        ck_assert_uint_eq(files.count, 2);
        ck_assert_str_eq(files.stores[1]->name, "disk-delta.vmdk");
        ck_assert_uint_eq(word_at(files.stores[1], 8), 2); /* no root */
        ck_assert_uint_eq(word_at(files.stores[1], FREE_SECTOR) * SECTOR,
                          store_size(files.stores[1]));
        how.write = true;
        g_autoptr(Image) image = image_files_open(&files, &how, below, NULL);
        ck_assert_ptr_nonnull(image);
        write_at(image, 0, image->size, 'z');
        ck_assert_int_eq(image_finish(image), 0);
        ck_assert_uint_eq(byte_at(image, image->size - 1), 'z');
        image_files_clear(&files);
    }
    image_files_clear(&parent);
}
END_TEST

/* What the header says of the directory is not taken for something that lies there. */
START_TEST(cowd_a_directory_that_leaves_the_file_is_said)
{
    ImageFiles files = {0};
    make(&files, "512", NULL);
    ck_assert_int_eq(store_write(files.stores[1], "\xff\xff\xff\xff", 4, 24), 0);
    ImageOpen how = {.format = &format_vmdk};
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = image_files_open(&files, &how, NULL, &error);
    ck_assert_msg(image, "%s", image ? "" : error->message);
    CheckResult result = {0};
    ck_assert(image->format->check(image, CHECK_REPORT_ONLY, &result, &error));
    ck_assert_uint_eq(result.corruptions, 1);
    ck_assert_uint_eq(result.image_end_offset, 5 * SECTOR);
    how.write = true;
    ck_assert_ptr_null(image_files_open(&files, &how, NULL, &error));
    ck_assert_msg(strstr(error->message, "gdOffset"), "%s", error->message);
    image_files_clear(&files);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vmdk_cowd");
    tcase_add_test(tcase, cowd_what_is_written_lies_before_free_sector);
    tcase_add_test(tcase, cowd_a_free_sector_before_what_is_used_is_mended);
    tcase_add_test(tcase, cowd_two_grains_in_one_place_are_parted);
    tcase_add_test(tcase, cowd_writers_refuse_what_lies_on_something_else);
    tcase_add_test(tcase, cowd_is_made_over_a_parent);
    tcase_add_test(tcase, cowd_a_directory_that_leaves_the_file_is_said);
    return suite_run("vmdk_cowd", tcase);
}
