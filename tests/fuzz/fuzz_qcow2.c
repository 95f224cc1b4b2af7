/*
 * Fuzz target: a qcow2 image made of any bytes is opened, mapped, read and checked; then opened for
 * writing, changed and flushed; then its snapshots and bitmaps are changed; then it is repaired. Whatever the bytes are, each of it either works or
 * fails with an error, in bounded time and memory.
 *
 * After a repair that says that nothing is left to repair, a second check must agree.
 */
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "map/image.h"
#include "store-memory.h"

#define PLACES    16           /* looked at in each image */
#define LENGTH    (64u * 1024) /* at each place */
#define EXTENTS   256          /* of an answer that are looked at */
#define CACHE     (1u << 20)   /* bytes of metadata cache */
#define DATA_FILE (16u << 10)  /* bytes of a data file */
#define UNIT_MAX \
    (64u *       \
     1024) /* images of larger units are not written to: it takes long and shows nothing new */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

/* What an image may name as its data file: for those that are read. A writer could make it as long as any disk. */
static GHashTable *data_file(void)
{
    static GHashTable *parts;
    if (parts == NULL) {
        static const uint8_t content[DATA_FILE];
        parts = g_hash_table_new(g_str_hash, g_str_equal);
        Store *store = store_memory_new("data", content, sizeof content);
        store_memory_set_read_only(store);
        g_hash_table_insert(parts, (char *)"data", store);
    }
    return parts;
}

static Image *open_image(Store *store, bool write, bool repair)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.format = &format_qcow2,
                     .write = write,
                     .repair = repair,
                     .no_backing = true,
                     .no_lock = true,
                     .metadata_cache = CACHE,
                     .parts = write ? NULL : data_file()};
    Image *image = image_open_store(store, &how, NULL, &error);
    g_assert((image != NULL) == (error == NULL));
    return image;
}

/* The i-th place to look at: the beginning, the end, and between them. */
static uint64_t place(const Image *image, unsigned i)
{
    uint64_t step = image->size / (PLACES - 1);
    return i == PLACES - 1 ? image->size - min_u64(image->size, LENGTH) : i * step;
}

static void look(Image *image)
{
    static uint8_t buffer[LENGTH];
    for (unsigned i = 0; i < PLACES; i++) {
        uint64_t offset = place(image, i);
        uint64_t length = min_u64(LENGTH, image->size - offset);
        if (length > 0) {
            chain_read(image, buffer, length, offset);
        }
    }
    uint64_t offset = 0;
    for (unsigned i = 0; i < EXTENTS && offset < image->size; i++) {
        ExtentList list;
        extent_list_init(&list);
        int r = image_map(image, offset, image->size - offset, &list);
        offset = r == 0 ? extent_list_end(&list) : image->size;
        extent_list_clear(&list);
    }
}

static void describe(Image *image)
{
    GVariantBuilder data;
    g_variant_builder_init(&data, G_VARIANT_TYPE("a{sv}"));
    image->format->info(image, &data);
    g_variant_unref(g_variant_ref_sink(g_variant_builder_end(&data)));
}

/* False when it could not be checked. */
static bool check(Image *image, CheckRepair repair, CheckResult *result)
{
    g_autoptr(GError) error = NULL;
    *result = (CheckResult){0};
    return image->format->check(image, repair, result, &error);
}

/* True when the range is no space that may be written in place already. */
static bool needs_space(Image *image, uint64_t offset, uint64_t length)
{
    ExtentList list;
    extent_list_init(&list);
    bool needs =
        image_map(image, offset, length, &list) == 0 && extent_list_end(&list) - offset >= length;
    for (unsigned i = 0; i < list.count; i++) {
        needs = needs && !(list.items[i].flags & EXTENT_WRITABLE);
    }
    extent_list_clear(&list);
    return needs;
}

static void write_at(Image *image, uint64_t offset, bool commit)
{
    Allocation allocation = {.offset = align_down(offset, image->allocation_unit)};
    Allocation *list[] = {&allocation};
    allocation.length = min_u64(image->allocation_unit, image->size - allocation.offset);
    if (!needs_space(image, allocation.offset, allocation.length)) {
        return;
    }
    extent_list_init(&allocation.extents);
    if (image->format->allocate(image, list, 1) == 0) {
        if (commit) {
            image->format->commit(image, list, 1);
        } else {
            image->format->abandon(image, list, 1);
        }
    }
    extent_list_clear(&allocation.extents);
}

static void change(Image *image)
{
    if (image->allocation_unit > UNIT_MAX || image->size == 0) {
        return;
    }
    for (unsigned i = 0; i < PLACES; i++) {
        uint64_t offset = min_u64(place(image, i), image->size - 1);
        if (i % 4 == 3) {
            offset = align_down(offset, image->allocation_unit);
            uint64_t length = min_u64(2 * image->allocation_unit, image->size - offset);
            image->format->unmap(image, offset, length, i % 8 == 3 ? UNMAP_ZERO : 0);
        } else {
            write_at(image, offset, i % 4 != 2);
        }
        if (i % 8 == 7) {
            image->format->flush(image);
        }
    }
    image_finish(image);
}

static void try_read(const uint8_t *data, size_t size)
{
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    store_memory_set_read_only(store);
    g_autoptr(Image) image = open_image(store, false, false);
    if (image != NULL) {
        CheckResult result;
        look(image);
        describe(image);
        check(image, CHECK_REPORT_ONLY, &result);
    }
}

static void try_write(const uint8_t *data, size_t size)
{
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    g_autoptr(Image) image = open_image(store, true, false);
    if (image != NULL) {
        change(image);
        look(image);
    }
}

static GVariant *list_snapshots(const Image *image)
{
    GVariantBuilder list;
    g_variant_builder_init(&list, G_VARIANT_TYPE("aa{sv}"));
    image->format->snapshots(image, UINT_MAX, &list);
    return g_variant_ref_sink(g_variant_builder_end(&list));
}

/* The first snapshot is set back to and deleted, another one is made. */
static void change_snapshots(Image *image)
{
    const char *id = NULL;
    g_autoptr(GVariant) list = list_snapshots(image), first = NULL;
    image->format->snapshot_create(image, "made", NULL);
    if (g_variant_n_children(list) > 0) {
        first = g_variant_get_child_value(list, 0);
        g_assert(g_variant_lookup(first, "id", "&s", &id));
        image->format->snapshot_apply(image, id, NULL);
        image->format->snapshot_delete(image, id, NULL);
    }
}

static void change_bitmaps(Image *image)
{
    g_auto(GStrv) names = image->format->bitmap_names(image);
    BitmapChange change = {.verb = BITMAP_ADD, .name = "made"};
    image->format->bitmap_change(image, &change, NULL);
    for (unsigned i = 0; names[i] != NULL && i < PLACES; i++) {
        BitmapChange merge = {.verb = BITMAP_MERGE, .name = "made", .source_name = names[i]};
        image->format->bitmap_change(image, &merge, NULL);
        change = (BitmapChange){.verb = i % 2 ? BITMAP_REMOVE : BITMAP_ENABLE, .name = names[i]};
        image->format->bitmap_change(image, &change, NULL);
    }
}

static void try_tools(const uint8_t *data, size_t size, void (*tool)(Image *image))
{
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    g_autoptr(Image) image = open_image(store, true, false);
    if (image != NULL && image->allocation_unit <= UNIT_MAX) {
        tool(image);
        image_finish(image);
        look(image);
    }
}

static void try_repair(const uint8_t *data, size_t size, CheckRepair repair)
{
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    Image *image = open_image(store, true, true);
    if (image == NULL) {
        return;
    }
    CheckResult first, second;
    bool repaired = check(image, repair, &first) && image_finish(image) == 0;
    image_unref(image);
    if (!repaired || first.corruptions != 0 || first.leaks != 0 || first.check_errors != 0) {
        return;
    }
    image = open_image(store, false, false);
    g_assert(image != NULL);
    g_assert(check(image, CHECK_REPORT_ONLY, &second));
    g_assert(second.corruptions == 0 && second.leaks == 0);
    look(image);
    image_unref(image);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    log_set_level(LOG_LEVEL_ERROR);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    try_read(data, size);
    try_write(data, size);
    try_tools(data, size, change_snapshots);
    try_tools(data, size, change_bitmaps);
    try_repair(data, size, CHECK_REPAIR_LEAKS);
    try_repair(data, size, CHECK_REPAIR_ALL);
    return 0;
}
