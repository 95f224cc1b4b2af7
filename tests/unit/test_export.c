/* Exports: unique names, the default one, refused names. */
#include <string.h>

#include "control/export.h"
#include "tests/unit/suite.h"

static Node node = {.size = 512, .read_only = true};
static Node writable = {.size = 512};

static bool add(ExportTable *table, const char *name, Node *to, bool read_only)
{
    return export_table_add(table, name, NULL, to, read_only, NULL);
}

START_TEST(export_empty_name_is_the_first)
{
    ExportTable *table = export_table_new();
    ck_assert_ptr_null(export_table_find(table, "", 0));
    ck_assert(add(table, "a", &node, false));
    ck_assert(add(table, "b", &node, false));
    ck_assert_str_eq(export_table_find(table, "", 0)->name, "a");
    ck_assert_str_eq(export_table_find(table, "b", 1)->name, "b");
    ck_assert(add(table, "", &node, false));
    ck_assert_str_eq(export_table_find(table, "", 0)->name, "");
    ck_assert_uint_eq(export_table_count(table), 3);
    export_table_free(table);
}
END_TEST

START_TEST(export_name_is_compared_whole)
{
    ExportTable *table = export_table_new();
    ck_assert(add(table, "disk", &node, false));
    ck_assert_ptr_null(export_table_find(table, "dis", 3));
    ck_assert_ptr_null(export_table_find(table, "diskx", 5));
    ck_assert_ptr_null(export_table_find(table, "disk\0x", 6));
    ck_assert_ptr_nonnull(export_table_find(table, "disk!", 4));
    export_table_free(table);
}
END_TEST

START_TEST(export_bad_names_are_refused)
{
    ExportTable *table = export_table_new();
    g_autofree char *longest = g_strnfill(EXPORT_NAME_MAX, 'x');
    g_autofree char *longer = g_strnfill(EXPORT_NAME_MAX + 1, 'x');
    g_autoptr(GError) error = NULL;
    ck_assert(add(table, longest, &node, false));
    ck_assert(!add(table, longer, &node, false));
    ck_assert(!add(table, "\xff", &node, false));
    ck_assert(!export_table_add(table, longest, NULL, &node, false, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "twice"));
    ck_assert_ptr_null(strchr(error->message, '\n'));
    export_table_free(table);
}
END_TEST

START_TEST(export_is_read_only_when_its_node_is)
{
    ExportTable *table = export_table_new();
    ck_assert(add(table, "a", &node, false));
    ck_assert(add(table, "b", &writable, true));
    ck_assert(add(table, "c", &writable, false));
    ck_assert(export_table_get(table, 0)->read_only);
    ck_assert(export_table_get(table, 1)->read_only);
    ck_assert(!export_table_get(table, 2)->read_only);
    export_table_free(table);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("export");
    tcase_add_test(tcase, export_empty_name_is_the_first);
    tcase_add_test(tcase, export_name_is_compared_whole);
    tcase_add_test(tcase, export_bad_names_are_refused);
    tcase_add_test(tcase, export_is_read_only_when_its_node_is);
    return suite_run("export", tcase);
}
