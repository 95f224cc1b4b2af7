/* formats/raw.c, formats/formats.c and formats/option.c */
#include <string.h>

#include "base/errors.h"
#include "formats/format.h"
#include "formats/option.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

static Image *open_raw(Store *store, bool write)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.format = &format_raw, .write = write};
    Image *image = image_open_store(store, &how, NULL, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    return image;
}

START_TEST(raw_is_one_extent_writable_when_opened_so)
{
    g_autoptr(Store) store = store_memory_new("raw", NULL, 1 << 20);
    for (int write = 0; write < 2; write++) {
        g_autoptr(Image) image = open_raw(store, write);
        ExtentList list;
        extent_list_init(&list);
        ck_assert_int_eq(image_map(image, 1000, 5000, &list), 0);
        ck_assert_uint_eq(list.count, 1);
        ck_assert_uint_eq(list.items[0].type, EXTENT_DATA);
        ck_assert_uint_eq(list.items[0].host_offset, 1000);
        ck_assert_uint_eq(list.items[0].length, 5000);
        ck_assert_uint_eq(list.items[0].flags, EXTENT_SPARSE | (write ? EXTENT_WRITABLE : 0));
        extent_list_clear(&list);
    }
}
END_TEST

START_TEST(raw_unmap_reads_as_zeroes)
{
    uint8_t byte = 0x55;
    g_autoptr(Store) store = store_memory_new("raw", NULL, 1 << 20);
    ck_assert_int_eq(store_write(store, &byte, 1, 70000), 0);
    ck_assert_int_eq(store_write(store, &byte, 1, 200000), 0);
    g_autoptr(Image) image = open_raw(store, true);
    ck_assert_int_eq(format_raw.unmap(image, 65536, 65536, UNMAP_ZERO), 0);
    ck_assert_int_eq(chain_read(image, &byte, 1, 70000), 0);
    ck_assert_uint_eq(byte, 0);
    ck_assert_int_eq(chain_read(image, &byte, 1, 200000), 0);
    ck_assert_uint_eq(byte, 0x55);
    ck_assert_int_eq(format_raw.flush(image), 0);
    ck_assert(!format_raw.is_dirty(image));
}
END_TEST

START_TEST(raw_create_has_the_size_asked_for)
{
    static const uint64_t sizes[] = {0, 1, 511, 512, 1000000};
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(Store) store = store_memory_new("raw", NULL, 0);
        FormatCreate how = {.size = sizes[i]};
        ck_assert(format_raw.create(store, &how, NULL));
        ck_assert_uint_eq(store_size(store), sizes[i]);
    }
    g_autoptr(Store) store = store_memory_new("raw", NULL, 0);
    g_autoptr(GError) error = NULL;
    FormatCreate how = {.size = 1, .backing_name = "x", .backing_format = "raw"};
    ck_assert(!format_raw.create(store, &how, &error));
    ck_assert_int_eq(error->code, EINVAL);
}
END_TEST

START_TEST(formats_are_found_by_name_and_by_magic)
{
    uint8_t head[512] = "QFI\xfb\0\0\0\3";
    ck_assert_ptr_eq(format_find("raw"), &format_raw);
    ck_assert_ptr_eq(format_find("qcow2"), &format_qcow2);
    ck_assert_ptr_eq(format_find("vmdk"), &format_vmdk);
    ck_assert_ptr_eq(format_find("qcow"), &format_qcow);
    ck_assert_ptr_null(format_find("qcow3"));
    ck_assert_ptr_null(format_find(""));
    ck_assert_ptr_eq(format_probe(head, sizeof head, "x"), &format_qcow2);
    memset(head, 0, sizeof head);
    ck_assert_ptr_eq(format_probe(head, sizeof head, "x.qcow2"), &format_raw);
    ck_assert_ptr_eq(format_probe(head, 0, ""), &format_raw);
    g_autofree char *names = format_names();
    ck_assert_ptr_nonnull(strstr(names, "qcow2"));
    ck_assert_ptr_nonnull(strstr(names, ", "));
}
END_TEST

START_TEST(sizes_are_read_exactly)
{
    static const struct {
        const char *text;
        uint64_t value;
    } right[] = {
        {"0", 0},
        {"65536", 65536},
        {"64k", 65536},
        {"64K", 65536},
        {"10b", 10},
        {"1.5G", UINT64_C(3) << 29},
        {"0.5k", 512},
        {"2T", UINT64_C(2) << 40},
        {"1P", UINT64_C(1) << 50},
        {"7E", UINT64_C(7) << 60},
        {"9223372036854775807", INT64_MAX},
    };
    static const char *const wrong[] = {
        "",
        "k",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1kk",
        "1.5",
        "1.5b",
        "1x",
        "0x10",
        "8E",
        "9223372036854775808",
        "99999999999999999999",
        "1e3",
        ".5G",
    };
    uint64_t value = 77;
    for (unsigned i = 0; i < G_N_ELEMENTS(right); i++) {
        ck_assert_msg(option_parse_size(right[i].text, &value), "%s", right[i].text);
        ck_assert_uint_eq(value, right[i].value);
    }
    value = 77;
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        ck_assert_msg(!option_parse_size(wrong[i], &value), "%s", wrong[i]);
        ck_assert_uint_eq(value, 77);
    }
}
END_TEST

START_TEST(switches_and_numbers)
{
    bool on = false;
    uint64_t number = 0;
    ck_assert(option_parse_switch("on", &on) && on);
    ck_assert(option_parse_switch("off", &on) && !on);
    ck_assert(!option_parse_switch("ON", &on));
    ck_assert(!option_parse_switch("", &on));
    ck_assert(option_parse_number("64", 64, &number) && number == 64);
    ck_assert(!option_parse_number("65", 64, &number));
    ck_assert(!option_parse_number("6 ", 64, &number));
    ck_assert(!option_parse_number("", 64, &number));
    ck_assert_ptr_null(option_lookup(NULL, "x"));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("tcase");
    tcase_add_test(tcase, raw_is_one_extent_writable_when_opened_so);
    tcase_add_test(tcase, raw_unmap_reads_as_zeroes);
    tcase_add_test(tcase, raw_create_has_the_size_asked_for);
    tcase_add_test(tcase, formats_are_found_by_name_and_by_magic);
    tcase_add_test(tcase, sizes_are_read_exactly);
    tcase_add_test(tcase, switches_and_numbers);
    return suite_run("raw", tcase);
}
