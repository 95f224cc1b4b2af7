/*
 * parallels: the header.
 *
 *     offset size  meaning (little endian)           offset size  meaning
 *          0   16  "WithoutFreeSpace" or               36    8  sectors of the disk
 *                  "WithouFreSpacExt"                  44    4  who writes: "Ynot", or closed "v2.1", or 0
 *         16    4  version, 2                          48    4  sector of the first cluster
 *         20    8  geometry                            52    4  flags, 1: empty
 *         28    4  sectors of a cluster                56    8  sector of the extensions, or 0
 *         32    4  entries of the table                64       the table
 *
 * With the old magic the disk has 32 bits of sectors, and the first cluster may be left unsaid: it is behind the table
 * then.
 */
#include "formats/parallels.h"

#include <string.h>

#include "base/errors.h"

static bool check_version(const uint8_t *bytes, const char *name, GError **error)
{
    uint32_t in_use = load_le32(bytes + PARALLELS_H_IN_USE);
    if (memcmp(bytes, PARALLELS_MAGIC, PARALLELS_MAGIC_SIZE) != 0 &&
        memcmp(bytes, PARALLELS_MAGIC_OLD, PARALLELS_MAGIC_SIZE) != 0) {
        return error_set(error, EUCLEAN, "%s: magic is wrong: must be %s or %s", name,
                         PARALLELS_MAGIC, PARALLELS_MAGIC_OLD);
    }
    if (load_le32(bytes + PARALLELS_H_VERSION) != PARALLELS_VERSION) {
        return error_set(error, ENOTSUP, "%s: version is %u: must be %u", name,
                         load_le32(bytes + PARALLELS_H_VERSION), PARALLELS_VERSION);
    }
    if (in_use != 0 && in_use != PARALLELS_IN_USE && in_use != PARALLELS_CLOSED) {
        return error_set(error, EUCLEAN, "%s: in_use is 0x%08x: must be 0, 0x%08x or 0x%08x", name,
                         in_use, PARALLELS_IN_USE, PARALLELS_CLOSED);
    }
    return true;
}

static bool check_sizes(const ParallelsHeader *header, uint64_t sectors, const char *name,
                        GError **error)
{
    uint64_t capacity = header->entries * header->cluster_size;
    if (header->cluster_size == 0 || header->cluster_size > PARALLELS_CLUSTER_MAX) {
        return error_set(error, EUCLEAN, "%s: tracks is %" PRIu64 ": must be 1 to %u", name,
                         header->cluster_size / PARALLELS_SECTOR,
                         PARALLELS_CLUSTER_MAX / PARALLELS_SECTOR);
    }
    if (header->entries > BLOCK_TABLE_MAX) {
        return error_set(error, EUCLEAN, "%s: nb_bat_entries is %u: must be at most %u", name,
                         header->entries, BLOCK_TABLE_MAX);
    }
    if (sectors > capacity / PARALLELS_SECTOR) {
        return error_set(error, EUCLEAN,
                         "%s: nb_sectors is %" PRIu64 ": must be at most %" PRIu64
                         ", which its %u clusters hold",
                         name, sectors, capacity / PARALLELS_SECTOR, header->entries);
    }
    return true;
}

static bool check_places(const ParallelsHeader *header, Store *store, const char *name,
                         GError **error)
{
    uint64_t table_end = PARALLELS_HEADER_SIZE + header->entries * UINT64_C(4);
    if (table_end > store_size(store)) {
        return error_set(error, EUCLEAN,
                         "%s: nb_bat_entries is %u: the table must end within the file, which has "
                         "%" PRIu64 " bytes",
                         name, header->entries, store_size(store));
    }
    if (header->data_offset < table_end) {
        return error_set(error, EUCLEAN,
                         "%s: data_off is %" PRIu64
                         ": must be behind the table, which ends at byte %" PRIu64,
                         name, header->data_offset / PARALLELS_SECTOR, table_end);
    }
    if (header->unit == header->cluster_size && header->data_offset % header->cluster_size != 0) {
        return error_set(
            error, EUCLEAN,
            "%s: data_off is %" PRIu64 ": must be a multiple of the cluster's %" PRIu64 " sectors",
            name, header->data_offset / PARALLELS_SECTOR, header->cluster_size / PARALLELS_SECTOR);
    }
    return true;
}

bool parallels_header_read(Store *store, const char *name, ParallelsHeader *header, GError **error)
{
    uint8_t bytes[PARALLELS_HEADER_SIZE];
    if (store_size(store) < sizeof bytes) {
        return error_set(error, EUCLEAN, "%s: image is truncated: it ends inside the header", name);
    }
    int r = store_read(store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", name);
    }
    if (!check_version(bytes, name, error)) {
        return false;
    }
    bool old = memcmp(bytes, PARALLELS_MAGIC_OLD, PARALLELS_MAGIC_SIZE) == 0;
    uint64_t sectors = load_le64(bytes + PARALLELS_H_SECTORS);
    sectors = old ? (uint32_t)sectors : sectors;
    *header = (ParallelsHeader){
        .cluster_size = (uint64_t)load_le32(bytes + PARALLELS_H_TRACKS) * PARALLELS_SECTOR,
        .entries = load_le32(bytes + PARALLELS_H_ENTRIES),
        .in_use = load_le32(bytes + PARALLELS_H_IN_USE),
        .data_offset = (uint64_t)load_le32(bytes + PARALLELS_H_DATA) * PARALLELS_SECTOR,
        .flags = load_le32(bytes + PARALLELS_H_FLAGS),
        .extension = load_le64(bytes + PARALLELS_H_EXTENSION),
    };
    if (!check_sizes(header, sectors, name, error)) {
        return false;
    }
    header->size = sectors * PARALLELS_SECTOR;
    header->unit = old ? PARALLELS_SECTOR : header->cluster_size;
    if (old && header->data_offset == 0) {
        header->data_offset =
            align_up(PARALLELS_HEADER_SIZE + header->entries * UINT64_C(4), PARALLELS_SECTOR);
    }
    return check_places(header, store, name, error);
}

int parallels_set_in_use(Image *image, uint32_t in_use)
{
    uint8_t bytes[4];
    store_le32(bytes, in_use);
    int r = store_write(image->store, bytes, sizeof bytes, PARALLELS_H_IN_USE);
    r = r < 0 ? r : store_sync(image->store);
    if (r == 0) {
        parallels_state(image)->header.in_use = in_use;
    }
    return r;
}
