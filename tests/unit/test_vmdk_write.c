/* formats/vmdk-*.c: writing, the CID, making, checking and mending */
#include "formats/vmdk-impl.h"
#include "tests/lib/image-files.h"
#include "tests/lib/store-scratch.h"
#include "tests/unit/vmdk-image.h"

/*
 * The image of these tests: 1 MiB in grains of 4 KiB, one table. In sectors:
 *
 *     0 header   1 descriptor (20)   21 copy of the directory   22 its table (4)   26 directory   27 its table (4)
 *     32 grains, 8 sectors each
 */
#define SIZE           (1u << 20)
#define GRAIN          4096u
#define COPY           (22 * SECTOR)
#define DIRECTORY      (26 * SECTOR)
#define TABLE          (27 * SECTOR)
#define GRAINS         32u
#define DESCRIPTOR     (1 * SECTOR)
#define REDUNDANT      48u /* rgdOffset */
#define UNCLEAN_OFFSET 72u

static void set_option(GHashTable *options, const char *name, const char *value)
{
    if (value) {
        g_hash_table_insert(options, (char *)name, (char *)value);
    }
}

static Store *new_store(const Image *backing, const char *zeroed_grain)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    set_option(options, "grain_size", "4k");
    set_option(options, "zeroed_grain", zeroed_grain);
    FormatCreate how = {.size = SIZE, .options = options, .backing = backing};
    if (backing) {
        how.backing_name = "base.vmdk";
        how.backing_format = "vmdk";
    }
    g_autoptr(GError) error = NULL;
    Store *store = store_memory_new("test.vmdk", NULL, 0);
    bool made = vmdk_create(store, &how, &error);
    ck_assert_msg(made, "%s", made ? "" : error->message);
    return store;
}

/* The bytes of an image with `count` grains, grain i filled with 'a' + i. */
static uint8_t *full_image(unsigned count, uint64_t *size)
{
    g_autoptr(Store) store = new_store(NULL, NULL);
    const uint8_t *empty = store_memory_content(store, size);
    uint64_t end = GRAINS * SECTOR + (uint64_t)count * GRAIN;
    uint8_t *bytes = g_malloc0(end);
    memcpy(bytes, empty, GRAINS * SECTOR);
    for (unsigned i = 0; i < count; i++) {
        store_le32(bytes + TABLE + 4 * i, GRAINS + 8 * i);
        store_le32(bytes + COPY + 4 * i, GRAINS + 8 * i);
        memset(bytes + (GRAINS + 8 * i) * SECTOR, 'a' + (int)i, GRAIN);
    }
    *size = end;
    return bytes;
}

static void write_grain(Image *image, unsigned grain, uint8_t value)
{
    write_at(image, grain * GRAIN, GRAIN, value);
}

START_TEST(vmdk_cid_changes_with_the_first_write)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(2, &size);
    g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
    g_autoptr(Image) image = open_store(store, NULL, true, false);
    uint32_t before = vmdk_cid(image);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_int_eq(memcmp(store_memory_content(store, &size), bytes, size), 0);

    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(image_map(image, 0, GRAIN, &list), 0);
    ck_assert(!(list.items[0].flags & EXTENT_WRITABLE));
    write_grain(image, 0, 'x');
    uint32_t after = vmdk_cid(image);
    ck_assert_uint_ne(after, before);
    extent_list_reset(&list);
    ck_assert_int_eq(image_map(image, GRAIN, GRAIN, &list), 0);
    ck_assert(list.items[0].flags & EXTENT_WRITABLE);
    extent_list_clear(&list);
    write_grain(image, 1, 'y');
    ck_assert_uint_eq(vmdk_cid(image), after);
    ck_assert_uint_eq(word_at(store, UNCLEAN_OFFSET) & 0xff, 1);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(word_at(store, UNCLEAN_OFFSET) & 0xff, 0);
    ck_assert_uint_eq(store_size(store), size);

    g_autoptr(Image) again = open_store(store, NULL, false, false);
    ck_assert_uint_eq(vmdk_cid(again), after);
    ck_assert_uint_eq(byte_at(again, 0), 'x');
    ck_assert_uint_eq(byte_at(again, GRAIN), 'y');
    assert_clean(store);
}
END_TEST

/* Wherever it lies, and however many digits it has, the text around it stays. */
START_TEST(vmdk_cid_is_changed_in_place)
{
    static const char *const cids[] = {"12345678", "1", "\"abc\"", "0000000012345678"};
    for (unsigned i = 0; i < G_N_ELEMENTS(cids); i++) {
        for (unsigned pad = 470; pad < 500; pad++) {
            uint64_t size;
            g_autofree uint8_t *bytes = full_image(1, &size);
            g_autofree char *blanks = g_strnfill(pad - 35, '#');
            char *text = (char *)bytes + DESCRIPTOR;
            memset(text, 0, 20 * SECTOR);
            g_snprintf(text, 20 * SECTOR,
                       "# Disk DescriptorFile\nversion=1\n%s\nCID = %s\nparentCID=ffffffff\n"
                       "createType=\"monolithicSparse\"\n",
                       blanks, cids[i]);
            g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
            g_autoptr(Image) image = open_store(store, NULL, true, false);
            uint32_t before = vmdk_cid(image);
            write_grain(image, 0, 'x');
            ck_assert_int_eq(image_finish(image), 0);
            g_autoptr(Image) again = open_store(store, NULL, false, false);
            ck_assert_uint_ne(vmdk_cid(again), before);
            ck_assert_uint_eq(vmdk_cid(again), vmdk_cid(image));
            const uint8_t *now = store_memory_content(store, &size);
            unsigned changed_sectors = 0;
            for (unsigned sector = 1; sector < 21; sector++) {
                changed_sectors +=
                    memcmp(now + sector * SECTOR, bytes + sector * SECTOR, SECTOR) != 0;
            }
            ck_assert_uint_eq(changed_sectors, 1);
        }
    }
}
END_TEST

START_TEST(vmdk_tables_and_copies_are_written_behind_the_data)
{
    g_autoptr(Store) store = new_store(NULL, NULL);
    g_autoptr(Image) image = open_store(store, NULL, true, false);
    write_grain(image, 3, 'd');
    ck_assert(image->format->is_dirty(image));
    ck_assert_uint_eq(word_at(store, TABLE + 12), 0);
    ck_assert_uint_eq(word_at(store, COPY + 12), 0);
    ck_assert_int_eq(image->format->flush(image), 0);
    ck_assert(!image->format->is_dirty(image));
    ck_assert_uint_eq(word_at(store, TABLE + 12), GRAINS);
    ck_assert_uint_eq(word_at(store, COPY + 12), GRAINS);
    ck_assert_int_eq(image_finish(image), 0);
    assert_clean(store);
}
END_TEST

START_TEST(vmdk_missing_tables_are_made)
{
    g_autoptr(Store) store = new_store(NULL, NULL);
    ck_assert_int_eq(store_write(store, "\0\0\0\0", 4, DIRECTORY), 0);
    ck_assert_int_eq(store_write(store, "\0\0\0\0", 4, 21 * SECTOR), 0);
    g_autoptr(Image) image = open_store(store, NULL, true, false);
    write_grain(image, 7, 'g');
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_ne(word_at(store, DIRECTORY), 0);
    ck_assert_uint_ne(word_at(store, 21 * SECTOR), 0);
    ck_assert_uint_eq(byte_at(image, 7 * GRAIN), 'g');
    ck_assert_uint_eq(byte_at(image, 6 * GRAIN), 0);
    ck_assert_uint_eq(check(store, CHECK_REPORT_ONLY).corruptions, 0);
}
END_TEST

START_TEST(vmdk_zero_grains_hide_the_parent)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(8, &size);
    g_autoptr(Store) base_store = store_memory_new("base.vmdk", bytes, size);
    g_autoptr(Image) base = open_store(base_store, NULL, false, false);
    g_autoptr(Store) plain_store = new_store(base, NULL);
    g_autoptr(Image) plain = open_store(plain_store, base, true, false);
    ck_assert_int_eq(vmdk_unmap(plain, 0, GRAIN, UNMAP_ZERO), -ENOTSUP);
    ck_assert_uint_eq(byte_at(plain, 0), 'a');
    ck_assert_int_eq(vmdk_unmap(plain, 0, GRAIN, UNMAP_BACKING), -ENOTSUP);

    g_autoptr(Store) store = new_store(base, "on");
    g_autoptr(Image) image = open_store(store, base, true, false);
    write_grain(image, 1, 'x');
    ck_assert_int_eq(vmdk_unmap(image, 0, 3 * GRAIN, UNMAP_ZERO), 0);
    for (unsigned i = 0; i < 3; i++) {
        ck_assert_uint_eq(byte_at(image, i * GRAIN), 0);
    }
    ck_assert_uint_eq(byte_at(image, 3 * GRAIN), 'd');
    write_grain(image, 2, 'y');
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(word_at(store, TABLE), 1);
    ck_assert_uint_eq(word_at(store, COPY), 1);
    ck_assert_uint_eq(byte_at(image, 2 * GRAIN), 'y');
}
END_TEST

START_TEST(vmdk_child_of_a_changed_parent_is_refused)
{
    g_autoptr(Store) base_store = new_store(NULL, NULL);
    g_autoptr(Image) base = open_store(base_store, NULL, true, false);
    g_autoptr(Store) store = new_store(base, NULL);
    image_unref(open_store(store, base, false, false));
    write_grain(base, 0, 'x');
    ImageOpen how = {.format = &format_vmdk};
    g_autoptr(GError) error = NULL;
    ck_assert_ptr_null(image_open_store(store, &how, base, &error));
    ck_assert(strstr(error->message, "parentCID is") != NULL);
}
END_TEST

/* What is done to an image of 4 grains, and what a check makes of it. */
typedef struct Damage {
    uint64_t offset;
    uint32_t value;
    const char *refusal;  /* of who wants to write; NULL: none */
    const char *contents; /* afterwards, of each grain; '.': zeroes */
} Damage;

static const Damage damages[] = {
    {TABLE, 100000, "grain at 51200000 is not in the file", "abcd"}, /* the copy knows */
    {TABLE, GRAINS + 8, "grain at 20480 lies on something", "abcd"},
    {TABLE, GRAINS + 4, "lies on something", "abcd"},
    {TABLE, 1, "grain at 512 lies on something", "abcd"},
    {TABLE, 0, NULL, "abcd"},
    {COPY, 0, NULL, "abcd"},
    {COPY, GRAINS + 8, NULL, "abcd"},
    {COPY, 100000, NULL, "abcd"},
    {DIRECTORY, 100000, "grain table at 51200000 is not in the file", "abcd"},
    {DIRECTORY, 22, "copy of a grain table at 11264 lies on something", "abcd"},
    {DIRECTORY, 0, NULL, "abcd"},
    {21 * SECTOR, 100000, "copy of a grain table at 51200000 is not in the file", "abcd"},
    {21 * SECTOR, 27, "copy of a grain table at 13824 lies on something", "abcd"},
    {21 * SECTOR, 0, NULL, "abcd"},
    {REDUNDANT, 100000, "rgdOffset is sector 100000", "abcd"},
};

static void assert_contents(Store *store, const char *contents)
{
    g_autoptr(Image) image = open_store(store, NULL, false, false);
    for (unsigned i = 0; contents[i]; i++) {
        ck_assert_msg(byte_at(image, i * GRAIN) == (contents[i] == '.' ? 0 : contents[i]),
                      "grain %u is not %c", i, contents[i]);
    }
}

START_TEST(vmdk_check_mends_what_it_can)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(damages); i++) {
        const Damage *damage = &damages[i];
        uint64_t size;
        g_autofree uint8_t *bytes = full_image(4, &size);
        store_le32(bytes + damage->offset, damage->value);
        g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
        ImageOpen how = {.format = &format_vmdk, .write = true};
        g_autoptr(GError) error = NULL;
        g_autoptr(Image) image = image_open_store(store, &how, NULL, &error);
        ck_assert_msg((image == NULL) == (damage->refusal != NULL), "damage %u: %s", i,
                      error ? error->message : "opens");
        ck_assert_msg(image || strstr(error->message, damage->refusal), "damage %u: %s", i,
                      image ? "" : error->message);
        ck_assert_msg(check(store, CHECK_REPORT_ONLY).corruptions > 0, "damage %u is not found", i);
        CheckResult mended = check(store, CHECK_REPAIR_ALL);
        ck_assert_msg(mended.corruptions == 0 && mended.corruptions_fixed > 0,
                      "damage %u is not mended", i);
        assert_contents(store, damage->contents);
        ck_assert_msg(check(store, CHECK_REPORT_ONLY).corruptions == 0, "damage %u is still there",
                      i);
    }
}
END_TEST

/* Table and copy say the same, so none of the two knows better. */
START_TEST(vmdk_grains_on_each_other_get_bytes_of_their_own)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(4, &size);
    store_le32(bytes + TABLE, GRAINS + 8);
    store_le32(bytes + COPY, GRAINS + 8);
    store_le32(bytes + TABLE + 8, 100000);
    store_le32(bytes + COPY + 8, 100000);
    g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
    CheckResult found = check(store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(found.corruptions, 2);
    CheckResult mended = check(store, CHECK_REPAIR_ALL);
    ck_assert_uint_eq(mended.corruptions, 0);
    assert_contents(store, "bb.d");
    g_autoptr(Image) image = open_store(store, NULL, true, false);
    write_grain(image, 0, 'x');
    ck_assert_int_eq(image_finish(image), 0);
    assert_contents(store, "xb.d");
}
END_TEST

/* After a cut, that is no damage. */
START_TEST(vmdk_differences_of_an_unclosed_extent_are_leaks)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(4, &size);
    bytes[UNCLEAN_OFFSET] = 1;
    store_le32(bytes + COPY + 4, 0);
    g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
    CheckResult found = check(store, CHECK_REPORT_ONLY);
    ck_assert_uint_eq(found.corruptions, 0);
    ck_assert_uint_eq(found.leaks, 1);
    CheckResult mended = check(store, CHECK_REPAIR_LEAKS);
    ck_assert_uint_eq(mended.leaks_fixed, 1);
    ck_assert_uint_eq(word_at(store, COPY + 4), GRAINS + 8);
    ck_assert_uint_eq(word_at(store, UNCLEAN_OFFSET) & 0xff, 0);
    assert_clean(store);

    g_autoptr(Store) other = store_memory_new("test.vmdk", bytes, size);
    g_autoptr(Image) image = open_store(other, NULL, true, false);
    write_grain(image, 0, 'x');
    ck_assert_int_eq(image_finish(image), 0);
    assert_clean(other);
    assert_contents(other, "xbcd");
}
END_TEST

START_TEST(vmdk_check_cuts_off_unused_space)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(4, &size);
    g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
    ck_assert_int_eq(store_truncate(store, size + 3 * GRAIN), 0);
    ck_assert_uint_eq(check(store, CHECK_REPORT_ONLY).leaks, 3);
    ck_assert_uint_eq(check(store, CHECK_REPAIR_LEAKS).leaks_fixed, 3);
    ck_assert_uint_eq(store_size(store), size);
    assert_clean(store);
}
END_TEST

START_TEST(vmdk_create_refuses_what_cannot_be)
{
    static const struct {
        const char *name, *value;
        uint64_t size;
        const char *words;
    } wrong[] = {
        {"subformat", "sparse", SIZE, "subformat is 'sparse'"},
        {"subformat", "monolithicFlat", SIZE, "needs files beside it"},
        {"adapter_type", "scsi", SIZE, "adapter_type is 'scsi'"},
        {"hwversion", "x", SIZE, "hwversion is 'x'"},
        {"toolsversion", "-1", SIZE, "toolsversion is '-1'"},
        {"compat6", "maybe", SIZE, "compat6 is 'maybe'"},
        {"zeroed_grain", "2", SIZE, "zeroed_grain is '2'"},
        {"grain_size", "1k", SIZE, "grain_size is '1k'"},
        {"grain_size", "5000", SIZE, "grain_size is '5000'"},
        {"grain_size", "32M", SIZE, "grain_size is '32M'"},
        {"extent_size", "3G", SIZE, "extent_size is '3G'"},
        {"extent_size", "100k", SIZE, "extent_size is '100k'"},
        {"compat6", "off", 0, "image size 0"},
        {"compat6", "off", UINT64_MAX, "must be from 1 to 62T"},
        {"subformat", "twoGbMaxExtentSparse", UINT64_C(9) << 40, "needs 4608 extents"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
        set_option(options, wrong[i].name, wrong[i].value);
        FormatCreate how = {.size = wrong[i].size, .options = options};
        g_autoptr(Store) store = store_memory_new("test.vmdk", NULL, 0);
        g_autoptr(GError) error = NULL;
        ck_assert_msg(!vmdk_create(store, &how, &error), "'%s' was not refused", wrong[i].words);
        ck_assert_msg(strstr(error->message, wrong[i].words), "'%s' is not in: %s", wrong[i].words,
                      error->message);
    }
}
END_TEST

/* ---- another size --------------------------------------------------------------------------- */

#define LARGE (UINT64_C(600) << 20) /* more tables than a sector of the directory has entries */

static void must_resize(Image *image, uint64_t size)
{
    g_autoptr(GError) error = NULL;
    bool done = image_resize(image, size, &error);
    ck_assert_msg(done, "%s", done ? "" : error->message);
    ck_assert_uint_eq(image->size, size);
}

START_TEST(vmdk_directory_moves_when_it_has_no_room)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    g_autoptr(Store) store = store_memory_new("test.vmdk", bytes, size);
    g_autoptr(Image) image = open_store(store, NULL, true, false);
    must_resize(image, LARGE);
    write_at(image, LARGE - GRAIN, GRAIN, 'z');
    ck_assert_int_eq(image_finish(image), 0);
    assert_clean(store);
    g_autoptr(Image) again = open_store(store, NULL, true, false);
    ck_assert_uint_eq(again->size, LARGE);
    ck_assert_uint_eq(byte_at(again, 2 * GRAIN), 'c');
    ck_assert_uint_eq(byte_at(again, LARGE - 1), 'z');
    must_resize(again, GRAIN + 512);
    must_resize(again, SIZE);
    ck_assert_int_eq(image_finish(again), 0);
    ck_assert_uint_eq(byte_at(again, GRAIN + 511), 'b');
    ck_assert_uint_eq(byte_at(again, GRAIN + 512), 0);
    ck_assert_uint_eq(byte_at(again, 2 * GRAIN), 0);
    ck_assert_uint_eq(check(store, CHECK_REPORT_ONLY).corruptions, 0);
}
END_TEST

/* The descriptor has more than a sector, so it goes by way of a copy. */
static Store *long_descriptor(void)
{
    uint64_t size;
    g_autofree uint8_t *bytes = full_image(3, &size);
    char *text = (char *)bytes + DESCRIPTOR;
    g_autofree char *start = g_strdup(text), *line = strstr(start, "\nRW ");
    g_autofree char *comment = g_strnfill(700, '#');
    ck_assert_ptr_nonnull(line);
    g_autofree char *rest = g_strdup(line);
    *line = '\0';
    line = NULL;
    g_snprintf(text, 20 * SECTOR, "%s\n%s%s%s", start, comment, rest, comment);
    return store_memory_new("test.vmdk", bytes, size);
}

/* With the k-th write failing, whichever: the old size or the new one, and a sound image. */
START_TEST(vmdk_resize_with_any_write_failing)
{
    bool failed = true;
    for (unsigned k = 0; failed; k++) {
        ck_assert_uint_lt(k, 1000);
        g_autoptr(Store) store = long_descriptor();
        g_autoptr(Image) image = open_store(store, NULL, true, false);
        g_autoptr(GError) error = NULL;
        store_memory_fail_writes(store, k, 1);
        failed = !image_resize(image, LARGE, &error);
        store_memory_fail_writes(store, 0, 0);
        g_autoptr(Image) again = open_store(store, NULL, false, false);
        ck_assert_uint_eq(again->size, failed ? SIZE : LARGE);
        for (unsigned i = 0; i < 3; i++) {
            ck_assert_uint_eq(byte_at(again, i * GRAIN), 'a' + i);
        }
        ck_assert_uint_eq(check(store, CHECK_REPORT_ONLY).corruptions, 0);
    }
}
END_TEST

/* ---- files of a split disk ------------------------------------------------------------------ */

START_TEST(vmdk_files_that_were_not_written_are_not_synced)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    set_option(options, "grain_size", "4k");
    set_option(options, "subformat", "twoGbMaxExtentSparse");
    set_option(options, "extent_size", "64k");
    FormatCreate how = {.size = 192 << 10, .options = options};
    ImageFiles made = {0}, files = {0};
    g_autoptr(GError) error = NULL;
    ck_assert(image_files_create(&made, "disk.vmdk", &format_vmdk, &how, &error));
    for (unsigned i = 0; i < made.count; i++) {
        uint64_t size;
        const uint8_t *bytes = scratch_content(made.stores[i], &size);
        image_files_add(&files, store_memory_new(made.stores[i]->name, bytes, size));
    }
    image_files_clear(&made);
    ImageOpen open = {.format = &format_vmdk, .write = true};
    g_autoptr(Image) image = image_files_open(&files, &open, NULL, &error);
    ck_assert_ptr_nonnull(image);
    for (unsigned i = 0; i < 3; i++) {
        write_at(image, i << 16, 64 << 10, 'a');
    }
    ck_assert_int_eq(image->format->flush(image), 0);
    for (unsigned written = 1; written < files.count; written++) {
        uint64_t before[IMAGE_FILES_MAX];
        for (unsigned i = 0; i < files.count; i++) {
            before[i] = store_memory_syncs(files.stores[i]);
        }
        ck_assert_int_eq(store_write(files.stores[written], "x", 1, 65536), 0);
        ck_assert_int_eq(image->format->flush(image), 0);
        for (unsigned i = 0; i < files.count; i++) {
            ck_assert_uint_eq(store_memory_syncs(files.stores[i]), before[i] + (i == written));
        }
    }
    uint64_t before = store_memory_syncs(files.stores[1]);
    store_share(files.stores[1]); /* the kernel may have written to it */
    ck_assert_int_eq(image_sync(image), 0);
    ck_assert_uint_eq(store_memory_syncs(files.stores[1]), before + 1);
    ck_assert_int_eq(image_finish(image), 0);
    image_files_clear(&files);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vmdk_write");
    tcase_add_test(tcase, vmdk_cid_changes_with_the_first_write);
    tcase_add_test(tcase, vmdk_cid_is_changed_in_place);
    tcase_add_test(tcase, vmdk_tables_and_copies_are_written_behind_the_data);
    tcase_add_test(tcase, vmdk_missing_tables_are_made);
    tcase_add_test(tcase, vmdk_zero_grains_hide_the_parent);
    tcase_add_test(tcase, vmdk_child_of_a_changed_parent_is_refused);
    tcase_add_test(tcase, vmdk_check_mends_what_it_can);
    tcase_add_test(tcase, vmdk_grains_on_each_other_get_bytes_of_their_own);
    tcase_add_test(tcase, vmdk_differences_of_an_unclosed_extent_are_leaks);
    tcase_add_test(tcase, vmdk_check_cuts_off_unused_space);
    tcase_add_test(tcase, vmdk_create_refuses_what_cannot_be);
    tcase_add_test(tcase, vmdk_directory_moves_when_it_has_no_room);
    tcase_add_test(tcase, vmdk_resize_with_any_write_failing);
    tcase_add_test(tcase, vmdk_files_that_were_not_written_are_not_synced);
    return suite_run("vmdk_write", tcase);
}
