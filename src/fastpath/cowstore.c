/*
 * The header of a store file, and whose store it is.
 *
 *      offset  size
 *      0       8     magic "CownbdCw"
 *      8       4     version: 1
 *      12      4     state: 1 OPEN, 2 FOLDING, 3 FOLDED
 *      16      8     where the kernel's part begins: 1 MiB
 *      24      8     size of the disk, bytes
 *      32      4     bytes of a chunk
 *      36      4     0
 *      40      32    digest of the chain
 *      72      32    digest of all below the top image
 *      104     8     first chunk of the disk that a fold has not brought into the image for good
 *      112     32    digest of the bytes before
 *
 * All little-endian, in one sector, so that a cut leaves the old header or the new one.
 *
 * The digest of a chain goes over every extent of its map and, for each file that holds one and for
 * each image's main file, over size and time of last change. The map alone would not see what was
 * overwritten in place; the time alone says nothing where an image lies on a block device. For
 * those, and against clocks, a sample of the contents is taken too: the first bytes of the disk,
 * where partition tables and superblocks change whenever something is mounted, and pieces all over
 * it.
 */
#include "fastpath/cowstore.h"

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/errors.h"

#define HEADER_SIZE    144u
#define HEADER_CHECKED 112u
#define VERSION        1u
#define STEP           (8ull << 30) /* bytes of the disk that are mapped at once */
#define STEP_EXTENTS   4096
#define SAMPLE_HEAD    (128u << 10) /* bytes at the start of the disk */
#define SAMPLES        64u
#define SAMPLE_SIZE    4096u

static const uint8_t magic[8] = {'C', 'o', 'w', 'n', 'b', 'd', 'C', 'w'};

/* ---- whose store --------------------------------------------------------------------------- */

static void digest_u64(GChecksum *sum, uint64_t value)
{
    uint8_t bytes[8];
    store_le64(bytes, value);
    g_checksum_update(sum, bytes, sizeof bytes);
}

static bool digest_file(GChecksum *sum, const char *path, GError **error)
{
    struct stat status;
    if (stat(path, &status) != 0) {
        return error_set_errno(error, errno, "%s: cannot look at the file", path);
    }
    if (S_ISREG(status.st_mode)) {
        digest_u64(sum, status.st_size);
        digest_u64(sum, status.st_mtim.tv_sec);
        digest_u64(sum, status.st_mtim.tv_nsec);
    }
    return true;
}

/* The map, piece by piece, with neighbours joined: how a format cuts its answers does not count. */
typedef struct MapDigest {
    GChecksum *sum;
    GHashTable *numbers; /* Store * -> its number, from 1 on, in order of appearance */
    GPtrArray *stores;   /* number - 1 -> Store * */
    Extent last;         /* not yet in the sum; length 0: none */
} MapDigest;

static uint64_t store_number(MapDigest *digest, Store *store)
{
    unsigned number = GPOINTER_TO_UINT(g_hash_table_lookup(digest->numbers, store));
    if (number == 0) {
        g_ptr_array_add(digest->stores, store);
        number = digest->stores->len;
        g_hash_table_insert(digest->numbers, store, GUINT_TO_POINTER(number));
    }
    return number;
}

static void digest_last(MapDigest *digest)
{
    const Extent *last = &digest->last;
    if (last->length == 0) {
        return;
    }
    digest_u64(digest->sum, last->offset);
    digest_u64(digest->sum, last->length);
    if (!extent_is_zero(last)) {
        digest_u64(digest->sum, store_number(digest, last->store));
        digest_u64(digest->sum, last->host_offset);
        digest_u64(digest->sum, (uint64_t)last->type << 32 | last->stored_length);
    }
}

static void digest_extent(MapDigest *digest, const Extent *extent)
{
    Extent *last = &digest->last;
    bool both_zero = extent_is_zero(last) && extent_is_zero(extent);
    bool goes_on = last->type == EXTENT_DATA && extent->type == EXTENT_DATA &&
                   last->store == extent->store &&
                   last->host_offset + last->length == extent->host_offset;
    if (last->length != 0 && (both_zero || goes_on)) {
        last->length += extent->length;
        return;
    }
    digest_last(digest);
    *last = *extent;
}

static int digest_map(Image *image, MapDigest *digest)
{
    ExtentList list;
    extent_list_init(&list);
    int r = 0;
    for (uint64_t offset = 0; offset < image->size && r == 0;) {
        extent_list_reset(&list);
        r = chain_map(image, offset, min_u64(STEP, image->size - offset), STEP_EXTENTS, &list);
        for (unsigned i = 0; i < list.count && r == 0; i++) {
            digest_extent(digest, &list.items[i]);
        }
        offset = extent_list_end(&list);
    }
    digest_last(digest);
    extent_list_clear(&list);
    return r;
}

static int digest_sample(Image *image, GChecksum *sum)
{
    g_autofree uint8_t *bytes = g_malloc(SAMPLE_HEAD);
    uint64_t length = min_u64(SAMPLE_HEAD, image->size);
    int r = chain_read(image, bytes, length, 0);
    g_checksum_update(sum, bytes, length);
    uint64_t step = align_down(image->size / SAMPLES, SAMPLE_SIZE);
    for (unsigned i = 1; i < SAMPLES && step > 0 && r == 0; i++) {
        r = chain_read(image, bytes, SAMPLE_SIZE, step * i);
        g_checksum_update(sum, bytes, SAMPLE_SIZE);
    }
    return r;
}

static bool digest_files(Image *image, const MapDigest *digest, GError **error)
{
    for (const Image *i = image; i; i = i->backing) {
        if (!digest_file(digest->sum, i->path, error)) {
            return false;
        }
    }
    for (unsigned i = 0; i < digest->stores->len; i++) {
        const Store *store = digest->stores->pdata[i];
        if (!digest_file(digest->sum, store->name, error)) {
            return false;
        }
    }
    return true;
}

/* image may be NULL: there is nothing below. */
static bool digest_chain(Image *image, uint8_t result[COWSTORE_DIGEST], GError **error)
{
    gsize length = COWSTORE_DIGEST;
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    if (image) {
        g_autoptr(GHashTable) numbers = g_hash_table_new(NULL, NULL);
        g_autoptr(GPtrArray) stores = g_ptr_array_new();
        MapDigest digest = {.sum = sum, .numbers = numbers, .stores = stores};
        int r = digest_map(image, &digest);
        r = r == 0 ? digest_sample(image, sum) : r;
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot read the image", image->path);
        }
        if (!digest_files(image, &digest, error)) {
            return false;
        }
    }
    g_checksum_get_digest(sum, result, &length);
    return true;
}

bool cowstore_origin(Image *image, CowstoreOrigin *origin, GError **error)
{
    *origin = (CowstoreOrigin){.disk_size = image->size};
    return digest_chain(image, origin->whole, error) &&
           digest_chain(image->backing, origin->below, error);
}

/* What differs, when that is easy to say. */
static bool refuse_origin(Store *store, const Image *image, const char *what, GError **error)
{
    return error_set(error, EINVAL,
                     "%s: %s was changed after this store was made (%s): the store fits only the "
                     "image as it was",
                     store->name, image->path, what);
}

bool cowstore_check_origin(Store *store, const CowstoreHeader *header, Image *image, GError **error)
{
    CowstoreOrigin now;
    if (header->origin.disk_size != image->size) {
        return error_set(error, EINVAL,
                         "%s: belongs to a disk of %" PRIu64 " bytes, but %s has %" PRIu64
                         ": the store fits only the image as it was",
                         store->name, header->origin.disk_size, image->path, image->size);
    }
    if (!cowstore_origin(image, &now, error)) {
        return false;
    }
    if (memcmp(now.below, header->origin.below, COWSTORE_DIGEST) != 0) {
        return refuse_origin(store, image, "a file below it", error);
    }
    if (header->state == COWSTORE_OPEN &&
        memcmp(now.whole, header->origin.whole, COWSTORE_DIGEST) != 0) {
        return refuse_origin(store, image, "its own file", error);
    }
    return true;
}

/* ---- the header ---------------------------------------------------------------------------- */

static void digest_header(const uint8_t *bytes, uint8_t result[COWSTORE_DIGEST])
{
    gsize length = COWSTORE_DIGEST;
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_checksum_update(sum, bytes, HEADER_CHECKED);
    g_checksum_get_digest(sum, result, &length);
}

static bool check_header(Store *store, const uint8_t *bytes, GError **error)
{
    uint8_t digest[COWSTORE_DIGEST];
    digest_header(bytes, digest);
    if (memcmp(bytes, magic, sizeof magic) != 0) {
        return error_set(error, EUCLEAN, "%s: is no store of cownbd: must begin with \"CownbdCw\"",
                         store->name);
    }
    if (load_le32(bytes + 8) != VERSION) {
        return error_set(error, ENOTSUP, "%s: the store has version %u: must be %u", store->name,
                         load_le32(bytes + 8), VERSION);
    }
    if (memcmp(bytes + HEADER_CHECKED, digest, sizeof digest) != 0) {
        return error_set(error, EUCLEAN,
                         "%s: the header of the store is damaged: its digest does "
                         "not fit",
                         store->name);
    }
    return true;
}

bool cowstore_read_header(Store *store, CowstoreHeader *header, GError **error)
{
    uint8_t bytes[HEADER_SIZE];
    int r = store_read(store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the store", store->name);
    }
    if (!check_header(store, bytes, error)) {
        return false;
    }
    uint32_t state = load_le32(bytes + 12), chunk = load_le32(bytes + 32);
    if (state < COWSTORE_OPEN || state > COWSTORE_FOLDED) {
        return error_set(error, EUCLEAN, "%s: the store's state is %u: must be 1 to 3", store->name,
                         state);
    }
    if (load_le64(bytes + 16) != COWSTORE_BASE || !is_power_of_two(chunk) || chunk < 4096 ||
        chunk > COWSTORE_BASE) {
        return error_set(error, EUCLEAN,
                         "%s: the store begins at %" PRIu64 " with chunks of %u bytes: must be "
                         "%u, and a power of two from 4096 to that",
                         store->name, load_le64(bytes + 16), chunk, COWSTORE_BASE);
    }
    *header = (CowstoreHeader){.state = state, .chunk = chunk};
    header->origin.disk_size = load_le64(bytes + 24);
    memcpy(header->origin.whole, bytes + 40, COWSTORE_DIGEST);
    memcpy(header->origin.below, bytes + 72, COWSTORE_DIGEST);
    header->folded_to = load_le64(bytes + 104);
    return true;
}

int cowstore_write_header(Store *store, const CowstoreHeader *header)
{
    uint8_t bytes[HEADER_SIZE] = {0};
    memcpy(bytes, magic, sizeof magic);
    store_le32(bytes + 8, VERSION);
    store_le32(bytes + 12, header->state);
    store_le64(bytes + 16, COWSTORE_BASE);
    store_le64(bytes + 24, header->origin.disk_size);
    store_le32(bytes + 32, header->chunk);
    memcpy(bytes + 40, header->origin.whole, COWSTORE_DIGEST);
    memcpy(bytes + 72, header->origin.below, COWSTORE_DIGEST);
    store_le64(bytes + 104, header->folded_to);
    digest_header(bytes, bytes + HEADER_CHECKED);
    int r = store_write(store, bytes, sizeof bytes, 0);
    return r < 0 ? r : store_sync(store);
}

char *cowstore_path(const char *image_path)
{
    return g_strconcat(image_path, IMAGE_UNFOLDED_SUFFIX, NULL);
}
