/*
 * parallels: a disk of several files, in a directory NAME.hdd.
 *
 *     storages   |  0 ....................  |  1 ...............  |     one behind the other
 *     top           0.{5fba...}.hds            1.{5fba...}.hds          what was written since the last snapshot
 *                      |                          |                     where it has nothing:
 *     snapshots     0.{1a2b...}.hds            1.{1a2b...}.hds
 *                      |                          |
 *     root          0.{9c8d...}.hds            1.{9c8d...}.hds          an image, or plain bytes
 *
 * The files of a storage are a chain of images, opened here as any other, and asked as such: the disk is a row of
 * chains. It is one image all the same, and only read: a file of its snapshots must never change, and only the program
 * that keeps the descriptor knows which one may. An older snapshot is shown in the same way: its chain begins further down.
 *
 * What must stay true: each chain is at least as long as its storage; pieces are in the order of the disk, without gaps.
 */
#include "formats/parallels.h"

#include <stdlib.h>
#include <string.h>

#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/info.h"

#define MAP_EXTENTS_MAX 256
/* Of the tables of all files, which are in memory: 24 MiB. 1 MiB clusters, 1 TiB: six times. */
#define ENTRIES_MAX (6u << 20)

typedef struct Piece {
    uint64_t offset, length; /* of the disk, bytes */
    Image *top;
} Piece;

struct ParallelsDirectory {
    ParallelsDescriptor *descriptor;
    Piece *pieces;
    unsigned count;
    uint64_t entries; /* of all tables */
};

static void close_pieces(ParallelsDirectory *directory)
{
    for (unsigned i = 0; i < directory->count; i++) {
        image_unref(directory->pieces[i].top);
    }
    g_clear_pointer(&directory->pieces, g_free);
    directory->count = 0;
    directory->entries = 0;
}

void parallels_directory_free(ParallelsDirectory *directory)
{
    if (!directory) {
        return;
    }
    close_pieces(directory);
    parallels_descriptor_free(directory->descriptor);
    g_free(directory);
}

static ParallelsDescriptor *read_descriptor(const Image *image, GError **error)
{
    uint64_t length = store_size(image->store);
    if (length > PARALLELS_DESCRIPTOR_MAX) {
        error_set(error, EUCLEAN, "%s: the descriptor has %" PRIu64 " bytes: must be %u at most",
                  image->path, length, PARALLELS_DESCRIPTOR_MAX);
        return NULL;
    }
    g_autofree char *text = g_malloc(length);
    int r = store_read(image->store, text, length, 0);
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot read the descriptor", image->path);
        return NULL;
    }
    return parallels_descriptor_parse(text, length, image->path, error);
}

/* ---- open ---- */

static bool is_compressed(const Image *layer)
{
    return layer->format == &format_parallels;
}

/* What the descriptor says of a file that has a header. */
static bool check_header(ParallelsDirectory *directory, const Image *layer,
                         const ParallelsStorage *storage, GError **error)
{
    const ParallelsHeader *header = &parallels_state(layer)->header;
    if (header->cluster_size != storage->cluster_size) {
        return error_set(error, EUCLEAN,
                         "%s: tracks is %" PRIu64 ", but the descriptor says that Blocksize is "
                         "%" PRIu64,
                         layer->path, header->cluster_size / PARALLELS_SECTOR,
                         storage->cluster_size / PARALLELS_SECTOR);
    }
    directory->entries += header->entries;
    return directory->entries <= ENTRIES_MAX ||
           error_set(error, EFBIG,
                     "%s: its table is one too many: all tables of the disk may have %u entries",
                     layer->path, ENTRIES_MAX);
}

/* The image in a file, on the one below it, which is NULL for the root. */
static Image *open_layer(Image *image, ParallelsDirectory *directory,
                         const ParallelsStorage *storage, const ParallelsFile *file, Image *backing,
                         GError **error)
{
    if (file->plain && backing) {
        error_set(error, EUCLEAN,
                  "%s: the Type of %s is Plain, but its Shot has a parent: must be Compressed",
                  image->path, file->guid);
        return NULL;
    }
    g_autoptr(Store) store = image_open_named(image, file->name, false, NULL, error);
    if (!store) {
        return NULL;
    }
    ImageOpen how = {.format = file->plain ? &format_raw : &format_parallels,
                     .no_lock = image->no_lock};
    g_autoptr(Image) layer = image_open_store(store, &how, backing, error);
    if (!layer || (!file->plain && !check_header(directory, layer, storage, error))) {
        return NULL;
    }
    return g_steal_pointer(&layer);
}

/* How much of its storage the chain holds. Before the disk grew, the last one may have been shorter. */
static bool piece_length(const ParallelsDirectory *directory, const ParallelsStorage *storage,
                         const Image *top, const char *guid, uint64_t *length, GError **error)
{
    const ParallelsDescriptor *descriptor = directory->descriptor;
    bool may_be_shorter = directory->count + 1 == descriptor->storages->len && top->size > 0 &&
                          strcmp(guid, descriptor->top) != 0;
    *length = may_be_shorter ? min_u64(top->size, storage->length) : storage->length;
    return top->size >= *length ||
           error_set(error, EUCLEAN, "%s: holds %" PRIu64 " bytes, but its storage has %" PRIu64,
                     top->path, top->size, storage->length);
}

/* guids: from the top down. */
static bool open_piece(Image *image, ParallelsDirectory *directory, const ParallelsStorage *storage,
                       const GPtrArray *guids, GError **error)
{
    g_autoptr(Image) top = NULL;
    for (unsigned i = guids->len; i > 0; i--) {
        const ParallelsFile *file = parallels_storage_file(storage, guids->pdata[i - 1]);
        if (!file) {
            return error_set(error, EUCLEAN,
                             "%s: the storage with Start %" PRIu64 " has no Image with the GUID %s",
                             image->path, storage->offset / PARALLELS_SECTOR,
                             (const char *)guids->pdata[i - 1]);
        }
        Image *layer = open_layer(image, directory, storage, file, top, error);
        if (!layer) {
            return false;
        }
        image_unref(top);
        top = layer;
    }
    uint64_t length;
    if (!piece_length(directory, storage, top, guids->pdata[0], &length, error)) {
        return false;
    }
    directory->pieces[directory->count++] = (Piece){storage->offset, length, g_steal_pointer(&top)};
    return true;
}

static bool open_pieces(Image *image, ParallelsDirectory *directory, const char *guid,
                        GError **error)
{
    const GPtrArray *storages = directory->descriptor->storages;
    g_autoptr(GPtrArray) guids =
        parallels_descriptor_chain(directory->descriptor, guid, image->path, error);
    if (!guids) {
        return false;
    }
    if ((uint64_t)storages->len * guids->len > PARALLELS_OPEN_MAX) {
        return error_set(error, EFBIG,
                         "%s: has %u storages of %u files each: must be %u files at most",
                         image->path, storages->len, guids->len, PARALLELS_OPEN_MAX);
    }
    directory->pieces = g_new0(Piece, storages->len);
    for (unsigned i = 0; i < storages->len; i++) {
        if (!open_piece(image, directory, storages->pdata[i], guids, error)) {
            return false;
        }
    }
    return true;
}

/* What the files have in common, or the worst of it. */
static void sum_up(Image *image, const ParallelsDirectory *directory, ParallelsHeader *header)
{
    const Piece *last = &directory->pieces[directory->count - 1];
    image->size = last->offset + last->length;
    for (unsigned i = 0; i < directory->count; i++) {
        for (const Image *layer = directory->pieces[i].top; layer; layer = layer->backing) {
            image->allocation_unit = max_u64(image->allocation_unit, layer->allocation_unit);
            if (is_compressed(layer)) {
                const ParallelsHeader *of_layer = &parallels_state(layer)->header;
                header->cluster_size = of_layer->cluster_size;
                header->in_use =
                    of_layer->in_use == PARALLELS_IN_USE ? PARALLELS_IN_USE : header->in_use;
            }
        }
    }
}

ParallelsDirectory *parallels_directory_open(Image *image, ParallelsHeader *header, GError **error)
{
    g_autoptr(ParallelsDirectory) directory = g_new0(ParallelsDirectory, 1);
    directory->descriptor = read_descriptor(image, error);
    if (!directory->descriptor ||
        !open_pieces(image, directory, directory->descriptor->top, error)) {
        return NULL;
    }
    image->unwritable = true;
    if (image->write) {
        error_set(error, ENOTSUP,
                  "%s: a disk of several files with snapshots is only read: open it read-only (-r)",
                  image->path);
        return NULL;
    }
    sum_up(image, directory, header);
    return g_steal_pointer(&directory);
}

/* ---- snapshots ---- */

static bool is_top(const ParallelsDescriptor *descriptor, const char *guid)
{
    return strcmp(guid, descriptor->top) == 0;
}

static const char *find_snapshot(const ParallelsDescriptor *descriptor, const char *name)
{
    unsigned number = 0;
    for (unsigned i = 0; i < descriptor->shots->len; i++) {
        const char *guid = descriptor->shots->pdata[i];
        char text[16];
        if (is_top(descriptor, guid)) {
            continue;
        }
        g_snprintf(text, sizeof text, "%u", ++number);
        if (g_ascii_strcasecmp(name, guid) == 0 || strcmp(name, text) == 0) {
            return guid;
        }
    }
    return NULL;
}

bool parallels_directory_show(Image *image, const char *name, ParallelsHeader *header,
                              GError **error)
{
    ParallelsDirectory *directory = parallels_state(image)->directory;
    const char *guid = find_snapshot(directory->descriptor, name);
    if (!guid) {
        return error_set(error, ENOENT,
                         "%s: there is no snapshot '%s': cownbd snapshot list shows them",
                         image->path, name);
    }
    close_pieces(directory);
    if (!open_pieces(image, directory, guid, error)) {
        return false;
    }
    *header = (ParallelsHeader){0};
    image->allocation_unit = 1;
    sum_up(image, directory, header);
    image->largest_unit = max_u64(image->largest_unit, image->allocation_unit);
    return true;
}

unsigned parallels_directory_snapshots(const Image *image, unsigned most, GVariantBuilder *list)
{
    const ParallelsDescriptor *descriptor = parallels_state(image)->directory->descriptor;
    unsigned count = 0;
    for (unsigned i = 0; i < descriptor->shots->len; i++) {
        const char *guid = descriptor->shots->pdata[i];
        if (is_top(descriptor, guid) || count++ >= most) {
            continue;
        }
        g_autofree char *number = g_strdup_printf("%u", count);
        GVariantBuilder entry;
        g_variant_builder_init(&entry, G_VARIANT_TYPE_VARDICT);
        info_add_text(&entry, "id", number, -1);
        info_add_text(&entry, "name", guid, -1);
        g_variant_builder_add_value(list, g_variant_builder_end(&entry));
    }
    return count;
}

/* ---- map ---- */

static int compare_place(const void *key, const void *item)
{
    uint64_t offset = *(const uint64_t *)key;
    const Piece *piece = item;
    return offset < piece->offset ? -1 : offset - piece->offset >= piece->length;
}

int parallels_directory_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    const ParallelsDirectory *directory = parallels_state(image)->directory;
    const Piece *piece = bsearch(&offset, directory->pieces, directory->count,
                                 sizeof *directory->pieces, compare_place);
    uint64_t inside = offset - piece->offset;
    ExtentList found;
    extent_list_init(&found);
    int r = chain_map(piece->top, inside, min_u64(length, piece->length - inside), MAP_EXTENTS_MAX,
                      &found);
    for (unsigned i = 0; r == 0 && i < found.count; i++) {
        Extent extent = found.items[i];
        bool nobodys = extent.type == EXTENT_ZERO && !extent.image;
        extent.type = nobodys ? EXTENT_UNALLOCATED : extent.type;
        extent.offset += piece->offset;
        extent_list_add(list, &extent);
    }
    extent_list_clear(&found);
    return r;
}

/* ---- check, info ---- */

typedef struct FileCheck {
    CheckResult result;
    CheckResult *whole;
    const Image *file;
} FileCheck;

static void say_of_file(void *opaque, const char *text)
{
    const FileCheck *check = opaque;
    check_result_say(check->whole, "%s: %s", check->file->path, text);
}

static bool check_file(Image *file, CheckResult *whole, GError **error)
{
    FileCheck check = {.whole = whole, .file = file};
    check.result.message = say_of_file;
    check.result.opaque = &check;
    if (!is_compressed(file)) {
        return true; /* its size was compared when it was opened */
    }
    if (!parallels_check(file, CHECK_REPORT_ONLY, &check.result, error)) {
        return false;
    }
    whole->corruptions += check.result.corruptions;
    whole->leaks += check.result.leaks;
    whole->total_clusters += check.result.total_clusters;
    whole->allocated_clusters += check.result.allocated_clusters;
    return true;
}

bool parallels_directory_check(Image *image, CheckResult *result, GError **error)
{
    const ParallelsDirectory *directory = parallels_state(image)->directory;
    for (unsigned i = 0; i < directory->count; i++) {
        for (Image *layer = directory->pieces[i].top; layer; layer = layer->backing) {
            if (!check_file(layer, result, error)) {
                return false;
            }
        }
    }
    return true;
}

static GVariant *layer_info(const Image *layer)
{
    GVariantBuilder data;
    g_variant_builder_init(&data, G_VARIANT_TYPE_VARDICT);
    info_add_text(&data, "filename", layer->path, -1);
    g_variant_builder_add(&data, "{sv}", "format", g_variant_new_string(layer->format->name));
    return g_variant_builder_end(&data);
}

static GVariant *piece_info(const Piece *piece)
{
    GVariantBuilder data, images;
    g_variant_builder_init(&images, G_VARIANT_TYPE("aa{sv}"));
    for (const Image *layer = piece->top; layer; layer = layer->backing) {
        g_variant_builder_add_value(&images, layer_info(layer));
    }
    g_variant_builder_init(&data, G_VARIANT_TYPE_VARDICT);
    g_variant_builder_add(&data, "{sv}", "virtual-size", g_variant_new_uint64(piece->length));
    g_variant_builder_add(&data, "{sv}", "images", g_variant_builder_end(&images));
    return g_variant_builder_end(&data);
}

void parallels_directory_info(const Image *image, GVariantBuilder *data)
{
    const ParallelsDirectory *directory = parallels_state(image)->directory;
    GVariantBuilder list;
    g_variant_builder_init(&list, G_VARIANT_TYPE("aa{sv}"));
    for (unsigned i = 0; i < directory->count; i++) {
        g_variant_builder_add_value(&list, piece_info(&directory->pieces[i]));
    }
    g_variant_builder_add(data, "{sv}", "storages", g_variant_builder_end(&list));
}

uint64_t parallels_directory_allocated_bytes(const Image *image)
{
    const ParallelsDirectory *directory = parallels_state(image)->directory;
    uint64_t sum = store_allocated_bytes(image->store);
    for (unsigned i = 0; i < directory->count; i++) {
        for (const Image *layer = directory->pieces[i].top; layer; layer = layer->backing) {
            sum += image_allocated_bytes(layer);
        }
    }
    return sum;
}
