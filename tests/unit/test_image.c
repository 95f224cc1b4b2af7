/* src/map/image.c */
#include <glib/gstdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "tests/lib/format-letters.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define UNIT ((uint64_t)LETTERS_UNIT)

static char *folder;

static void folder_make(void)
{
    folder = g_dir_make_tmp("cownbd-image-XXXXXX", NULL);
    ck_assert_ptr_nonnull(folder);
}

static void folder_remove(void)
{
    g_autoptr(GDir) names = g_dir_open(folder, 0, NULL);
    for (const char *name = g_dir_read_name(names); name; name = g_dir_read_name(names)) {
        g_autofree char *path = g_build_filename(folder, name, NULL);
        g_unlink(path);
    }
    g_rmdir(folder);
    g_clear_pointer(&folder, g_free);
}

static char *path_of(const char *name)
{
    return g_build_filename(folder, name, NULL);
}

/* A vmdk descriptor of one ZERO extent: the smallest image with a name for its parent. */
static void write_image(const char *name, unsigned cid, unsigned parent_cid, const char *parent)
{
    g_autofree char *path = path_of(name);
    g_autofree char *hint =
        parent ? g_strdup_printf("parentFileNameHint=\"%s\"\n", parent) : g_strdup("");
    g_autofree char *text = g_strdup_printf("# Disk DescriptorFile\nversion=1\nCID=%08x\n"
                                            "parentCID=%08x\ncreateType=\"custom\"\n%s"
                                            "RW 8 ZERO\n",
                                            cid, parent_cid, hint);
    ck_assert(g_file_set_contents(path, text, -1, NULL));
}

static Image *open_top(const char *name, const ImageOpen *how, GError **error)
{
    g_autofree char *path = path_of(name);
    return image_open(path, how, error);
}

static void assert_refused(const char *name, int code, const char *const *words)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {0};
    g_autoptr(Image) image = open_top(name, &how, &error);
    ck_assert_ptr_null(image);
    ck_assert_msg(error->code == code, "code %d: %s", error->code, error->message);
    for (; *words; words++) {
        ck_assert_msg(strstr(error->message, *words) != NULL, "'%s' is not in: %s", *words,
                      error->message);
    }
    ck_assert_msg(!strchr(error->message, '\n'), "more than one line: %s", error->message);
}
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

START_TEST(image_opens_a_chain_by_the_names_in_it)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {0};
    write_image("a.vmdk", 1, 2, "b.vmdk");
    write_image("b.vmdk", 2, 3, "c.vmdk");
    write_image("c.vmdk", 3, -1, NULL);
    g_autoptr(Image) top = open_top("a.vmdk", &how, &error);
    ck_assert_msg(top != NULL, "%s", top ? "" : error->message);
    ck_assert_str_eq(top->format->name, "vmdk");
    ck_assert(top->format_guessed);
    g_autofree char *b = path_of("b.vmdk"), *c = path_of("c.vmdk");
    ck_assert_str_eq(top->backing->path, b);
    ck_assert_str_eq(top->backing_path, b);
    ck_assert_str_eq(top->backing->backing->path, c);
    ck_assert_ptr_null(top->backing->backing->backing);
    ck_assert_ptr_null(top->allow_paths);
}
END_TEST

START_TEST(image_leaves_the_backing_closed_when_asked)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.no_backing = true};
    write_image("a.vmdk", 1, 2, "nowhere.vmdk");
    g_autoptr(Image) top = open_top("a.vmdk", &how, &error);
    ck_assert_msg(top != NULL, "%s", top ? "" : error->message);
    ck_assert_ptr_null(top->backing);
    ck_assert_str_eq(top->backing_name, "nowhere.vmdk");
}
END_TEST

START_TEST(image_names_the_missing_backing_and_who_wants_it)
{
    write_image("a.vmdk", 1, 2, "b.vmdk");
    write_image("b.vmdk", 2, 3, "sub/c.vmdk");
    g_autofree char *b = path_of("b.vmdk"), *c = path_of("sub/c.vmdk");
    assert_refused("a.vmdk", ENOENT, WORDS("backing file", b, "'sub/c.vmdk'", c, "No such file"));
}
END_TEST

START_TEST(image_refuses_a_loop_and_shows_it)
{
    g_autofree char *a = path_of("a.vmdk"), *b = path_of("b.vmdk"), *c = path_of("c.vmdk");
    write_image("a.vmdk", 1, 2, "b.vmdk");
    write_image("b.vmdk", 2, 3, "c.vmdk");
    write_image("c.vmdk", 3, 2, "b.vmdk");
    g_autofree char *loop = g_strdup_printf("backing file loop: %s -> %s -> %s", b, c, b);
    assert_refused("a.vmdk", ELOOP, WORDS(loop));
    write_image("a.vmdk", 1, 1, "a.vmdk");
    g_autofree char *self = g_strdup_printf("backing file loop: %s -> %s", a, a);
    assert_refused("a.vmdk", ELOOP, WORDS(self));
}
END_TEST

START_TEST(image_sees_a_loop_through_a_link)
{
    g_autofree char *link_path = path_of("link.vmdk");
    write_image("a.vmdk", 1, 1, "link.vmdk");
    ck_assert_int_eq(symlink("a.vmdk", link_path), 0);
    assert_refused("a.vmdk", ELOOP, WORDS("backing file loop", "link.vmdk"));
}
END_TEST

START_TEST(image_limits_the_depth_of_a_chain)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {0};
    for (unsigned i = 0; i <= IMAGE_CHAIN_MAX; i++) {
        g_autofree char *name = g_strdup_printf("%u.vmdk", i);
        g_autofree char *parent = g_strdup_printf("%u.vmdk", i + 1);
        bool last = i == IMAGE_CHAIN_MAX;
        write_image(name, i, last ? -1u : i + 1, last ? NULL : parent);
    }
    assert_refused("0.vmdk", ELOOP, WORDS("more than 500 images"));
    g_autoptr(Image) top = open_top("1.vmdk", &how, &error);
    ck_assert_msg(top != NULL, "%s", top ? "" : error->message);
    uint8_t sector[512];
    ck_assert_int_eq(chain_read(top, sector, sizeof sector, 0), 0);
}
END_TEST

START_TEST(image_takes_the_file_beside_it_for_a_path_of_another_system)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {0};
    write_image("a.vmdk", 1, 2, "C:\\VMs\\disk\\base.vmdk");
    write_image("base.vmdk", 2, -1, NULL);
    g_autofree char *base = path_of("base.vmdk");
    g_autoptr(Image) top = open_top("a.vmdk", &how, &error);
    ck_assert_msg(top != NULL, "%s", top ? "" : error->message);
    ck_assert_str_eq(top->backing->path, base);
    ck_assert_str_eq(top->backing_name, "C:\\VMs\\disk\\base.vmdk");
    write_image("b.vmdk", 1, 2, "/vmfs/volumes/x/base.vmdk");
    g_autoptr(Image) other = open_top("b.vmdk", &how, &error);
    ck_assert_msg(other != NULL, "%s", other ? "" : error->message);
    write_image("base.vmdk", 3, -1, NULL);
    assert_refused("b.vmdk", EUCLEAN, WORDS("parentCID is 00000002", "is 00000003"));
}
END_TEST

START_TEST(image_refuses_what_is_no_file)
{
    g_autofree char *fifo = path_of("fifo");
    ck_assert_int_eq(mkfifo(fifo, 0600), 0);
    assert_refused("fifo", EINVAL, WORDS("a FIFO"));
    assert_refused("", EINVAL, WORDS("a directory"));
    assert_refused("nothing", ENOENT, WORDS("nothing", "No such file"));
    write_image("a.vmdk", 1, 2, "fifo");
    assert_refused("a.vmdk", EINVAL, WORDS("'fifo'", "a FIFO"));
    write_image("a.vmdk", 1, 2, "/dev/null");
    assert_refused("a.vmdk", EACCES, WORDS("/dev/null", "--allow-path /dev"));
}
END_TEST

START_TEST(image_answers_with_what_a_format_says)
{
    g_autoptr(Image) image = letters_open("DDZ.", 'a', NULL);
    ExtentList list;
    extent_list_init(&list);
    for (uint64_t at = 100; at < image->size; at = extent_list_end(&list)) {
        ck_assert_int_eq(image_map(image, at, image->size - at, &list), 0);
    }
    ck_assert_uint_eq(list.count, 3);
    ck_assert_uint_eq(list.items[0].offset, 100);
    ck_assert_uint_eq(list.items[0].length, 2 * UNIT - 100);
    ck_assert_uint_eq(list.items[0].host_offset, UNIT + 100);
    ck_assert_ptr_eq(list.items[0].image, image);
    ck_assert_int_eq(list.items[1].type, EXTENT_ZERO);
    ck_assert_int_eq(list.items[2].type, EXTENT_UNALLOCATED);
    extent_list_clear(&list);
}
END_TEST

START_TEST(image_lets_no_wrong_answer_through)
{
    static const char wrong[] = "NWSOGL0XTI";
    for (const char *letter = wrong; *letter; letter++) {
        char letters[] = {'Z', *letter, 'Z', '\0'};
        g_autoptr(Image) image = letters_open(letters, 'a', NULL);
        ExtentList list;
        extent_list_init(&list);
        ck_assert_int_eq(image_map(image, 0, image->size, &list), 0);
        ck_assert_msg(image_map(image, UNIT, UNIT, &list) == -EIO, "letter %c", *letter);
        ck_assert_uint_eq(extent_list_end(&list), UNIT);
        extent_list_clear(&list);
    }
}
END_TEST

START_TEST(image_map_notices_a_truncated_store)
{
    g_autoptr(Image) image = letters_open("DDDD", 'a', NULL);
    ExtentList list;
    extent_list_init(&list);
    /* The third unit is cut short: that is how an image may end. The fourth is not there at all. */
    ck_assert_int_eq(store_truncate(image->store, 3 * UNIT + 1), 0);
    ck_assert_int_eq(image_map(image, 2 * UNIT, 2 * UNIT, &list), 0);
    ck_assert_int_eq(image_map(image, 3 * UNIT, UNIT, &list), -EIO);
    extent_list_clear(&list);
    uint8_t byte;
    ck_assert_int_eq(chain_read(image, &byte, 1, 3 * UNIT - 1), 0);
    ck_assert_uint_eq(byte, 0);
    ck_assert_int_eq(chain_read(image, &byte, 1, 3 * UNIT), -EIO);
}
END_TEST

START_TEST(image_on_a_store_opens_no_other_file)
{
    static const char text[] = "# Disk DescriptorFile\nversion=1\nCID=1\ncreateType=\"custom\"\n"
                               "RW 1 FLAT \"/etc/passwd\" 0\n";
    g_autoptr(GError) error = NULL;
    ImageOpen how = {0};
    g_autoptr(Store) store = store_memory_new("memory", text, sizeof text - 1);
    g_autoptr(Image) image = image_open_store(store, &how, NULL, &error);
    ck_assert_ptr_null(image);
    ck_assert_msg(strstr(error->message, "/etc/passwd") != NULL, "%s", error->message);
    ck_assert_int_eq(error->code, EACCES);
}
END_TEST

START_TEST(image_keeps_its_backing_as_long_as_itself)
{
    Image *base = letters_open("D", 'a', NULL);
    Image *top = letters_open(".", 'A', base);
    image_unref(base);
    Image *again = image_ref(top);
    image_unref(top);
    uint8_t byte = 0;
    ck_assert_int_eq(chain_read(again, &byte, 1, 0), 0);
    ck_assert_uint_eq(byte, 'a');
    image_unref(again);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("image");
    tcase_add_checked_fixture(tcase, folder_make, folder_remove);
    tcase_add_test(tcase, image_opens_a_chain_by_the_names_in_it);
    tcase_add_test(tcase, image_leaves_the_backing_closed_when_asked);
    tcase_add_test(tcase, image_names_the_missing_backing_and_who_wants_it);
    tcase_add_test(tcase, image_refuses_a_loop_and_shows_it);
    tcase_add_test(tcase, image_sees_a_loop_through_a_link);
    tcase_add_test(tcase, image_limits_the_depth_of_a_chain);
    tcase_add_test(tcase, image_takes_the_file_beside_it_for_a_path_of_another_system);
    tcase_add_test(tcase, image_refuses_what_is_no_file);
    tcase_add_test(tcase, image_answers_with_what_a_format_says);
    tcase_add_test(tcase, image_lets_no_wrong_answer_through);
    tcase_add_test(tcase, image_map_notices_a_truncated_store);
    tcase_add_test(tcase, image_on_a_store_opens_no_other_file);
    tcase_add_test(tcase, image_keeps_its_backing_as_long_as_itself);
    return suite_run("image", tcase);
}
