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

/* The name of the export that is found as name; "-" when there is none. */
static const char *found(ExportTable *table, const char *name, size_t length)
{
    g_autoptr(Export) export = export_table_get(table, name, length);
    return export != NULL ? export->name : "-";
}

START_TEST(export_empty_name_is_the_first)
{
    ExportTable *table = export_table_new();
    ck_assert_str_eq(found(table, "", 0), "-");
    ck_assert(add(table, "a", &node, false));
    ck_assert(add(table, "b", &node, false));
    ck_assert_str_eq(found(table, "", 0), "a");
    ck_assert_str_eq(found(table, "b", 1), "b");
    ck_assert(add(table, "", &node, false));
    ck_assert_str_eq(found(table, "", 0), "");
    export_table_free(table);
}
END_TEST

START_TEST(export_name_is_compared_whole)
{
    ExportTable *table = export_table_new();
    ck_assert(add(table, "disk", &node, false));
    ck_assert_str_eq(found(table, "dis", 3), "-");
    ck_assert_str_eq(found(table, "diskx", 5), "-");
    ck_assert_str_eq(found(table, "disk\0x", 6), "-");
    ck_assert_str_eq(found(table, "disk!", 4), "disk");
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
    ck_assert(export_table_add(table, "a", NULL, &node, false, NULL)->read_only);
    ck_assert(export_table_add(table, "b", NULL, &writable, true, NULL)->read_only);
    ck_assert(!export_table_add(table, "c", NULL, &writable, false, NULL)->read_only);
    export_table_free(table);
}
END_TEST

static void count_idle(void *context)
{
    ++*(unsigned *)context;
}

START_TEST(export_stays_until_the_last_pin_is_put)
{
    unsigned idle = 0;
    ExportTable *table = export_table_new();
    export_table_set_idle(table, count_idle, &idle);
    Export *export = export_table_add(table, "a", NULL, &node, false, NULL);
    ck_assert_ptr_eq(export_table_get(table, "a", 1), export);
    ck_assert_ptr_eq(export_get(export), export);
    export_put(export);
    ck_assert_uint_eq(export_users(export), 1);
    ck_assert(!export_table_remove_unused(table, export));
    export_table_remove(table, export);
    ck_assert_str_eq(found(table, "a", 1), "-");
    ck_assert_str_eq(export->name, "a");
    ck_assert(add(table, "a", &node, false)); /* the name is free again */
    ck_assert_uint_eq(idle, 0);
    export_put(export);
    ck_assert_uint_eq(idle, 1);
    export_free(export);
    export_table_free(table);
}
END_TEST

START_TEST(export_removed_without_pins_is_idle_at_once)
{
    unsigned idle = 0;
    ExportTable *table = export_table_new();
    export_table_set_idle(table, count_idle, &idle);
    Export *export = export_table_add(table, "a", NULL, &node, false, NULL);
    ck_assert_str_eq(found(table, "a", 1), "a");
    ck_assert_uint_eq(idle, 1);
    ck_assert(export_table_remove_unused(table, export));
    export_table_restore(table, export);
    ck_assert_str_eq(found(table, "a", 1), "a");
    ck_assert(export_table_remove_unused(table, export));
    export_free(export);
    export_table_free(table);
}
END_TEST

START_TEST(export_list_pins_all_in_order)
{
    ExportTable *table = export_table_new();
    ck_assert(add(table, "b", &node, false));
    Export *export = export_table_add(table, "a", NULL, &node, false, NULL);
    GPtrArray *all = export_table_get_all(table);
    ck_assert_uint_eq(all->len, 2);
    ck_assert_str_eq(((const Export *)g_ptr_array_index(all, 0))->name, "b");
    ck_assert_uint_eq(export_users(export), 1);
    g_ptr_array_unref(all);
    ck_assert_uint_eq(export_users(export), 0);
    export_table_free(table);
}
END_TEST

static uint32_t always_one(void *data, uint64_t offset, uint64_t length, uint64_t *run)
{
    *run = length;
    return 1;
}

START_TEST(export_contexts_are_named_once_and_bounded)
{
    ExportTable *table = export_table_new();
    g_autofree char *longest = g_strnfill(EXPORT_NAME_MAX + 1, ':');
    g_autoptr(GError) error = NULL;
    int first, second;
    Export *export = export_table_add(table, "a", NULL, &node, false, NULL);
    const char *const wrong[] = {"no-colon", "", longest, "x:\xff"};
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        ck_assert(!export_add_context(export, wrong[i], always_one, NULL, NULL));
    }
    ck_assert(export_add_context(export, "x:0", always_one, &first, NULL));
    ck_assert(export_add_context(export, "x:0", always_one, &second, NULL));
    ck_assert_uint_eq(export->context_count, 1);
    ck_assert_ptr_eq(export->contexts[0].data, &second);
    for (unsigned i = 1; i < EXPORT_CONTEXTS_MAX; i++) {
        g_autofree char *name = g_strdup_printf("x:%u", i);
        ck_assert(export_add_context(export, name, always_one, NULL, NULL));
    }
    ck_assert(!export_add_context(export, "x:more", always_one, NULL, &error));
    ck_assert_ptr_nonnull(strstr(error->message, "30"));
    ck_assert(export_add_context(export, "x:7", always_one, NULL, NULL));
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
    tcase_add_test(tcase, export_stays_until_the_last_pin_is_put);
    tcase_add_test(tcase, export_removed_without_pins_is_idle_at_once);
    tcase_add_test(tcase, export_list_pins_all_in_order);
    tcase_add_test(tcase, export_contexts_are_named_once_and_bounded);
    return suite_run("export", tcase);
}
