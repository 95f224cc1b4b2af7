/*
 * raw: the file is the disk, byte for byte.
 *
 * The whole map is one extent. There is nothing to allocate and there is no metadata, so a flush is
 * a sync. Holes of the file are reported by EXTENT_SPARSE: the report asks the store, reads and
 * writes need not know.
 */
#include "base/errors.h"
#include "formats/format.h"
#include "formats/option.h"

static int raw_probe(const uint8_t *head, size_t n, const char *path)
{
    return 1; /* anything is a raw image; every format with a magic is surer of itself */
}

static bool raw_open(Image *image, GError **error)
{
    image->size = store_size(image->store);
    image->allocation_unit = 1;
    return true;
}

static void raw_close(Image *image)
{
}

static int raw_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    extent_list_add(list, &(Extent){
                              .offset = offset,
                              .length = length,
                              .host_offset = offset,
                              .store = image->store,
                              .image = image,
                              .type = EXTENT_DATA,
                              .flags = EXTENT_SPARSE | (image->write ? EXTENT_WRITABLE : 0),
                          });
    return 0;
}

static int raw_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    StorePunch how = flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE;
    int result = store_punch(image->store, offset, length, how);
    if (result == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer, writing zeroes would
                     cost */
    }
    return result;
}

static int raw_flush(Image *image)
{
    return store_sync(image->store);
}

static bool raw_is_dirty(const Image *image)
{
    return false;
}

static bool refuse_size(const Store *store, uint64_t size, int result, GError **error)
{
    return error_set_errno(error, -result, "%s: cannot set the size to %" G_GUINT64_FORMAT,
                           store->name, size);
}

static bool raw_resize(Image *image, uint64_t size, GError **error)
{
    int r = store_truncate(image->store, size);
    if (r == -ENOTSUP || r == -EINVAL) {
        return error_set(error, ENOTSUP, "%s: is no file: a device has the size that it has",
                         image->path);
    }
    if (r == 0) {
        image->size = size;
        r = store_sync(image->store);
    }
    return r == 0 || refuse_size(image->store, size, r, error);
}

static const FormatOption raw_create_options[] = {
    {"preallocation", "space that the disk gets at once: off (default), falloc or full"},
    {NULL, NULL},
};

static bool raw_create(Store *store, const FormatCreate *how, GError **error)
{
    if (how->backing_name) {
        return error_set(
            error, EINVAL,
            "%s: a raw image cannot have a backing file: use -f qcow2, or leave out -b",
            store->name);
    }
    if (!option_check_preallocation(how->options, error)) {
        return false;
    }
    if (store_size(store) < how->size) { /* a new file is empty; a device may be larger */
        int result = store_truncate(store, how->size);
        if (result < 0) {
            return refuse_size(store, how->size, result, error);
        }
    }
    int result = store_sync(store);
    if (result < 0) {
        return error_set_errno(error, -result, "%s: cannot sync", store->name);
    }
    return true;
}

static bool raw_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    measure->required = measure->fully_allocated = how->size; /* the size counts, not its holes */
    return true;
}

static bool raw_create_like(const Image *image, GHashTable *options, GError **error)
{
    return true;
}

const Format format_raw = {
    .name = "raw",
    .probe = raw_probe,
    .open = raw_open,
    .close = raw_close,
    .map = raw_map,
    .unmap = raw_unmap,
    .flush = raw_flush,
    .is_dirty = raw_is_dirty,
    .resize = raw_resize,
    .measure = raw_measure,
    .create_like = raw_create_like,
    .create_options = raw_create_options,
    .create = raw_create,
};
