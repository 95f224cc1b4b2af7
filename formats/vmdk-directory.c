/*
 * vmdk: a sparse extent with another capacity.
 *
 *     larger     what lies behind the end is dropped -> flush
 *                -> entries for more tables, behind those of the directory or in a longer one at the end of the file,
 *                with the new tables of hosted extents -> sync
 *                -> capacity and places of the directories, in the header's first sector -> sync
 *     smaller    capacity in the header -> sync -> what lies behind the end is dropped -> flush -> its space goes
 *
 * The copy of the directory moves with it. The old directory keeps its space, for nothing in the file says that it is
 * free. What is behind the end of the disk never shows: a cut may leave entries there, and the next growth drops
 * whatever it finds.
 *
 * A write of the header that fails leaves unknown which directory counts: then nothing is changed any more.
 */
#include <errno.h>

#include "base/bytes.h"
#include "formats/space.h"
#include "formats/vmdk-impl.h"

#define PIECE (64u << 10) /* bytes of a directory in one write */

VmdkOutline vmdk_outline(const VmdkSparse *sparse)
{
    return (VmdkOutline){
        .size = sparse->size,
        .directory_offset = sparse->directory_offset,
        .directory_length = sparse->directory_length,
        .redundant_offset = sparse->redundant_offset,
        .descriptor_offset = sparse->descriptor_offset,
        .free_offset = sparse->used_end,
    };
}

/* What the cache has of the header and of the directories may be old now. */
static void take_outline(VmdkSparse *sparse, const VmdkOutline *outline)
{
    metacache_forget(sparse->cache, 0, VMDK_SECTOR);
    sparse->size = outline->size;
    sparse->directory_offset = outline->directory_offset;
    sparse->directory_length = outline->directory_length;
    sparse->redundant_offset = outline->redundant_offset;
    sparse->descriptor_offset = outline->descriptor_offset;
}

int vmdk_outline_write(Image *image, VmdkSparse *sparse, const VmdkOutline *outline)
{
    uint8_t sector[VMDK_SECTOR];
    int r = store_read(sparse->store, sector, sizeof sector, 0);
    if (r < 0) {
        return r;
    }
    sparse->set_outline(sparse, outline, sector);
    r = store_write(sparse->store, sector, sizeof sector, 0);
    r = r < 0 ? r : store_sync(sparse->store);
    if (r < 0) {
        vmdk_state(image)->broken = true;
    } else {
        take_outline(sparse, outline);
    }
    return r;
}

/* ---- more tables ---------------------------------------------------------------------------- */

typedef struct Growth {
    VmdkSparse *sparse;
    uint64_t first, count;        /* tables: what is there, what shall be */
    bool moves;                   /* the directories */
    bool makes;                   /* the tables, too */
    uint64_t table_length;        /* bytes */
    uint64_t place, space, taken; /* of all that is new: bytes; taken: so many are given away */
} Growth;

static uint64_t directory_room(const VmdkSparse *sparse)
{
    return align_up(sparse->directory_length, VMDK_SECTOR);
}

static int take_space(Growth *growth)
{
    VmdkSparse *sparse = growth->sparse;
    unsigned copies = sparse->redundant_offset != 0 ? 2 : 1;
    uint64_t directory = growth->moves ? align_up(growth->count * 4, VMDK_SECTOR) : 0;
    uint64_t tables = growth->makes ? (growth->count - growth->first) * growth->table_length : 0;
    bool fresh;
    growth->space = align_up(copies * (directory + tables), sparse->grain);
    int r = growth->space == 0 ? 0 : vmdk_space_take(sparse, growth->space, &growth->place, &fresh);
    return r < 0 || growth->space == 0
               ? r
               : space_make_fresh(sparse->store, growth->place, growth->space, sparse->fresh_start);
}

static uint64_t give_space(Growth *growth, uint64_t length)
{
    uint64_t place = growth->place + growth->taken;
    growth->taken += length;
    return place;
}

/* The entries of the new tables, which lie at `table` one behind the other; 0: there are none. */
static int write_entries(const Growth *growth, uint64_t directory, uint64_t table)
{
    g_autofree uint8_t *piece = g_malloc0(PIECE);
    int r = 0;
    for (uint64_t at = growth->first; r == 0 && at < growth->count; at += PIECE / 4) {
        uint64_t count = min_u64(PIECE / 4, growth->count - at);
        for (uint64_t i = 0; table != 0 && i < count; i++) {
            uint64_t number = at + i - growth->first;
            store_le32(piece + i * 4, (table + number * growth->table_length) / VMDK_SECTOR);
        }
        r = store_write(growth->sparse->store, piece, count * 4, directory + at * 4);
    }
    return r;
}

/* Grains of the new tables below `hidden` are zero grains. */
static int hide(const Growth *growth, uint64_t table, uint64_t hidden)
{
    const VmdkSparse *sparse = growth->sparse;
    uint64_t covers = vmdk_sparse_table_covers(sparse);
    g_autofree uint8_t *ones = g_malloc0(growth->table_length);
    int r = 0;
    for (uint64_t i = growth->first; r == 0 && i < growth->count && i * covers < hidden; i++) {
        uint64_t grains = div_round_up(min_u64(hidden - i * covers, covers), sparse->grain);
        memset(ones, 0, growth->table_length);
        for (uint64_t grain = 0; grain < grains; grain++) {
            store_le32(ones + grain * 4, 1);
        }
        r = store_write(sparse->store, ones, growth->table_length,
                        table + (i - growth->first) * growth->table_length);
    }
    return r;
}

static int extend_directory(Growth *growth, uint64_t *directory, uint64_t hidden)
{
    VmdkSparse *sparse = growth->sparse;
    uint64_t old = *directory, tables = (growth->count - growth->first) * growth->table_length;
    int r = 0;
    if (growth->moves) {
        *directory = give_space(growth, align_up(growth->count * 4, VMDK_SECTOR));
        r = space_copy(sparse->store, old, *directory, growth->first * 4);
    }
    uint64_t table = growth->makes ? give_space(growth, tables) : 0;
    r = r < 0 ? r : write_entries(growth, *directory, table);
    r = r < 0 || table == 0 ? r : hide(growth, table, hidden);
    uint64_t from = align_down(*directory, VMDK_SECTOR);
    metacache_forget(sparse->cache, from,
                     align_up(*directory + growth->count * 4 - from, VMDK_SECTOR));
    return r;
}

int vmdk_directory_grow(VmdkSparse *sparse, uint64_t size, uint64_t hidden, VmdkOutline *outline)
{
    Growth growth = {
        .sparse = sparse,
        .first = vmdk_sparse_tables(sparse),
        .count = div_round_up(size, vmdk_sparse_table_covers(sparse)),
        .makes = sparse->free_offset == 0,
        .table_length = align_up(sparse->entries_per_table * UINT64_C(4), VMDK_SECTOR),
    };
    *outline = vmdk_outline(sparse);
    outline->size = size;
    if (growth.count <= growth.first) {
        return 0;
    }
    if (growth.count > UINT32_MAX) {
        return -EFBIG; /* entries could not say where they are */
    }
    growth.moves = growth.count * 4 > directory_room(sparse);
    int r = take_space(&growth);
    r = r < 0 ? r : extend_directory(&growth, &outline->directory_offset, hidden);
    if (r == 0 && sparse->redundant_offset != 0) {
        r = extend_directory(&growth, &outline->redundant_offset, hidden);
    }
    r = r < 0 ? r : store_sync(sparse->store);
    if (r < 0 && growth.space > 0 && growth.place > 0) {
        vmdk_space_give_back(sparse, growth.place, growth.space);
    }
    outline->directory_length = max_u64(growth.count * 4, sparse->directory_length);
    outline->free_offset = sparse->used_end;
    return r;
}

/* ---- what lies behind the end --------------------------------------------------------------- */

static int drop_grain(VmdkSparse *sparse, uint64_t grain, uint64_t hidden, GArray *dropped)
{
    bool hides = grain * sparse->grain < hidden;
    VmdkPlace place;
    uint32_t entry;
    int r = hides ? vmdk_tables_make(sparse, grain, grain) : 0;
    r = r < 0 ? r : vmdk_entry_look(sparse, grain, &place, &entry);
    if (r < 0 || entry == hides) {
        return r;
    }
    if (vmdk_entry_has_place(sparse, entry)) {
        g_array_append_val(dropped, entry);
    }
    return vmdk_grain_set(sparse, grain, &place, hides);
}

/* A directory may have room for many tables that are not there. */
static int next_table(const VmdkSparse *sparse, uint64_t *grain, uint64_t end, uint64_t hidden)
{
    VmdkPlace place = {0};
    int r = 0;
    while (r == 0 && *grain < end && *grain * sparse->grain >= hidden) {
        r = vmdk_entry_find(sparse, *grain, &place);
        if (r < 0 || place.entry != 0) {
            return r;
        }
        *grain = (*grain / sparse->entries_per_table + 1) * sparse->entries_per_table;
    }
    return r;
}

int vmdk_grains_drop(VmdkSparse *sparse, uint64_t from, uint64_t capacity, uint64_t hidden,
                     GArray *dropped)
{
    uint64_t grain = div_round_up(from, sparse->grain);
    uint64_t end =
        div_round_up(capacity, vmdk_sparse_table_covers(sparse)) * sparse->entries_per_table;
    int r = next_table(sparse, &grain, end, hidden);
    while (r == 0 && grain < end) {
        r = drop_grain(sparse, grain, hidden, dropped);
        grain++;
        if (r == 0 && grain % sparse->entries_per_table == 0) {
            r = next_table(sparse, &grain, end, hidden);
        }
    }
    return r;
}
