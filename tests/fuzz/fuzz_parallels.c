/*
 * Fuzz target: a parallels made of any bytes (fuzz-image.h), or a descriptor, of which every file is there, made of any text.
 */
#include "formats/parallels.h"
#include "fuzz-image.h"

static GHashTable *parts;

/* An image of 21 clusters of 4 KiB, the second of which is there; and the same bytes, plain. */
static Store *part_new(const char *name)
{
    static uint8_t bytes[3 * 4096];
    memcpy(bytes, PARALLELS_MAGIC, PARALLELS_MAGIC_SIZE);
    store_le32(bytes + PARALLELS_H_VERSION, PARALLELS_VERSION);
    store_le32(bytes + PARALLELS_H_TRACKS, 8);
    store_le32(bytes + PARALLELS_H_ENTRIES, 21);
    store_le64(bytes + PARALLELS_H_SECTORS, 168);
    store_le32(bytes + PARALLELS_H_DATA, 8);
    store_le32(bytes + PARALLELS_HEADER_SIZE + 4, 2);
    return store_memory_new(name, bytes, sizeof bytes);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static const char *const names[] = {"a", "b"};
    fuzz_image_init();
    parts = g_hash_table_new(g_str_hash, g_str_equal);
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
        g_hash_table_insert(parts, (char *)names[i], part_new(names[i]));
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (parallels_descriptor_probe(data, min_u64(size, IMAGE_PROBE_SIZE))) {
        ImageOpen how = {.format = &format_parallels, .no_lock = true, .parts = parts};
        fuzz_open(&format_parallels, data, size, &how);
    } else {
        fuzz_image(&format_parallels, data, size);
    }
    return 0;
}
