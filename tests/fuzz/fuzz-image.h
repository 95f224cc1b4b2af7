/*
 * What a fuzz target of a format does with an image made of any bytes: it is opened, described,
 * mapped, read and checked; then opened for repair, repaired and checked again; then opened for
 * writing and written to. Whatever the bytes are, each of it either works or fails with an error,
 * in bounded time and memory; and no other file is opened, whatever they name.
 */
#ifndef TESTS_FUZZ_FUZZ_IMAGE_H
#define TESTS_FUZZ_FUZZ_IMAGE_H

#include <glib.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "map/image.h"
#include "store-memory.h"

#define FUZZ_PLACES  16           /* looked at in each image */
#define FUZZ_LENGTH  (96u * 1024) /* read at each place */
#define FUZZ_EXTENTS 256          /* of an answer that are looked at */
#define FUZZ_CACHE   (1u << 20)   /* bytes of metadata cache */
#define FUZZ_UNIT    (4u << 20)   /* larger units are not written */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static inline void fuzz_read(Image *image)
{
    static uint8_t buffer[FUZZ_LENGTH];
    ExtentList list;
    extent_list_init(&list);
    for (unsigned i = 0; i < FUZZ_PLACES && image->size > 0; i++) {
        uint64_t offset = image->size / FUZZ_PLACES * i;
        extent_list_reset(&list);
        if (chain_map(image, offset, image->size - offset, FUZZ_EXTENTS, &list) == 0) {
            g_assert(list.count > 0 && list.items[0].offset == offset);
        }
        chain_read(image, buffer, min_u64(FUZZ_LENGTH, image->size - offset), offset);
    }
    extent_list_clear(&list);
}

static inline void fuzz_describe(Image *image)
{
    const Format *format = image->format;
    if (format->info) {
        GVariantBuilder data;
        g_variant_builder_init(&data, G_VARIANT_TYPE_VARDICT);
        format->info(image, &data);
        g_variant_unref(g_variant_ref_sink(g_variant_builder_end(&data)));
    }
    if (format->cluster_size) {
        format->cluster_size(image);
    }
}

static inline bool fuzz_check(Image *image, CheckRepair repair, CheckResult *result)
{
    g_autoptr(GError) error = NULL;
    *result = (CheckResult){0};
    bool checked = image->format->check && image->format->check(image, repair, result, &error);
    g_assert(!image->format->check || checked == (error == NULL));
    return checked;
}

/* One unit that is not writable yet, from allocation to flush. */
static inline void fuzz_write_at(Image *image, uint64_t offset)
{
    const Format *format = image->format;
    uint64_t unit = image->allocation_unit;
    offset = align_down(offset, unit);
    uint64_t length = min_u64(unit, image->size - offset);
    ExtentList list;
    extent_list_init(&list);
    bool wanted = image_map(image, offset, length, &list) == 0 && list.count > 0 &&
                  !(list.items[0].flags & EXTENT_WRITABLE);
    extent_list_clear(&list);
    Allocation a = {.offset = offset, .length = length}, *one = &a;
    extent_list_init(&a.extents);
    if (wanted && format->allocate(image, &one, 1) == 0) {
        g_assert(extent_list_end(&a.extents) == offset + length);
        format->commit(image, &one, 1);
    }
    extent_list_clear(&a.extents);
}

static inline void fuzz_write(Image *image)
{
    const Format *format = image->format;
    if (!format->allocate || image->allocation_unit > FUZZ_UNIT) {
        return;
    }
    for (unsigned i = 0; i < 4 && image->size > 0; i++) {
        fuzz_write_at(image, image->size / 4 * i);
    }
    if (format->unmap && image->size >= image->allocation_unit) {
        format->unmap(image, 0, image->allocation_unit, UNMAP_ZERO);
    }
    image_finish(image);
}

/* Opens the bytes in one way, and does what goes with it. */
static inline void fuzz_open(const Format *format, const uint8_t *data, size_t size,
                             const ImageOpen *how)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    g_autoptr(Image) image = image_open_store(store, how, NULL, &error);
    CheckResult result;
    g_assert((image != NULL) == (error == NULL));
    if (!image) {
        return;
    }
    if (how->repair) {
        bool mended = fuzz_check(image, CHECK_REPAIR_ALL, &result) && result.corruptions == 0 &&
                      result.check_errors == 0;
        g_assert(!mended || !fuzz_check(image, CHECK_REPORT_ONLY, &result) ||
                 result.corruptions == 0);
    } else if (how->write) {
        fuzz_write(image);
    } else {
        fuzz_describe(image);
        fuzz_read(image);
        fuzz_check(image, CHECK_REPORT_ONLY, &result);
    }
}

/* no_secrets: an encrypted image is looked at as the tools for metadata do. */
static inline void fuzz_image(const Format *format, const uint8_t *data, size_t size)
{
    ImageOpen how = {
        .format = format, .no_lock = true, .no_secrets = true, .metadata_cache = FUZZ_CACHE};
    format->probe(data, min_u64(size, IMAGE_PROBE_SIZE), "fuzz");
    fuzz_open(format, data, size, &how);
    how.write = true;
    fuzz_open(format, data, size, &how);
    how.repair = true;
    fuzz_open(format, data, size, &how);
}

static inline void fuzz_image_init(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    g_setenv("G_DEBUG", "fatal-warnings", true);
}

#endif
