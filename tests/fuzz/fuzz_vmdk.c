/*
 * Fuzz target: a vmdk image made of any bytes is opened, mapped and read. Whatever the bytes are,
 * each of it either works or fails with an error, in bounded time and memory; and no other file is
 * opened, whatever they name.
 */
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "formats/vmdk.h"
#include "map/image.h"
#include "store-memory.h"

#define PLACES  16           /* looked at in each image */
#define LENGTH  (96u * 1024) /* read at each place */
#define EXTENTS 256          /* of an answer that are looked at */
#define CACHE   (1u << 20)   /* bytes of metadata cache */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static void read_places(Image *image)
{
    static uint8_t buffer[LENGTH];
    ExtentList list;
    extent_list_init(&list);
    for (unsigned i = 0; i < PLACES; i++) {
        uint64_t offset = image->size / PLACES * i;
        extent_list_reset(&list);
        if (chain_map(image, offset, image->size - offset, EXTENTS, &list) == 0) {
            g_assert(list.count > 0 && list.items[0].offset == offset);
        }
        chain_read(image, buffer, min_u64(LENGTH, image->size - offset), offset);
    }
    extent_list_clear(&list);
}

static void describe(Image *image)
{
    GVariantBuilder data;
    g_variant_builder_init(&data, G_VARIANT_TYPE_VARDICT);
    image->format->info(image, &data);
    g_variant_unref(g_variant_ref_sink(g_variant_builder_end(&data)));
    image->format->cluster_size(image);
}

/* A sparse extent, of which a descriptor file would say that it belongs to a disk. */
static void map_extent(Store *store)
{
    g_autoptr(VmdkSparse) sparse = vmdk_sparse_open(store, CACHE, NULL);
    ExtentList list;
    extent_list_init(&list);
    for (unsigned i = 0; sparse && i < PLACES; i++) {
        uint64_t offset = sparse->size / PLACES * i;
        extent_list_reset(&list);
        if (vmdk_sparse_map(sparse, 0, offset, sparse->size - offset, &list) == 0) {
            g_assert(list.count > 0 && list.items[0].offset == offset);
        }
    }
    extent_list_clear(&list);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    log_set_level(LOG_LEVEL_ERROR);
    g_setenv("G_DEBUG", "fatal-warnings", true);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.format = &format_vmdk, .no_lock = true, .metadata_cache = CACHE};
    format_vmdk.probe(data, min_u64(size, IMAGE_PROBE_SIZE), "fuzz");
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    g_autoptr(Image) image = image_open_store(store, &how, NULL, &error);
    g_assert((image != NULL) == (error == NULL));
    if (image) {
        read_places(image);
        describe(image);
    }
    if (vmdk_sparse_probe(data, size)) {
        map_extent(store);
    }
    return 0;
}
