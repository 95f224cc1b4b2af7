/*
 * luks: an encrypted disk, versions 1 and 2: what cryptsetup makes of a device and qemu calls luks.
 *
 *     header, key slots | data, sector by sector          an offset of the disk + where the data begins
 *
 * There is nothing to allocate, as in raw. What must stay true: nothing of it is ever called zero. A
 * sector that was never written, a hole of the file, decrypts to noise; so holes are not shown and a
 * discard makes none.
 */
#include "formats/luks-header.h"

#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "map/encryption.h"

#define SECTOR 512u

static int luks_probe(const uint8_t *head, size_t n, const char *path)
{
    return n >= LUKS_MAGIC_SIZE && memcmp(head, LUKS_MAGIC, LUKS_MAGIC_SIZE) == 0 ? 100 : 0;
}

static bool luks_open(Image *image, GError **error)
{
    uint64_t length = store_size(image->store);
    g_autoptr(LuksHeader) header = luks_header_open(image->store, 0, length, image->path, error);
    if (!header || !luks_image_unlock(image, header, luks_header_data_offset(header), error)) {
        return false;
    }
    uint64_t sector = luks_header_sector(header);
    image->size = align_down(length - luks_header_data_offset(header), sector);
    image->allocation_unit = sector;
    image->state = g_steal_pointer(&header);
    return true;
}

static void luks_close(Image *image)
{
    luks_header_free(image->state);
}

static int luks_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    extent_list_add(list, &(Extent){
                              .offset = offset,
                              .length = length,
                              .host_offset = image->encryption->start + offset,
                              .store = image->store,
                              .image = image,
                              .type = EXTENT_DATA,
                              .flags = image->write ? EXTENT_WRITABLE : 0,
                          });
    return 0;
}

static int luks_flush(Image *image)
{
    return store_sync(image->store);
}

static bool luks_is_dirty(const Image *image)
{
    return false;
}

/* What it gains is what nobody has written: noise, as in a new image, but where the file had something. */
static bool luks_resize(Image *image, uint64_t size, GError **error)
{
    uint64_t sector = image->allocation_unit, begins = image->encryption->start;
    if (size % sector != 0 || size > INT64_MAX - begins) {
        return error_set(error, EINVAL,
                         "%s: size is %" PRIu64 ": must be a multiple of its sectors of %" PRIu64
                         " bytes, and below 2^63 with the header",
                         image->path, size, sector);
    }
    int r = store_truncate(image->store, begins + size);
    if (r == 0) {
        image->size = size;
        r = store_sync(image->store);
    }
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot set the size to %" PRIu64, image->path, size);
}

/* Zeroes are written, too: all of the disk is needed at once. */
static bool luks_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    uint64_t header = 0;
    if (!luks_header_length(how->options, "", &header, error)) {
        return false;
    }
    measure->required = measure->fully_allocated = header + align_up(how->size, SECTOR);
    return true;
}

static void luks_info(const Image *image, GVariantBuilder *data)
{
    luks_header_info(image->state, data);
}

static bool luks_create_like(const Image *image, GHashTable *options, GError **error)
{
    return error_set(error, ENOTSUP,
                     "%s: every sector of a luks image counts, written or not: it has no unused "
                     "space to give back",
                     image->path);
}

static const FormatOption luks_create_options[] = {
    {"cipher-alg", "aes-128, aes-192 or aes-256 (default)"},
    {"cipher-mode", "xts (default) or cbc"},
    {"hash-alg", "hash of the passphrase: sha256 (default), sha1, sha512 ..."},
    {"iter-time", "milliseconds that opening it takes: 1 to 20000 (default 2000)"},
    {"iterations", "rounds of the derivation, in place of iter-time: 1000 to 100000000"},
    {"ivgen-alg", "plain, plain64 (default) or essiv"},
    {"ivgen-hash-alg", "hash for essiv (default sha256)"},
    {"version", "of LUKS: 1 (default; qemu knows no other) or 2"},
    {NULL, NULL},
};

/* The first sector last: what was cut short is no image. */
static int write_header(Store *store, const GByteArray *header, uint64_t size)
{
    int r = store_size(store) < header->len + size ? store_truncate(store, header->len + size) : 0;
    r = r < 0 ? r : store_write(store, header->data + SECTOR, header->len - SECTOR, SECTOR);
    r = r < 0 ? r : store_sync(store);
    r = r < 0 ? r : store_write(store, header->data, SECTOR, 0);
    return r < 0 ? r : store_sync(store);
}

static bool luks_create(Store *store, const FormatCreate *how, GError **error)
{
    if (how->backing_name) {
        return error_set(error, EINVAL,
                         "%s: a luks image cannot have a backing file: use -f qcow2 and "
                         "-o encrypt.format=luks",
                         store->name);
    }
    if (!how->secret) {
        return error_set(error, ENOKEY,
                         "%s: is encrypted: needs its secret, with --secret-file or --secret-fd",
                         store->name);
    }
    if (how->size > INT64_MAX - LUKS_HEADER_MAX - SECTOR) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be below 2^63 with the header", store->name,
                         how->size);
    }
    g_autoptr(GByteArray) header =
        luks_header_make(how->options, "", how->secret, store->name, error);
    if (!header) {
        return false;
    }
    int r = write_header(store, header, align_up(how->size, SECTOR));
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

const Format format_luks = {
    .name = "luks",
    .probe = luks_probe,
    .open = luks_open,
    .close = luks_close,
    .map = luks_map,
    .flush = luks_flush,
    .is_dirty = luks_is_dirty,
    .info = luks_info,
    .resize = luks_resize,
    .measure = luks_measure,
    .create_like = luks_create_like,
    .create_options = luks_create_options,
    .create = luks_create,
};
