/* formats/vhdx-log.c, -flush.c, -write.c, -unmap.c: what the log does, where space comes from and goes */
#include <errno.h>

#include "tests/unit/vhdx-image.h"

/* ---- the log ---- */

/* An image whose writer was cut off after a flush; its table in place is as it was before. */
static Store *cut_off_store(void)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, true);
    write_block(image, 2, 'x');
    ck_assert(vhdx_is_dirty(image));
    ck_assert_uint_eq(images_le64(store, TABLE + 16), 0);
    ck_assert_int_eq(vhdx_flush(image), 0);
    ck_assert(!vhdx_is_dirty(image));
    ck_assert_uint_eq(images_le64(store, TABLE + 16), DATA | VHDX_PRESENT);
    Store *copy = copy_of(store);
    set_entry(copy, 2, 0);
    return copy;
}

START_TEST(vhdx_log_is_done_again)
{
    g_autoptr(Store) store = cut_off_store();
    g_autoptr(Image) reader = images_open(&format_vhdx, store, NULL, false);
    ck_assert(format_vhdx.dirty_flag(reader));
    ck_assert_uint_eq(images_byte(reader, 2 * BLOCK), 'x');
    ck_assert_uint_eq(images_le64(store, TABLE + 16), 0);
    g_autoptr(Image) writer = images_open(&format_vhdx, store, NULL, true);
    ck_assert_uint_eq(images_le64(store, TABLE + 16), DATA | VHDX_PRESENT);
    ck_assert_uint_eq(images_byte(writer, 2 * BLOCK), 'x');
    g_autoptr(Image) next = images_open(&format_vhdx, store, NULL, false);
    ck_assert(!format_vhdx.dirty_flag(next));
}
END_TEST

/* The header in force, from the file. */
static VhdxHeader header_of(Store *store)
{
    g_autoptr(Image) reader = images_open(&format_vhdx, store, NULL, false);
    return vhdx_state(reader)->header;
}

/* Whether the file's GUID and that of what a guest sees are the same in both. */
static unsigned same_guids(const VhdxHeader *a, const VhdxHeader *b)
{
    return (memcmp(a->file_guid, b->file_guid, VHDX_GUID_SIZE) == 0) |
           (memcmp(a->data_guid, b->data_guid, VHDX_GUID_SIZE) == 0) << 1;
}

START_TEST(vhdx_guids_change_when_it_is_opened_for_writing)
{
    g_autoptr(Store) store = new_store(NULL);
    VhdxHeader made = header_of(store);
    VhdxHeader read = header_of(store);
    ck_assert_uint_eq(same_guids(&made, &read), 3);
    g_autoptr(Image) writer = images_open(&format_vhdx, store, NULL, true);
    VhdxHeader opened = header_of(store); /* before a byte of the guest is written */
    ck_assert_uint_eq(same_guids(&made, &opened), 0);
    write_block(writer, 0, 'x');
    ck_assert_int_eq(image_finish(writer), 0);
    VhdxHeader written = header_of(store);
    ck_assert_uint_eq(same_guids(&opened, &written), 3);
    images_check(&format_vhdx, store, CHECK_REPAIR_ALL); /* the guest sees what it saw */
    VhdxHeader mended = header_of(store);
    ck_assert_uint_eq(same_guids(&written, &mended), 2);
}
END_TEST

START_TEST(vhdx_orderly_end_empties_the_log)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, true);
    write_block(image, 0, 'x');
    ck_assert_int_eq(image_finish(image), 0);
    set_entry(store, 0, 0);
    g_autoptr(Image) next = images_open(&format_vhdx, store, NULL, false);
    ck_assert_uint_eq(images_byte(next, 0), 0);
    ck_assert_uint_eq(store_size(store), DATA + BLOCK);
}
END_TEST

/* No byte of an entry may change: then it is none, and a header that says that there is one is wrong. */
START_TEST(vhdx_damaged_log_is_refused)
{
    static const uint64_t offsets[] = {0,  4,  8,  12,   16,   24,   32,  48,
                                       64, 80, 88, 4096, 4100, 5000, 8188};
    g_autoptr(Store) good = cut_off_store();
    for (unsigned i = 0; i < G_N_ELEMENTS(offsets); i++) {
        g_autoptr(Store) store = copy_of(good);
        put_number(store, LOG + offsets[i], ~images_le64(store, LOG + offsets[i]), 4);
        images_assert_store_refused(&format_vhdx, store, i % 2, "the log is damaged");
    }
    ck_assert_int_eq(store_truncate(good, DATA), 0);
    images_assert_store_refused(&format_vhdx, good, false,
                                "image is truncated: the log knows 5242880 bytes");
}
END_TEST

/* An entry that is whole and says what cannot be. */
START_TEST(vhdx_log_entry_that_cannot_be_is_refused)
{
    static const struct {
        unsigned offset, size;
        uint64_t value;
        const char *words;
    } wrong[] = {
        {VHDX_L_LENGTH, 4, 0, "the log is damaged"},
        {VHDX_L_LENGTH, 4, UINT32_MAX - 4095, "the log is damaged"},
        {VHDX_L_TAIL, 4, 4096, "the log is damaged"},
        {VHDX_L_TAIL, 4, UINT32_MAX, "the log is damaged"},
        {VHDX_L_SEQUENCE, 8, 0, "the log is damaged"},
        {VHDX_L_DESCRIPTORS, 4, UINT32_MAX, "the log is damaged"},
        {VHDX_L_DESCRIPTORS, 4, 2, "the log is damaged"},
        {VHDX_L_GUID, 8, 0, "the log is damaged"},
        {VHDX_L_LAST, 8, UINT64_MAX, "size of the file in the log is"},
        {64, 4, 0x6f72657a, "the log is damaged"}, /* zeroes: a page is left over */
        {64 + 16, 8, 4, "the log is damaged"},     /* not at a page */
        {64 + 16, 8, 64 * VHDX_KIB, "the log changes what is at 65536"},
        {64 + 16, 8, UINT64_MAX - 4095, "the log changes what is at"},
        {64 + 16, 8, DATA, "the log changes bytes at 4194304, which are the guest's"},
    };
    g_autoptr(Store) good = cut_off_store();
    set_entry(good, 2, DATA | VHDX_PRESENT);
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autoptr(Store) store = copy_of(good);
        uint8_t entry[2 * VHDX_PAGE];
        put_number(store, LOG + wrong[i].offset, wrong[i].value, wrong[i].size);
        ck_assert_int_eq(store_read(store, entry, sizeof entry, LOG), 0);
        put_number(store, LOG + 4, vhdx_checksum(entry, sizeof entry), 4);
        images_assert_store_refused(&format_vhdx, store, false, wrong[i].words);
    }
}
END_TEST

/* Two pages of the table change with each flush, so that entries of three pages go round the ring of
 * 256 and one of them goes over its end; a cut after any of them loses nothing. */
START_TEST(vhdx_log_goes_round)
{
    enum { FAR = 512, FLUSHES = 100 };
    g_autoptr(Store) store = new_store_of((FAR + 1) * BLOCK, "512", NULL);
    g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, true);
    for (unsigned i = 0; i < FLUSHES; i++) {
        uint64_t near_entry = TABLE, far_entry = TABLE + FAR * 8;
        if (i % 2 == 0) {
            write_range(image, 0, BLOCK, 'a');
            write_range(image, FAR * BLOCK, BLOCK, 'b');
        } else {
            ck_assert_int_eq(vhdx_unmap(image, 0, BLOCK, 0), 0);
            ck_assert_int_eq(vhdx_unmap(image, FAR * BLOCK, BLOCK, UNMAP_ZERO), 0);
        }
        ck_assert_int_eq(vhdx_flush(image), 0);
        g_autoptr(Store) cut = copy_of(store);
        uint64_t near_value = images_le64(cut, near_entry), far_value = images_le64(cut, far_entry);
        put_number(cut, near_entry, VHDX_UNMAPPED, 8);
        put_number(cut, far_entry, VHDX_UNMAPPED, 8);
        image_unref(images_open(&format_vhdx, cut, NULL, true));
        ck_assert_uint_eq(images_le64(cut, near_entry), near_value);
        ck_assert_uint_eq(images_le64(cut, far_entry), far_value);
    }
}
END_TEST

/* A flush wrote one of two pages of the table in place, and failed at the other. The next one put an entry into the log
 * that did not have both of them: cut off then, the image showed a block without its sector bits. */
START_TEST(vhdx_torn_group_is_done_again)
{
    enum {
        IN_PLACE = 5,
        LAST = 20
    }; /* writes of a first flush before the second page of the table */
    g_autoptr(Store) base_store = new_store(NULL);
    g_autoptr(Image) base = images_open(&format_vhdx, base_store, NULL, false);
    for (unsigned writes = 0; writes < LAST; writes++) {
        g_autoptr(Store) store = new_store(base);
        g_autoptr(Image) image = images_open(&format_vhdx, store, base, true);
        write_range(image, 0, UNIT, 'a');
        store_memory_fail_writes(store, IN_PLACE, 1);
        ck_assert_int_eq(vhdx_flush(image), -EIO);
        ck_assert_uint_ne(images_le64(store, TABLE), 0);
        ck_assert_uint_eq(images_le64(store, TABLE + 4096 * 8), 0);
        store_memory_fail_writes(store, 0, 0);
        write_range(image, UNIT, UNIT, 'b');
        store_memory_fail_writes(store, writes, UINT64_MAX);
        ck_assert(vhdx_flush(image) == 0 || writes < LAST / 2);
        g_autoptr(Store) cut = copy_of(store);
        g_autoptr(Image) next = images_open(&format_vhdx, cut, base, false);
        ck_assert_uint_eq(images_byte(next, 0), 'a');
    }
}
END_TEST

/* Zeroes take no page of the log. */
START_TEST(vhdx_log_of_zeroes_is_done_again)
{
    g_autoptr(Store) store = cut_off_store();
    uint8_t entry[VHDX_PAGE];
    put_number(store, LOG + VHDX_L_LENGTH, VHDX_PAGE, 4);
    put_number(store, LOG + 64, 0x6f72657a, 4);
    put_number(store, LOG + 64 + 8, 2 * VHDX_PAGE, 8);
    ck_assert_int_eq(store_read(store, entry, sizeof entry, LOG), 0);
    put_number(store, LOG + 4, vhdx_checksum(entry, sizeof entry), 4);
    set_entry(store, 2, DATA | VHDX_PRESENT);
    set_entry(store, 512, 5);
    g_autoptr(Image) reader = images_open(&format_vhdx, store, NULL, false);
    ck_assert_uint_eq(images_byte(reader, 2 * BLOCK), 0);
    image_unref(images_open(&format_vhdx, store, NULL, true));
    ck_assert_uint_eq(images_le64(store, TABLE + 16), 0);
    ck_assert_uint_eq(images_le64(store, TABLE + 4096), 0);
}
END_TEST

/* ---- writing ---- */

START_TEST(vhdx_freed_space_is_used_after_the_flush)
{
    g_autoptr(Store) store = new_store(NULL);
    g_autoptr(Image) image = images_open(&format_vhdx, store, NULL, true);
    write_block(image, 0, 'a');
    write_block(image, 1, 'b');
    ck_assert_int_eq(vhdx_flush(image), 0);
    ck_assert_int_eq(vhdx_unmap(image, 0, BLOCK, 0), 0);
    ck_assert_uint_eq(images_byte(image, 0), 0);
    Allocation a, *list = &a;
    allocate(image, &a, 2 * BLOCK, BLOCK);
    ck_assert_uint_eq(a.extents.items[0].host_offset, DATA + 2 * BLOCK);
    vhdx_abandon(image, &list, 1);
    ck_assert_int_eq(vhdx_flush(image), 0);
    allocate(image, &a, 3 * BLOCK, BLOCK);
    ck_assert_uint_eq(a.extents.items[0].host_offset, DATA);
    ck_assert_int_eq(a.extents.items[0].flags, EXTENT_NEW | EXTENT_FRESH);
    ck_assert_int_eq(vhdx_commit(image, &list, 1), 0);
    extent_list_clear(&a.extents);
    ck_assert_uint_eq(images_byte(image, 3 * BLOCK), 0);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(store_size(store), DATA + 2 * BLOCK);
}
END_TEST

START_TEST(vhdx_abandoned_space_reads_as_zeroes)
{
    g_autoptr(Store) base_store = new_store(NULL);
    g_autoptr(Image) base = images_open(&format_vhdx, base_store, NULL, false);
    g_autoptr(Store) store = new_store(base);
    g_autoptr(Image) image = images_open(&format_vhdx, store, base, true);
    ck_assert_int_eq(vhdx_unmap(image, 0, BLOCK, UNMAP_ZERO), 0);
    Allocation a, *list = &a;
    allocate(image, &a, UNIT, UNIT);
    fill(image, &a, 'r');
    vhdx_abandon(image, &list, 1);
    write_range(image, 0, UNIT, 'w');
    ck_assert_uint_eq(images_byte(image, 0), 'w');
    ck_assert_uint_eq(images_byte(image, UNIT), 0);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(vhdx_entry_state(images_le64(store, TABLE)), VHDX_PRESENT);
    extent_list_clear(&a.extents);
}
END_TEST

/* Sector bits of a block that the table does not show say nothing, whatever they are. */
static void stale_bits(const char *sector_size, unsigned chunk_ratio)
{
    g_autoptr(Store) base_store = new_store_of(SIZE / 4096 * 4096, sector_size, NULL);
    g_autoptr(Image) writer = images_open(&format_vhdx, base_store, NULL, true);
    write_block(writer, 0, 'p');
    ck_assert_int_eq(image_finish(writer), 0);
    g_autoptr(Image) base = images_open(&format_vhdx, base_store, NULL, false);
    g_autoptr(Store) store = new_store_of(base->size, sector_size, base);
    ck_assert_int_eq(store_truncate(store, DATA + BLOCK), 0);
    put_number(store, TABLE + chunk_ratio * UINT64_C(8), DATA | VHDX_PRESENT, 8);
    for (unsigned i = 0; i < 256; i += 8) {
        put_number(store, DATA + i, UINT64_MAX, 8);
    }
    g_autoptr(Image) image = images_open(&format_vhdx, store, base, true);
    ck_assert_uint_eq(images_byte(image, 0), 'p');
    write_range(image, 2 * UNIT, UNIT, 'c');
    ck_assert_uint_eq(images_byte(image, 2 * UNIT - 1), 'p');
    ck_assert_uint_eq(images_byte(image, 2 * UNIT), 'c');
    ck_assert_uint_eq(images_byte(image, 3 * UNIT - 1), 'c');
    ck_assert_uint_eq(images_byte(image, 3 * UNIT), 'p');
    ck_assert_int_eq(image_finish(image), 0);
}

START_TEST(vhdx_stale_sector_bits_are_cleared)
{
    stale_bits("512", 4096);
    stale_bits("4096", 32768);
}
END_TEST

START_TEST(vhdx_discard_over_a_parent_hides_it)
{
    g_autoptr(Store) base_store = new_store(NULL);
    g_autoptr(Image) writer = images_open(&format_vhdx, base_store, NULL, true);
    write_block(writer, 0, 'a');
    write_block(writer, 1, 'b');
    ck_assert_int_eq(image_finish(writer), 0);
    g_autoptr(Image) base = images_open(&format_vhdx, base_store, NULL, false);
    g_autoptr(Store) store = new_store(base);
    g_autoptr(Image) image = images_open(&format_vhdx, store, base, true);
    ck_assert_int_eq(vhdx_unmap(image, 0, BLOCK, 0), 0);
    ck_assert_uint_eq(images_byte(image, 0), 0);
    ck_assert_int_eq(vhdx_unmap(image, BLOCK, UNIT, UNMAP_ZERO), -ENOTSUP);
    ck_assert_int_eq(vhdx_unmap(image, BLOCK, UNIT, 0), 0);
    ck_assert_uint_eq(images_byte(image, BLOCK), 'b');
    write_range(image, BLOCK, 2 * UNIT, 'n');
    ck_assert_int_eq(vhdx_unmap(image, BLOCK, UNIT, UNMAP_ZERO), 0);
    ck_assert_uint_eq(images_byte(image, BLOCK), 0);
    ck_assert_uint_eq(images_byte(image, BLOCK + UNIT), 'n');
    ck_assert_uint_eq(images_byte(image, BLOCK + 2 * UNIT), 'b');
    ck_assert_int_eq(vhdx_unmap(image, BLOCK, BLOCK, UNMAP_ZERO), 0);
    ck_assert_uint_eq(images_byte(image, BLOCK + UNIT), 0);
    ck_assert_int_eq(image_finish(image), 0);
    ck_assert_uint_eq(images_le64(store, TABLE), VHDX_ZERO);
    ck_assert_uint_eq(images_le64(store, TABLE + 8), VHDX_ZERO);
}
END_TEST

START_TEST(vhdx_child_refuses_a_parent_that_was_written)
{
    g_autoptr(Store) base_store = new_store(NULL);
    g_autoptr(Image) base = images_open(&format_vhdx, base_store, NULL, false);
    g_autoptr(Store) store = new_store(base);
    g_autoptr(Store) other_store = new_store(NULL);
    g_autoptr(Image) other = images_open(&format_vhdx, other_store, NULL, false);
    g_autoptr(GError) error = NULL;
    image_unref(images_open(&format_vhdx, store, base, false));
    ck_assert_ptr_null(images_try(&format_vhdx, store, other, false, false, &error));
    ck_assert(strstr(error->message, "parent_linkage is {") != NULL);
    g_clear_error(&error);
    image_unref(images_open(&format_vhdx, base_store, NULL, true));
    g_autoptr(Image) written = images_open(&format_vhdx, base_store, NULL, false);
    ck_assert_ptr_null(images_try(&format_vhdx, store, written, false, false, &error));
    ck_assert(strstr(error->message, "or was changed") != NULL);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("vhdx_write");
    tcase_set_timeout(tcase, 0);
    tcase_add_test(tcase, vhdx_log_is_done_again);
    tcase_add_test(tcase, vhdx_guids_change_when_it_is_opened_for_writing);
    tcase_add_test(tcase, vhdx_orderly_end_empties_the_log);
    tcase_add_test(tcase, vhdx_damaged_log_is_refused);
    tcase_add_test(tcase, vhdx_log_entry_that_cannot_be_is_refused);
    tcase_add_test(tcase, vhdx_log_goes_round);
    tcase_add_test(tcase, vhdx_torn_group_is_done_again);
    tcase_add_test(tcase, vhdx_log_of_zeroes_is_done_again);
    tcase_add_test(tcase, vhdx_freed_space_is_used_after_the_flush);
    tcase_add_test(tcase, vhdx_abandoned_space_reads_as_zeroes);
    tcase_add_test(tcase, vhdx_stale_sector_bits_are_cleared);
    tcase_add_test(tcase, vhdx_discard_over_a_parent_hides_it);
    tcase_add_test(tcase, vhdx_child_refuses_a_parent_that_was_written);
    return suite_run("vhdx_write", tcase);
}
