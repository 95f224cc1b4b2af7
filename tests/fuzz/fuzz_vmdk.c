/*
 * Fuzz target: a vmdk made of any bytes (fuzz-image.h), and the same as an extent of a disk.
 */
#include "formats/vmdk.h"
#include "fuzz-image.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_image_init();
    return 0;
}

/* A sparse extent, of which a descriptor file would say that it belongs to a disk. */
static void map_extent(Store *store)
{
    g_autoptr(VmdkSparse) sparse = vmdk_sparse_open(store, FUZZ_CACHE, false, NULL);
    ExtentList list;
    extent_list_init(&list);
    for (unsigned i = 0; sparse && i < FUZZ_PLACES; i++) {
        uint64_t offset = sparse->size / FUZZ_PLACES * i;
        extent_list_reset(&list);
        if (vmdk_sparse_map(sparse, 0, offset, sparse->size - offset, &list) == 0) {
            g_assert(list.count > 0 && list.items[0].offset == offset);
        }
    }
    extent_list_clear(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_image(&format_vmdk, data, size);
    if (vmdk_sparse_probe(data, size)) {
        g_autoptr(Store) store = store_memory_new("fuzz", data, size);
        map_extent(store);
    }
    return 0;
}
