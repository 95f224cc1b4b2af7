/*
 * qcow2: clusters that are written compressed.
 *
 *     host clusters:  |AAAAABBBCCCCCCC|CCCDDDDDDDD....|      A to D: one guest cluster each
 *                                              ^ packed_end
 *
 * Stored bytes lie one behind the other, at any byte; those of one guest cluster may go on in the
 * next host cluster, where that happens to be the next one of the file. A host cluster counts a
 * reference for each guest cluster that has a byte of it, so it is free again when the last of them
 * has gone.
 *
 * What must stay true: packed_end lies in, or right behind, a cluster that this image has
 * references to; whoever frees that cluster (qcow2_space_freed) resets it.
 */
#include "formats/qcow2.h"

#include "formats/allocation.h"
#include "formats/deflate.h"

#define WINDOW_BITS 12 /* the specification's: readers keep 4 KiB */
#define SECTOR      512

int qcow2_encode(Image *image, const uint8_t *unit, uint32_t unit_length, uint8_t *stored,
                 uint32_t room)
{
    const Qcow2State *s = image->state;
    if (s->header.compression_type == QCOW2_COMPRESSION_ZSTD) {
        return deflate_unit_zstd(unit, unit_length, stored, room);
    }
    return deflate_unit(unit, unit_length, stored, room, WINDOW_BITS, DEFLATE_RAW);
}

/* Bytes that are left in the cluster of packed_end; 0 where nothing more may go there. */
static int packed_room(Image *image, uint64_t *room)
{
    const Qcow2State *s = image->state;
    uint64_t used = s->packed_end % s->cluster_size, references;
    *room = 0;
    if (used == 0) {
        return 0;
    }
    int r = qcow2_refcount_get(image, s->packed_end >> s->cluster_bits, &references);
    if (r == 0 && references > 0 && references < s->refcount_max) {
        *room = s->cluster_size - used;
    }
    return r;
}

/* Finds the place of `length` bytes and counts the references. */
static int reserve_bytes(Image *image, uint32_t length, uint64_t *host)
{
    Qcow2State *s = image->state;
    uint64_t room, references;
    int r = packed_room(image, &room);
    Qcow2Run run = {0, 0};
    if (r == 0 && length > room) {
        bool fresh;
        r = qcow2_alloc_run(image, 1, &run, &fresh); /* may flush, and free what packed_end is in */
        r = r < 0 ? r : packed_room(image, &room);
    }
    if (r < 0) {
        qcow2_alloc_return(image, run);
        return r;
    }
    uint64_t fresh_cluster = run.first << s->cluster_bits;
    bool goes_on = run.count == 0 || (room > 0 && s->packed_end + room == fresh_cluster);
    *host = goes_on ? s->packed_end : fresh_cluster;
    if (goes_on) {
        uint64_t cluster = s->packed_end >> s->cluster_bits;
        r = qcow2_refcount_get(image, cluster, &references);
        r = r < 0 ? r : qcow2_refcount_set(image, cluster, references + 1);
    }
    if (r < 0) {
        qcow2_alloc_return(image, run);
    }
    return r;
}

int qcow2_compressed_reserve(Image *image, Allocation *a)
{
    Qcow2State *s = image->state;
    uint64_t host;
    int r = reserve_bytes(image, a->stored_length, &host);
    if (r < 0) {
        return r;
    }
    s->packed_end = host + a->stored_length;
    allocation_add_encoded(image, a, host);
    return 0;
}

bool qcow2_compressed_entry(const Qcow2State *s, const Extent *extent, uint64_t *entry)
{
    uint64_t last = extent->host_offset + extent->stored_length - 1;
    uint64_t more_sectors = last / SECTOR - extent->host_offset / SECTOR;
    uint32_t bits = qcow2_compressed_offset_bits(s);
    *entry = QCOW2_COMPRESSED | more_sectors << bits | extent->host_offset;
    return last < UINT64_C(1) << bits;
}
