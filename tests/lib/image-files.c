/*
 * The files of one image in a test.
 */
#include "tests/lib/image-files.h"

#include <string.h>

#include "tests/lib/store-scratch.h"

ImageFiles image_files_of(Store *store)
{
    return (ImageFiles){.count = 1, .stores = {store}};
}

void image_files_add(ImageFiles *files, Store *store)
{
    g_assert(files->count < IMAGE_FILES_MAX);
    files->stores[files->count++] = store;
}

void image_files_clear(ImageFiles *files)
{
    for (unsigned i = 0; i < files->count; i++) {
        store_unref(files->stores[i]);
    }
    files->count = 0;
}

typedef struct Maker {
    FormatFiles face; /* first */
    ImageFiles *files;
} Maker;

static Store *make_file(FormatFiles *face, const char *name, GError **error)
{
    Maker *maker = (Maker *)face;
    Store *store = store_scratch_new(name, NULL, 0);
    image_files_add(maker->files, store);
    return store_ref(store);
}

bool image_files_create(ImageFiles *files, const char *base_name, const Format *format,
                        FormatCreate *how, GError **error)
{
    Maker maker = {.face = {.base_name = base_name, .make = make_file}, .files = files};
    image_files_add(files, store_scratch_new(base_name, NULL, 0));
    how->files = &maker.face;
    bool made = format->create(files->stores[0], how, error);
    how->files = NULL;
    return made;
}

Image *image_files_open(const ImageFiles *files, const ImageOpen *how, Image *backing,
                        GError **error)
{
    g_autoptr(GHashTable) parts = g_hash_table_new(g_str_hash, g_str_equal);
    for (unsigned i = 1; i < files->count; i++) {
        g_hash_table_insert(parts, files->stores[i]->name, files->stores[i]);
    }
    ImageOpen with_parts = *how;
    with_parts.parts = parts;
    return image_open_store(files->stores[0], &with_parts, backing, error);
}

ImageBytes image_bytes_of(const uint8_t *bytes, uint64_t size)
{
    return (ImageBytes){.count = 1,
                        .files = {{.name = "image", .bytes = (uint8_t *)bytes, .size = size}}};
}

ImageBytes image_bytes_copy(const ImageFiles *files,
                            const uint8_t *(*content)(Store *store, uint64_t *size))
{
    ImageBytes copy = {.count = files->count};
    for (unsigned i = 0; i < files->count; i++) {
        FileBytes *file = &copy.files[i];
        const uint8_t *bytes = content(files->stores[i], &file->size);
        file->name = g_strdup(files->stores[i]->name);
        file->bytes = g_memdup2(bytes, file->size);
    }
    return copy;
}

void image_bytes_clear(ImageBytes *bytes)
{
    for (unsigned i = 0; i < bytes->count; i++) {
        g_free(bytes->files[i].name);
        g_free(bytes->files[i].bytes);
    }
    bytes->count = 0;
}

ImageFiles image_files_scratch(const ImageBytes *bytes)
{
    ImageFiles files = {0};
    for (unsigned i = 0; i < bytes->count; i++) {
        const FileBytes *file = &bytes->files[i];
        image_files_add(&files, store_scratch_new(file->name, file->bytes, file->size));
    }
    return files;
}
