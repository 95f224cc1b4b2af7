/*
 * formats/qcow2-bitmap*.c: each field of a directory entry and of a table that cannot be true.
 *
 * An image is made with one bitmap, one field of it is changed; then the bitmap is of no use, and the
 * image reads, opens for writing and is checked all the same.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/qcow2-bitmap.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define CLUSTER 4096u
#define SIZE    (UINT64_C(1) << 30) /* with pieces of 512 bytes, a table of 64 entries */

typedef struct Made {
    uint8_t *bytes;
    uint64_t size;
    uint64_t entry, table; /* where they lie */
} Made;

static Image *open_image(Store *store, bool write, GError **error)
{
    ImageOpen how = {.format = &format_qcow2, .write = write};
    return image_open_store(store, &how, NULL, error);
}

/* Two clusters of bits, in one of which something is marked, and one that is all ones. */
static Made make(void)
{
    g_autoptr(GHashTable) options = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(options, "cluster_size", "4096");
    FormatCreate how = {.size = SIZE, .options = options};
    g_autoptr(Store) store = store_memory_new("image", NULL, 0);
    ck_assert(format_qcow2.create(store, &how, NULL));
    BitmapChange add = {.verb = BITMAP_ADD, .name = "bits", .granularity = 512};
    for (unsigned i = 0; i < 2; i++) { /* made; then marked in a session of its own */
        Image *image = open_image(store, true, NULL);
        ck_assert_ptr_nonnull(image);
        if (i == 0) {
            ck_assert(format_qcow2.bitmap_change(image, &add, NULL));
        } else {
            ck_assert(image->marks);
            format_qcow2.mark(image, 512, 512);
            format_qcow2.mark(image, 32 * CLUSTER * 1024, 512);
            format_qcow2.mark(image, 16 * CLUSTER * 512, UINT64_C(16) * CLUSTER * 512);
        }
        ck_assert_int_eq(image_finish(image), 0);
        image_unref(image);
    }
    Image *image = open_image(store, false, NULL);
    Made made = {.entry = qcow2_state(image)->bitmap_directory_offset};
    image_unref(image);
    const uint8_t *content = store_memory_content(store, &made.size);
    made.bytes = g_memdup2(content, made.size);
    made.table = load_be64(made.bytes + made.entry);
    return made;
}

static void set(uint8_t *at, unsigned length, uint64_t value)
{
    for (unsigned i = 0; i < length; i++) {
        at[i] = value >> (8 * (length - 1 - i));
    }
}

/* The words in what get says; then everything else that looks at bitmaps. */
static void assert_of_no_use(const Made *made, const char *words, bool gone)
{
    g_autoptr(Store) store = store_memory_new("image", made->bytes, made->size);
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_image(store, false, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    ck_assert_ptr_null(format_qcow2.bitmap_get(image, "bits", &error));
    ck_assert_msg(strstr(error->message, words) != NULL, "%s: not %s", error->message, words);
    CheckResult result = {0};
    ck_assert(format_qcow2.check(image, CHECK_REPORT_ONLY, &result, NULL));
    g_autoptr(Image) writer = open_image(store, true, NULL);
    ck_assert_ptr_nonnull(writer);
    ck_assert(!writer->marks);
    g_auto(GStrv) names = format_qcow2.bitmap_names(writer);
    ck_assert_int_eq(g_strv_length(names), gone ? 0 : 1);
    BitmapChange change = {.verb = BITMAP_CLEAR, .name = "bits"};
    ck_assert(!format_qcow2.bitmap_change(writer, &change, NULL));
    change.verb = BITMAP_REMOVE;
    ck_assert(format_qcow2.bitmap_change(writer, &change, NULL) == !gone);
    ck_assert_int_eq(image_finish(writer), 0);
}

START_TEST(bitmap_is_read_as_it_was_marked)
{
    Made made = make();
    g_autoptr(Store) store = store_memory_new("image", made.bytes, made.size);
    g_autoptr(Image) image = open_image(store, false, NULL);
    DirtyMap *map = format_qcow2.bitmap_get(image, "bits", NULL);
    uint64_t run;
    ck_assert_ptr_nonnull(map);
    ck_assert(!dirtymap_get(map, 0, SIZE, &run) && run == 512);
    ck_assert(dirtymap_get(map, 512, SIZE - 512, &run) && run == 512);
    ck_assert(dirtymap_get(map, 16 * CLUSTER * 512, SIZE / 2, &run));
    ck_assert_uint_eq(load_be64(made.bytes + made.table + 2 * 8), 1); /* all ones take no cluster */
    g_free(made.bytes);
}
END_TEST

START_TEST(damaged_bitmaps_are_of_no_use)
{
    static const struct {
        unsigned at, length; /* of the directory entry */
        uint64_t value;
        const char *words;
        bool gone; /* the directory itself cannot be used */
    } cases[] = {
        {0, 8, CLUSTER + 512, "is damaged", true},
        {0, 8, 0, "is damaged", true},
        {0, 8, UINT64_C(1) << 40, "bits", false},
        {0, 8, UINT64_C(0xfffffffffffff000), "bits", false},
        {8, 4, 0, "is damaged", true},
        {8, 4, 63, "does not fit", false},
        {8, 4, UINT32_MAX, "does not fit", false},
        {12, 4, 1, "was not saved", false},
        {12, 4, 1 << 3 | 2, "not known here", false},
        {12, 4, 1u << 31 | 2, "not known here", false},
        {16, 1, 0, "not known here", false},
        {16, 1, 2, "not known here", false},
        {17, 1, 8, "below 512", false},
        {17, 1, 10, "does not fit", false},
        {17, 1, 31, "does not fit", false},
        {17, 1, 32, "is damaged", true},
        {18, 2, UINT16_MAX, "is damaged", true},
        {20, 4, UINT32_MAX, "is damaged", true},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Made made = make();
        set(made.bytes + made.entry + cases[i].at, cases[i].length, cases[i].value);
        assert_of_no_use(&made, cases[i].words, cases[i].gone);
        g_free(made.bytes);
    }
}
END_TEST

START_TEST(damaged_tables_are_of_no_use)
{
    Made made = make();
    uint64_t sound = load_be64(made.bytes + made.table);
    const uint64_t entries[] = {
        sound | 1,         sound | 2,          sound | UINT64_C(1) << 56, sound + 512,
        UINT64_C(1) << 40, 0x00fffffffffff000, UINT64_C(1) << 63 | 1};
    for (unsigned i = 0; i < sizeof entries / sizeof entries[0]; i++) {
        set(made.bytes + made.table, 8, entries[i]);
        assert_of_no_use(&made, "bits", false);
    }
    set(made.bytes + made.table, 8, sound);
    set(made.bytes + made.table + 8, 8, sound); /* one cluster twice */
    assert_of_no_use(&made, "bits", false);
    g_free(made.bytes);
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("qcow2_bitmap");
    tcase_add_test(tcase, bitmap_is_read_as_it_was_marked);
    tcase_add_test(tcase, damaged_bitmaps_are_of_no_use);
    tcase_add_test(tcase, damaged_tables_are_of_no_use);
    return suite_run("qcow2_bitmap", tcase);
}
