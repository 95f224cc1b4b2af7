/* src/fastpath/attachment-name.c: names say whose a device is, and are safe to be used */
#include <string.h>

#include "fastpath/attachment.h"
#include "tests/unit/suite.h"

START_TEST(identifier_gives_the_path_back)
{
    const char *paths[] = {"/images/disk.qcow2", "/", "/a b/\xff\n/x:y", "/cownbd:/x"};
    for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++) {
        g_autofree char *identifier = attachment_identifier(paths[i]);
        ck_assert_str_eq(attachment_identified_path(identifier), paths[i]);
    }
    ck_assert_ptr_null(attachment_identified_path("/images/disk.qcow2"));
    ck_assert_ptr_null(attachment_identified_path("cownb"));
    ck_assert_ptr_null(attachment_identified_path(""));
}
END_TEST

START_TEST(uuid_fits_device_mapper_and_tells_paths_and_modes_apart)
{
    g_autofree char *a = attachment_uuid(ATTACH_LINEAR, "/images/a");
    g_autofree char *same = attachment_uuid(ATTACH_LINEAR, "/images/a");
    g_autofree char *b = attachment_uuid(ATTACH_LINEAR, "/images/b");
    g_autofree char *snapshot = attachment_uuid(ATTACH_SNAPSHOT, "/images/a");
    ck_assert(g_str_has_prefix(a, "COWNBD-linear-"));
    ck_assert_str_eq(a, same);
    ck_assert_str_ne(a, b);
    ck_assert_str_ne(a, snapshot);
    ck_assert_str_eq(strrchr(a, '-'), strrchr(snapshot, '-'));
    ck_assert_uint_lt(strlen(snapshot) + strlen("-origin"), 128);
}
END_TEST

START_TEST(default_name_is_safe)
{
    const struct {
        const char *path, *name;
    } rows[] = {
        {"/images/disk.qcow2", "disk.qcow2"},
        {"/images/a-b_c+d.raw", "a-b_c+d.raw"},
        {"/images/two words;rm *", "two_words_rm__"},
        {"/images/-x", "_x"},
        {"/images/.hidden", "_hidden"},
        {"/images/\xc3\xa4.img", "__.img"},
        {"/images/a\\x20b", "a_x20b"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        g_autofree char *name = attachment_safe_name(rows[i].path);
        ck_assert_str_eq(name, rows[i].name);
    }
    char path[400] = "/images/";
    memset(path + strlen(path), 'n', 300);
    g_autofree char *name = attachment_safe_name(path);
    ck_assert_uint_eq(strlen(name), 64);
}
END_TEST

START_TEST(modes_have_names)
{
    AttachMode mode = ATTACH_AUTO;
    for (unsigned i = ATTACH_AUTO; i <= ATTACH_SNAPSHOT; i++) {
        ck_assert(attachment_parse_mode(attachment_mode_name(i), &mode));
        ck_assert_uint_eq(mode, i);
    }
    ck_assert(!attachment_parse_mode("Linear", &mode));
    ck_assert(!attachment_parse_mode("", &mode));
    ck_assert_uint_eq(mode, ATTACH_SNAPSHOT);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("attachment_name");
    tcase_add_test(tcase, identifier_gives_the_path_back);
    tcase_add_test(tcase, uuid_fits_device_mapper_and_tells_paths_and_modes_apart);
    tcase_add_test(tcase, default_name_is_safe);
    tcase_add_test(tcase, modes_have_names);
    return suite_run("attachment_name", tcase);
}
