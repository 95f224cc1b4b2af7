/* formats/bochs.c: what is refused by which name, what lies outside the file */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "tests/unit/images.h"
#include "tests/unit/suite.h"

#define CATALOG 512u
#define ENTRIES 3u
#define EXTENT  4096u
#define SIZE    (CATALOG + ENTRIES * 4 + 512 + EXTENT)

/* Extent 1 of three is there, all of it. */
static void make_image(uint8_t *bytes)
{
    memset(bytes, 0, SIZE);
    strcpy((char *)bytes, "Bochs Virtual HD Image");
    strcpy((char *)bytes + 32, "Redolog");
    strcpy((char *)bytes + 48, "Growing");
    store_le32(bytes + 64, 0x20000);
    store_le32(bytes + 68, CATALOG);
    store_le32(bytes + 72, ENTRIES);
    store_le32(bytes + 76, 1);
    store_le32(bytes + 80, EXTENT);
    store_le64(bytes + 88, ENTRIES * EXTENT - 512);
    memset(bytes + CATALOG, 0xff, ENTRIES * 4);
    store_le32(bytes + CATALOG + 4, 0);
    memset(bytes + CATALOG + ENTRIES * 4, 0xff, 1);
    memset(bytes + CATALOG + ENTRIES * 4 + 512, 'x', EXTENT);
}

START_TEST(bochs_refuses_fields_by_name)
{
    static const ImageField wrong[] = {
        {0, 4, 0, "magic, type, subtype"},
        {32, 4, 0, "magic, type, subtype"},
        {48, 4, 0, "magic, type, subtype"},
        {64, 4, 0x30000, "version is 3.0"},
        {68, 4, 511, "header size is 511"},
        {68, 4, UINT32_MAX, "header size is 4294967295"},
        {72, 4, ENTRIES - 1, "catalog has 2 entries"},
        {72, 4, UINT32_MAX, "catalog has 4294967295 entries"},
        {76, 4, 0, "bitmap size is 0"},
        {76, 4, UINT32_MAX, "bitmap size is 4294967295"},
        {80, 4, 0, "extent size is 0"},
        {80, 4, 3 * 512, "extent size is 1536"},
        {80, 4, 1u << 31, "extent size is 2147483648"},
        {88, 8, 1000, "disk size is 1000"},
        {88, 8, UINT64_C(1) << 63, "disk size is 9223372036854775808"},
        {88, 8, ENTRIES * EXTENT + 512, "catalog has 3 entries"},
    };
    uint8_t bytes[SIZE];
    make_image(bytes);
    images_assert_fields_refused(&format_bochs, bytes, SIZE, images_put_le, wrong,
                                 G_N_ELEMENTS(wrong));
    images_assert_refused(&format_bochs, bytes, SIZE, true, "can only be read");
    images_assert_refused(&format_bochs, bytes, CATALOG + ENTRIES * 4 - 1, false,
                          "header size is 512");
}
END_TEST

START_TEST(bochs_extent_outside_the_file_is_an_error)
{
    static const uint32_t wrong[] = {1, UINT32_MAX - 1};
    uint8_t bytes[SIZE];
    make_image(bytes);
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        store_le32(bytes + CATALOG, wrong[i]);
        g_autoptr(Store) store = store_memory_new("test.bochs", bytes, SIZE);
        g_autoptr(Image) image = images_open(&format_bochs, store, NULL, false);
        ck_assert_int_eq(images_read_error(image, 0), -EIO);
        ck_assert_uint_eq(images_byte(image, EXTENT + 100), 'x');
        ck_assert_uint_eq(images_byte(image, 2 * EXTENT), 0);
    }
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("bochs");
    tcase_add_test(tcase, bochs_refuses_fields_by_name);
    tcase_add_test(tcase, bochs_extent_outside_the_file_is_an_error);
    return suite_run("bochs", tcase);
}
