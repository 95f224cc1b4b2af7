/* formats/parallels-descriptor.c, formats/parallels-directory.c: what a disk of several files reads as, and what is
 * refused by which name */
#include "tests/unit/parallels-image.h"

#define TOP      "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
#define SNAPSHOT "{00000000-0000-4000-8000-00000000000a}"
#define NO_GUID  "{00000000-0000-0000-0000-000000000000}"

#define IMAGE(guid, type, file)                                                \
    "<Image><GUID>" guid "</GUID><Type>" type "</Type><File>" file "</File>\n" \
    "</Image>"
#define SHOT(guid, parent) "<Shot><GUID>" guid "</GUID><ParentGUID>" parent "</ParentGUID>\n</Shot>"

/* Two storages of SIZE bytes, 65 sectors: the first with a snapshot, plain, the second with one that is not. */
static const char good[] = "<?xml version='1.0' encoding='UTF-8'?>\n"
                           "<Parallels_disk_image Version=\"1.0\">\n"
                           "<Disk_Parameters><Disk_size>130</Disk_size><Padding>0</Padding>\n"
                           "<LogicSectorSize>512</LogicSectorSize>\n"
                           "<Encryption><Engine>" NO_GUID "</Engine><Data/></Encryption>\n"
                           "<Name>any &lt;name&gt;</Name></Disk_Parameters>\n"
                           "<StorageData>\n"
                           "<Storage><Start>0</Start><End>65</End><Blocksize>8</Blocksize>\n" //
    IMAGE(TOP, "Compressed", "now")
        IMAGE(SNAPSHOT, "Plain",
              "plain") "</Storage>\n"
                       "<Storage><Start>65</Start><End> 130 </End><Blocksize>8</Blocksize>\n" //
    IMAGE(SNAPSHOT, "Compressed", "full")
        IMAGE(TOP, "Compressed", "now") "</Storage>\n"
                                        "</StorageData>\n"
                                        "<Snapshots>" SHOT(TOP, SNAPSHOT)
                                            SHOT(SNAPSHOT, NO_GUID) "</Snapshots>\n"
                                                                    "</Parallels_disk_image>\n";

/* The good text with the first of these that is in it replaced. */
static char *with(const char *from, const char *to)
{
    const char *at = strstr(good, from);
    ck_assert_msg(at != NULL, "'%s' is not there", from);
    return g_strdup_printf("%.*s%s%s", (int)(at - good), good, to, at + strlen(from));
}

static void add_part(GHashTable *parts, const char *name, const void *bytes, uint64_t size)
{
    g_hash_table_insert(parts, (char *)name, store_memory_new(name, bytes, size));
}

/* now: clusters 'a', 'b', then nothing. full: 'a' to 'i'. plain: 'P'. short: a plain one of one sector. */
static GHashTable *parts_new(void)
{
    GHashTable *parts =
        g_hash_table_new_full(g_str_hash, g_str_equal, NULL, (GDestroyNotify)store_unref);
    uint64_t now_size, full_size;
    g_autofree uint8_t *now = full_image(2, &now_size), *full = full_image(BLOCKS, &full_size);
    add_part(parts, "now", now, now_size);
    add_part(parts, "full", full, full_size);
    g_autofree uint8_t *plain = g_malloc(SIZE);
    memset(plain, 'P', SIZE);
    add_part(parts, "plain", plain, SIZE);
    add_part(parts, "short", plain, 512);
    add_part(parts, "text", good, strlen(good));
    return parts;
}

static Image *try_open(const char *text, size_t n, bool write, GHashTable *parts, GError **error)
{
    g_autoptr(Store) store = store_memory_new("DiskDescriptor.xml", text, n);
    ImageOpen how = {.format = &format_parallels, .write = write, .parts = parts};
    return image_open_store(store, &how, NULL, error);
}

static Image *open_disk(const char *text, GHashTable *parts)
{
    g_autoptr(GError) error = NULL;
    Image *image = try_open(text, strlen(text), false, parts, &error);
    ck_assert_msg(image != NULL, "%s", error ? error->message : "");
    return image;
}

static void assert_refused(const char *text, size_t n, bool write, const char *words)
{
    g_autoptr(GHashTable) parts = parts_new();
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = try_open(text, n, write, parts, &error);
    ck_assert_msg(image == NULL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error->message, words) != NULL, "'%s' is not in: %s", words,
                  error->message);
    ck_assert_msg(!strchr(error->message, '\n'), "more than one line: %s", error->message);
}

START_TEST(directory_shows_the_chains_one_behind_the_other)
{
    g_autoptr(GHashTable) parts = parts_new();
    g_autoptr(Image) image = open_disk(good, parts);
    ck_assert_uint_eq(image->size, 2 * SIZE);
    ck_assert(image->unwritable);
    static const struct {
        uint64_t offset;
        char byte;
    } bytes[] = {
        {0, 'a'},
        {CLUSTER, 'b'},
        {2 * CLUSTER - 1, 'b'},
        {2 * CLUSTER, 'P'},
        {SIZE - 1, 'P'},
        {SIZE, 'a'},
        {SIZE + CLUSTER, 'b'},
        {SIZE + 2 * CLUSTER, 'c'},
        {2 * SIZE - 1, 'i'},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(bytes); i++) {
        ck_assert_int_eq(images_byte(image, bytes[i].offset), bytes[i].byte);
    }
}
END_TEST

START_TEST(directory_shows_the_snapshot_that_top_guid_names)
{
    g_autoptr(GHashTable) parts = parts_new();
    g_autofree char *text = with("<Snapshots>", "<Snapshots><TopGUID>" SNAPSHOT "</TopGUID>");
    g_autoptr(Image) image = open_disk(text, parts);
    ck_assert_int_eq(images_byte(image, 0), 'P');
    ck_assert_int_eq(images_byte(image, SIZE + 3 * CLUSTER), 'd');
}
END_TEST

static Image *open_snapshot(const char *text, const char *name, GHashTable *parts, GError **error)
{
    g_autoptr(Store) store = store_memory_new("DiskDescriptor.xml", text, strlen(text));
    ImageOpen how = {.format = &format_parallels, .snapshot = name, .parts = parts};
    return image_open_store(store, &how, NULL, error);
}

START_TEST(directory_shows_an_older_snapshot)
{
    g_autoptr(GHashTable) parts = parts_new();
    for (unsigned i = 0; i < 2; i++) {
        g_autoptr(Image) image = open_snapshot(good, i ? SNAPSHOT : "1", parts, NULL);
        ck_assert(image != NULL);
        ck_assert_uint_eq(image->size, 2 * SIZE);
        ck_assert_int_eq(images_byte(image, 0), 'P');
        ck_assert_int_eq(images_byte(image, SIZE + 3 * CLUSTER), 'd');
    }
}
END_TEST

/* Only the end of the disk can be missing, and only in what it was once. */
START_TEST(directory_shows_a_snapshot_of_a_shorter_disk)
{
    g_autoptr(GHashTable) parts = parts_new();
    g_autofree char *shorter =
        with(IMAGE(SNAPSHOT, "Compressed", "full"), IMAGE(SNAPSHOT, "Plain", "short"));
    g_autoptr(Image) image = open_snapshot(shorter, "1", parts, NULL);
    ck_assert(image != NULL);
    ck_assert_uint_eq(image->size, SIZE + 512);
    ck_assert_int_eq(images_byte(image, SIZE + 511), 'P');
    g_autofree char *hole = with(">plain<", ">short<");
    g_autoptr(GError) error = NULL;
    ck_assert(open_snapshot(hole, "1", parts, &error) == NULL);
    ck_assert_msg(strstr(error->message, "holds 512 bytes") != NULL, "%s", error->message);
}
END_TEST

/* The disk as it is now is plain bytes, the other state has clusters: nothing that was found of the first one is kept. */
START_TEST(directory_shows_a_snapshot_with_larger_units)
{
    g_autoptr(GHashTable) parts = parts_new();
    g_autoptr(GString) text = g_string_new(good);
    g_string_replace(text, "<Snapshots>", "<Snapshots><TopGUID>" SNAPSHOT "</TopGUID>", 1);
    g_string_replace(text, IMAGE(SNAPSHOT, "Compressed", "full"), IMAGE(SNAPSHOT, "Plain", "plain"),
                     1);
    g_autoptr(Image) now = open_disk(text->str, parts);
    ck_assert_uint_eq(now->allocation_unit, 1);
    g_autoptr(Image) image = open_snapshot(text->str, TOP, parts, NULL);
    ck_assert(image != NULL);
    ck_assert_uint_eq(image->allocation_unit, CLUSTER);
    ck_assert_int_eq(images_byte(image, 0), 'a');
}
END_TEST

/* A snapshot of a disk that has grown since. */
START_TEST(directory_reads_zeroes_behind_a_shorter_snapshot)
{
    g_autoptr(GHashTable) parts = parts_new();
    g_autofree char *text = with(">plain<", ">short<");
    g_autoptr(Image) image = open_disk(text, parts);
    ck_assert_int_eq(images_byte(image, 0), 'a');
    ck_assert_int_eq(images_byte(image, 3 * CLUSTER), 0);
    ExtentList list;
    extent_list_init(&list);
    ck_assert_int_eq(image_map(image, 3 * CLUSTER, CLUSTER, &list), 0);
    ck_assert_int_eq(list.items[0].type, EXTENT_UNALLOCATED);
    extent_list_clear(&list);
}
END_TEST

START_TEST(directory_check_looks_at_each_file)
{
    g_autoptr(GHashTable) parts = parts_new();
    uint8_t far[4];
    store_le32(far, 99);
    ck_assert_int_eq(store_write(g_hash_table_lookup(parts, "full"), far, 4, TABLE), 0);
    g_autoptr(Image) image = open_disk(good, parts);
    CheckResult result = {0};
    ck_assert(image->format->check(image, CHECK_REPORT_ONLY, &result, NULL));
    ck_assert_uint_eq(result.corruptions, 1);
    ck_assert_uint_eq(result.total_clusters, 3 * BLOCKS);
    ck_assert_uint_eq(result.allocated_clusters, 2 + BLOCKS + 2);
    ck_assert_int_eq(images_read_error(image, SIZE), 0); /* hidden by what lies above */
}
END_TEST

START_TEST(directory_refuses_what_cannot_be_by_name)
{
    static const struct {
        const char *from, *to, *words;
    } wrong[] = {
        {"Version=\"1.0\"", "Version=\"2.0\"", "Version is '2.0'"},
        {" Version=\"1.0\"", "", "Version is ''"},
        {"<Parallels_disk_image", "<Parallels_disk_images", "Parallels_disk_images: must be"},
        {"</Parallels_disk_image>", "", "is no XML"},
        {"</Parallels_disk_image>\n", "</Parallels_disk_image><more/>", "more follows"},
        {"<Disk_size>130</Disk_size>", "", "Disk_size is missing"},
        {"<Disk_size>130", "<Disk_size>131", "Disk_size is 131: must be 130"},
        {"<Disk_size>130", "<Disk_size>-1", "Disk_size is '-1'"},
        {"<Disk_size>130", "<Disk_size>36028797018963968", "Disk_size is '36028797018963968'"},
        {"<Padding>0", "<Padding>1", "Padding is '1': only 0"},
        {"<LogicSectorSize>512", "<LogicSectorSize>4096", "LogicSectorSize is '4096'"},
        {"<Engine>" NO_GUID, "<Engine>" TOP, "Engine is '" TOP "'"},
        {"<Start>0", "<Start>1", "Start is 1: must be 0"},
        {"<Start>65", "<Start>64", "Start is 64: must be 65"},
        {"<Start>65", "<Start>66", "Start is 66: must be 65"},
        {"<Start>65", "<Start>x", "Start is 'x'"},
        {"<End> 130 ", "<End>65", "End is 65: must be behind Start"},
        {"<End>65</End>", "", "End is missing"},
        {"<End>65</End>", "<End>65</End><End>65</End>", "End is said twice"},
        {"<End>65", "<End><b/>65", "element b is in End"},
        {"<Blocksize>8", "<Blocksize>16",
         "tracks is 8, but the descriptor says that Blocksize is 16"},
        {"<Blocksize>8", "<Blocksize>524289", "Blocksize is '524289'"},
        {"<GUID>" TOP, "<GUID>5fbaabe3", "GUID is '5fbaabe3'"},
        {"<GUID>" TOP, "<GUID>" SNAPSHOT, "of one image of the storage only"},
        {"<GUID>" TOP "</GUID><Type>", "<Type>", "GUID is missing"},
        {"<Type>Compressed", "<Type>Plain", "must be Compressed"},
        {"<Type>Compressed", "<Type>Raw", "Type is 'Raw'"},
        {"<File>now</File>", "", "File is missing"},
        {"<File>now", "<File>missing", "missing"},
        {"<File>now", "<File>text", "not opened by its path"},
        {"<File>now", "<File>plain", "magic is wrong"},
        {"<Shot><GUID>" TOP, "<Shot><GUID>" NO_GUID,
         "no Shot has the GUID " TOP ", which is the top"},
        {"<ParentGUID>" SNAPSHOT, "<ParentGUID>" TOP, "is below itself"},
        {"<ParentGUID>" NO_GUID, "<ParentGUID>" TOP, "is below itself"},
        {"<ParentGUID>" SNAPSHOT, "<ParentGUID>{11111111-0000-0000-0000-000000000000}",
         "no Shot has the GUID {11111111-0000-0000-0000-000000000000}, which is a ParentGUID"},
        {"<ParentGUID>" NO_GUID "</ParentGUID>", "", "ParentGUID is missing"},
        {"<Snapshots>", "<Snapshots>" SHOT(TOP, NO_GUID), "of one Shot only"},
        {"<Snapshots>", "<Snapshots><TopGUID>" NO_GUID "</TopGUID>", "which is the top"},
        {"<StorageData>", "<!-- --><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a><a>", "16 deep"},
        {"any &lt;name", "\xff", "is no XML"},
        {IMAGE(TOP, "Compressed", "now"), "", "has no Image with the GUID " TOP},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autofree char *text = with(wrong[i].from, wrong[i].to);
        assert_refused(text, strlen(text), false, wrong[i].words);
    }
    assert_refused(good, strlen(good), true, "open it read-only");
    const char *comment = "<!-- <Parallels_disk_image -->";
    assert_refused(comment, strlen(comment), false, "has no element");
}
END_TEST

/* Cut anywhere, the text is refused in one line. */
START_TEST(directory_refuses_a_text_that_ends_early)
{
    size_t end = strlen(good) - strlen(">\n");
    for (size_t n = strlen("<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image");
         n <= end; n++) {
        assert_refused(good, n, false, "is no XML");
    }
}
END_TEST

START_TEST(directory_refuses_more_than_its_limits)
{
    g_autofree char *text = g_malloc0(PARALLELS_DESCRIPTOR_MAX + 1);
    memset(text, ' ', PARALLELS_DESCRIPTOR_MAX + 1);
    memcpy(text, good, strlen(good));
    assert_refused(text, PARALLELS_DESCRIPTOR_MAX + 1, false, "must be 1048576 at most");

    g_autoptr(GString) storages = g_string_new("<StorageData>");
    for (unsigned i = 0; i <= PARALLELS_STORAGES_MAX; i++) {
        g_string_append_printf(storages,
                               "<Storage><Start>%u</Start><End>%u</End><Blocksize>8</Blocksize>"
                               "</Storage>",
                               i, i + 1);
    }
    g_autofree char *many = with("<StorageData>", storages->str);
    assert_refused(many, strlen(many), false, "more than 1024 storages");

    g_autoptr(GString) images = g_string_new("<Storage>");
    for (unsigned i = 0; i <= PARALLELS_FILES_MAX; i++) {
        g_string_append_printf(images,
                               IMAGE("{%08x-0000-0000-0000-000000000000}", "Plain", "plain"), i);
    }
    g_autofree char *files = with("<Storage>", images->str);
    assert_refused(files, strlen(files), false, "more than 1024 images of a storage");
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("parallels_directory");
    tcase_add_test(tcase, directory_shows_the_chains_one_behind_the_other);
    tcase_add_test(tcase, directory_shows_the_snapshot_that_top_guid_names);
    tcase_add_test(tcase, directory_shows_an_older_snapshot);
    tcase_add_test(tcase, directory_shows_a_snapshot_of_a_shorter_disk);
    tcase_add_test(tcase, directory_shows_a_snapshot_with_larger_units);
    tcase_add_test(tcase, directory_reads_zeroes_behind_a_shorter_snapshot);
    tcase_add_test(tcase, directory_check_looks_at_each_file);
    tcase_add_test(tcase, directory_refuses_what_cannot_be_by_name);
    tcase_add_test(tcase, directory_refuses_a_text_that_ends_early);
    tcase_add_test(tcase, directory_refuses_more_than_its_limits);
    return suite_run("parallels_directory", tcase);
}
