/*
 * parallels: create, with the newer magic.
 *
 *     header | table | clusters, from a whole cluster on
 */
#include "formats/parallels.h"

#include <string.h>

#include "base/errors.h"
#include "formats/option.h"

#define CLUSTER_SIZE_DEFAULT (1u << 20)
#define CLUSTER_SIZE_MIN     4096u
#define HEADS                16u /* qemu's geometry; nobody goes by it */
#define SECTORS              32u

const FormatOption parallels_create_options[] = {
    {"cluster_size", "size of a cluster: 4k to 256M, a power of two (default 1M)"},
    {NULL, NULL},
};

static bool plan(ParallelsHeader *header, const FormatCreate *how, GError **error)
{
    const char *text = option_lookup(how->options, "cluster_size");
    uint64_t size = align_up(min_u64(how->size, INT64_MAX), PARALLELS_SECTOR);
    uint64_t cluster = CLUSTER_SIZE_DEFAULT;
    if (text && (!option_parse_size(text, &cluster) || !is_power_of_two(cluster) ||
                 cluster < CLUSTER_SIZE_MIN || cluster > PARALLELS_CLUSTER_MAX)) {
        return error_set(error, EINVAL,
                         "cluster_size is '%s': must be a power of two from 4k to 256M", text);
    }
    if (how->backing_name) {
        return error_set(error, EINVAL,
                         "a parallels image cannot have a backing file: leave out -b");
    }
    uint64_t clusters = div_round_up(size, cluster);
    if (clusters > BLOCK_TABLE_MAX) {
        return error_set(error, EFBIG,
                         "image size %" PRIu64 " is too large for cluster_size %" PRIu64
                         ": must be at most %" PRIu64,
                         size, cluster, cluster * BLOCK_TABLE_MAX);
    }
    *header = (ParallelsHeader){
        .size = size,
        .cluster_size = cluster,
        .entries = clusters,
        .data_offset = align_up(PARALLELS_HEADER_SIZE + clusters * 4, cluster),
    };
    return true;
}

static void pack(const ParallelsHeader *header, uint8_t *bytes)
{
    uint64_t sectors = header->size / PARALLELS_SECTOR;
    memcpy(bytes, PARALLELS_MAGIC, PARALLELS_MAGIC_SIZE);
    store_le32(bytes + PARALLELS_H_VERSION, PARALLELS_VERSION);
    store_le32(bytes + PARALLELS_H_HEADS, HEADS);
    store_le32(bytes + PARALLELS_H_CYLINDERS, min_u64(sectors / HEADS / SECTORS, UINT32_MAX));
    store_le32(bytes + PARALLELS_H_TRACKS, header->cluster_size / PARALLELS_SECTOR);
    store_le32(bytes + PARALLELS_H_ENTRIES, header->entries);
    store_le64(bytes + PARALLELS_H_SECTORS, sectors);
    store_le32(bytes + PARALLELS_H_IN_USE, PARALLELS_CLOSED);
    store_le32(bytes + PARALLELS_H_DATA, header->data_offset / PARALLELS_SECTOR);
}

/* The store is empty: what is not written reads as zeroes, which all of the table is. */
bool parallels_create(Store *store, const FormatCreate *how, GError **error)
{
    ParallelsHeader header = {0};
    uint8_t bytes[PARALLELS_HEADER_SIZE] = {0};
    if (!plan(&header, how, error)) {
        return false;
    }
    pack(&header, bytes);
    int r = store_truncate(store, header.data_offset);
    r = r < 0 ? r : store_sync(store);
    r = r < 0 ? r : store_write(store, bytes, sizeof bytes, 0);
    r = r < 0 ? r : store_sync(store);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the image", store->name);
}

bool parallels_create_like(const Image *image, GHashTable *options, GError **error)
{
    if (parallels_state(image)->directory) {
        return error_set(error, ENOTSUP,
                         "%s: a disk of several files is not made again: convert it", image->path);
    }
    g_hash_table_insert(options, g_strdup("cluster_size"),
                        g_strdup_printf("%" PRIu64, parallels_state(image)->header.cluster_size));
    return true;
}

bool parallels_measure(const FormatCreate *how, FormatMeasure *measure, GError **error)
{
    ParallelsHeader header = {0};
    if (!plan(&header, how, error)) {
        return false;
    }
    measure->fully_allocated = header.data_offset + header.entries * header.cluster_size;
    measure->required = header.data_offset + measure->data(measure->opaque, header.cluster_size);
    return true;
}
