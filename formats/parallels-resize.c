/*
 * parallels: a larger disk.
 *
 *     the rest of the last cluster is cleared, entries behind the end are dropped -> flush
 *     -> clusters in the way of a longer table are copied to the end of the file -> flush
 *     -> empty entries where they were -> sync -> size, entries and first cluster, in the header's sector -> sync
 *
 * Places are counted from the start of the file, so what is not in the way stays where it is. The table grows by whole
 * clusters; what it leaves of the last of them nobody uses. There are no smaller disks: nothing records what would be
 * free then.
 *
 * A write of the header that fails leaves unknown which size the disk has; the file is right with either.
 */
#include "formats/parallels.h"

#include "base/errors.h"
#include "formats/space.h"

/* What the cluster that the end of the disk cuts holds behind the end, where the file may end, too. */
static int clear_last(Image *image)
{
    const ParallelsState *s = parallels_state(image);
    uint64_t cluster = s->header.cluster_size, used = image->size % cluster;
    uint32_t entry = used == 0 ? 0 : block_table_get(s->table, image->size / cluster);
    if (entry == 0) {
        return 0;
    }
    uint64_t end = entry * s->header.unit + cluster;
    int r = store_size(image->store) < end ? store_truncate(image->store, end) : 0;
    return r < 0
               ? r
               : space_make_fresh(image->store, end - (cluster - used), cluster - used, UINT64_MAX);
}

static void drop_behind(Image *image)
{
    ParallelsState *s = parallels_state(image);
    uint32_t first = div_round_up(image->size, s->header.cluster_size);
    for (uint32_t block = first; block < s->header.entries; block++) {
        if (block_table_get(s->table, block) != 0) {
            block_table_set(s->table, block, 0);
        }
    }
}

/* Clusters that begin before `end` go to the end of the file; durable. */
static int move_clusters(Image *image, uint64_t end)
{
    ParallelsState *s = parallels_state(image);
    uint64_t cluster = s->header.cluster_size, to;
    int r = 0;
    if (s->used_end < end) {
        s->used_end = end;
    }
    for (uint32_t block = 0; r == 0 && block < s->header.entries; block++) {
        uint64_t from = block_table_get(s->table, block) * s->header.unit;
        if (from == 0 || from >= end) {
            continue;
        }
        r = parallels_space_take(image, cluster, &to);
        r = r < 0 ? r : space_copy(image->store, from, to, cluster);
        if (r == 0) {
            block_table_set(s->table, block, to / s->header.unit);
        }
    }
    return r < 0 ? r : parallels_flush(image);
}

static int write_header(Image *image, const ParallelsHeader *header)
{
    uint8_t bytes[PARALLELS_HEADER_SIZE];
    int r = store_read(image->store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return r;
    }
    store_le32(bytes + PARALLELS_H_ENTRIES, header->entries);
    store_le64(bytes + PARALLELS_H_SECTORS, header->size / PARALLELS_SECTOR);
    store_le32(bytes + PARALLELS_H_DATA, header->data_offset / PARALLELS_SECTOR);
    r = store_write(image->store, bytes, sizeof bytes, 0);
    return r < 0 ? r : store_sync(image->store);
}

/* The header, and a table of so many entries, of which the new ones are empty. */
static int change_table(Image *image, ParallelsHeader *header)
{
    ParallelsState *s = parallels_state(image);
    BlockTable *table = block_table_resized(s->table, PARALLELS_HEADER_SIZE, header->entries, 0);
    int r = table ? block_table_write(table) : -ENOMEM;
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : write_header(image, header);
    if (r < 0) {
        block_table_free(table);
        return r;
    }
    block_table_free(s->table);
    s->table = table;
    s->header = *header;
    image->size = header->size;
    return 0;
}

static int grow(Image *image, uint64_t size)
{
    ParallelsState *s = parallels_state(image);
    ParallelsHeader header = s->header;
    header.size = size;
    header.entries = max_u64(div_round_up(size, header.cluster_size), header.entries);
    uint64_t table_end = PARALLELS_HEADER_SIZE + header.entries * UINT64_C(4);
    if (table_end > header.data_offset) {
        header.data_offset += align_up(table_end - header.data_offset, header.cluster_size);
    }
    int r = clear_last(image);
    drop_behind(image);
    r = r < 0 ? r : parallels_flush(image);
    r = r < 0 || header.data_offset == s->header.data_offset
            ? r
            : move_clusters(image, header.data_offset);
    return r < 0 ? r : change_table(image, &header);
}

/* An entry counts with 32 bits, and so does the old magic the sectors of the disk; the first cluster does in any. */
static uint64_t largest_size(const ParallelsHeader *header)
{
    uint64_t most = header->cluster_size * BLOCK_TABLE_MAX;
    return header->unit == PARALLELS_SECTOR ? min_u64(most, (uint64_t)UINT32_MAX * PARALLELS_SECTOR)
                                            : most;
}

bool parallels_resize(Image *image, uint64_t size, GError **error)
{
    const ParallelsState *s = parallels_state(image);
    uint64_t most = largest_size(&s->header);
    if (size < image->size) {
        return error_set(error, ENOTSUP,
                         "%s: a parallels image cannot become smaller: must be at least %" PRIu64,
                         image->path, image->size);
    }
    size = align_up(size, PARALLELS_SECTOR);
    if (size > most) {
        return error_set(error, EFBIG,
                         "%s: size is %" PRIu64 ": must be at most %" PRIu64
                         " with clusters of %" PRIu64 " bytes",
                         image->path, size, most, s->header.cluster_size);
    }
    int r = grow(image, size);
    return r == 0 || error_set_errno(error, -r, "%s: cannot make the disk %" PRIu64 " bytes",
                                     image->path, size);
}
