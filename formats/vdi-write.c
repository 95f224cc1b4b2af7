/*
 * vdi: allocate, commit, abandon, unmap, flush, finish.
 *
 *     allocate   the next block of the file, kept in `reserved` until it is committed
 *     (the engine writes the data)
 *     commit     the table's entry, in memory
 *     flush      the header's number of blocks, data -> sync -> table -> sync
 *
 * VirtualBox puts new blocks where the header's number says. So that number is never too small on
 * the disk: it is durable before the table shows a block. That it is too large after a power cut
 * costs space, and is no damage.
 *
 * Space is handed out once. A discard gives the bytes of a block back to the host and leaves the
 * block where it is, so no block's bytes can turn up in another.
 */
#include "formats/vdi.h"

#include <errno.h>
#include <string.h>

#include "base/errors.h"
#include "base/log.h"
#include "formats/allocation.h"
#include "formats/space.h"

static void update_dirty(VdiState *s)
{
    s->dirty = block_table_is_dirty(s->table);
}

bool vdi_is_dirty(const Image *image)
{
    return vdi_state(image)->dirty;
}

/* ---- space ---- */

static uint64_t end_of_place(const VdiState *s, uint32_t place)
{
    return s->header.data_offset + (place + UINT64_C(1)) * s->stride;
}

int vdi_reserve(Image *image, uint32_t block, uint32_t *place, bool *fresh)
{
    VdiState *s = image->state;
    VdiReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(block));
    if (!reserved) {
        uint32_t next = s->next_place;
        int r =
            next >= VDI_ZERO ? -EFBIG : space_grow(image->store, end_of_place(s, next), s->stride);
        if (r == 0) {
            r = space_make_fresh(image->store, end_of_place(s, next) - s->stride, s->stride,
                                 s->fresh_start);
        }
        if (r < 0) {
            return r;
        }
        s->next_place++;
        reserved = g_new0(VdiReserved, 1);
        reserved->place = next;
        g_hash_table_insert(s->reserved, GUINT_TO_POINTER(block), reserved);
    }
    *place = reserved->place;
    *fresh = !reserved->touched;
    return 0;
}

void vdi_link(VdiState *s, uint32_t block, uint32_t place)
{
    block_table_set(s->table, block, place);
    g_hash_table_remove(s->reserved, GUINT_TO_POINTER(block));
}

/* ---- allocate, commit, abandon ---- */

/* Takes back what was reserved for the range from the place `first` on: nothing was written there,
 * and nobody has reserved anything since. */
static void give_back(VdiState *s, const Allocation *a, uint32_t first)
{
    for (uint64_t at = a->offset; at < a->offset + a->length; at += s->header.block_size) {
        gpointer block = GUINT_TO_POINTER((uint32_t)(at / s->header.block_size));
        const VdiReserved *reserved = g_hash_table_lookup(s->reserved, block);
        if (reserved && reserved->place >= first) {
            g_hash_table_remove(s->reserved, block);
        }
    }
    s->next_place = first;
}

/* All of it or nothing. */
static int reserve(Image *image, Allocation *a)
{
    VdiState *s = image->state;
    uint32_t first = s->next_place;
    uint64_t offset = a->offset, end = a->offset + a->length;
    int r = 0;
    while (r == 0 && offset < end) {
        uint32_t place;
        bool fresh;
        r = vdi_reserve(image, offset / s->header.block_size, &place, &fresh);
        if (r == 0) {
            uint64_t length = min_u64(s->header.block_size, end - offset);
            allocation_add(image, a, image->store, vdi_host_offset(s, place), length, fresh);
        }
        offset += s->header.block_size;
    }
    if (r < 0) {
        give_back(s, a, first);
    }
    return r;
}

int vdi_allocate(Image *image, Allocation **list, unsigned count)
{
    return allocation_reserve_all(image, list, count, vdi_state(image)->broken, reserve);
}

int vdi_commit(Image *image, Allocation **list, unsigned count)
{
    VdiState *s = image->state;
    for (unsigned i = 0; i < count; i++) {
        const Allocation *a = list[i];
        list[i]->result = 0;
        for (uint64_t at = a->offset; at < a->offset + a->length; at += s->header.block_size) {
            uint32_t block = at / s->header.block_size;
            const VdiReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(block));
            vdi_link(s, block, reserved->place);
        }
    }
    update_dirty(s);
    return 0;
}

/* The space stays with its block: whatever a failed write left there was meant for that place. */
void vdi_abandon(Image *image, Allocation **list, unsigned count)
{
    VdiState *s = image->state;
    for (unsigned i = 0; i < count; i++) {
        const Allocation *a = list[i];
        for (uint64_t at = a->offset; at < a->offset + a->length; at += s->header.block_size) {
            uint32_t block = at / s->header.block_size;
            VdiReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(block));
            if (reserved) {
                reserved->touched = true;
            }
        }
        extent_list_reset(&list[i]->extents);
    }
}

/* ---- unmap ---- */

/* What is not there becomes zeroes where a parent may show; what is there is punched. */
static int unmap_block(Image *image, uint32_t block, uint64_t length, StorePunch how)
{
    VdiState *s = image->state;
    uint32_t entry = block_table_get(s->table, block);
    if (vdi_is_place(entry)) {
        uint64_t host = vdi_host_offset(s, entry);
        return store_punch(image->store, host, length, how);
    }
    if (entry == VDI_UNALLOCATED && (image->backing || !vdi_uuid_is_null(s->header.link))) {
        block_table_set(s->table, block, VDI_ZERO);
    }
    return 0;
}

int vdi_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    VdiState *s = image->state;
    uint64_t end = offset + length;
    StorePunch how = flags & UNMAP_KEEP_SPACE ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE;
    int r = s->broken;
    if (flags & UNMAP_BACKING) {
        return -ENOTSUP; /* blocks stay where they are */
    }
    while (r == 0 && offset < end) {
        uint64_t part = min_u64(s->header.block_size, end - offset);
        r = unmap_block(image, offset / s->header.block_size, part, how);
        offset += part;
    }
    update_dirty(s);
    if (r == -ENOTSUP && !(flags & UNMAP_ZERO)) {
        return 0; /* a discard is advice: keeping the bytes is a right answer */
    }
    return r;
}

/* ---- flush ---- */

static int write_number(Image *image, uint32_t number)
{
    uint8_t bytes[4];
    store_le32(bytes, number);
    return store_write(image->store, bytes, sizeof bytes, VDI_H_ALLOCATED);
}

/* The number of blocks, before the table shows them. */
static int write_allocated(Image *image)
{
    VdiState *s = image->state;
    int r = 0;
    if (s->allocated_on_disk != s->next_place) {
        r = write_number(image, s->next_place);
    }
    r = r < 0 ? r : store_sync(image->store);
    if (r == 0) {
        s->allocated_on_disk = s->next_place;
    }
    return r;
}

int vdi_flush(Image *image)
{
    VdiState *s = image->state;
    int r = s->broken;
    if (r == 0) {
        r = s->dirty ? write_allocated(image) : store_sync(image->store);
    }
    r = r < 0 ? r : block_table_flush(s->table);
    if (r < 0) {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    update_dirty(s);
    return r;
}

/* ---- start and end ---- */

/* Sees that every block lies in the file, alone, and finds the end of what is used. */
static bool scan(const Image *image, GError **error)
{
    VdiState *s = image->state;
    uint32_t count;
    g_autofree uint32_t *places = block_table_sorted(s->table, VDI_UNALLOCATED, VDI_ZERO, &count);
    for (uint32_t i = 1; i < count; i++) {
        if (places[i] == places[i - 1]) {
            return error_set(error, EUCLEAN,
                             "%s: block %u of the file is used twice: open it read-only, or run "
                             "check --repair=all",
                             image->path, places[i]);
        }
    }
    s->next_place = count > 0 ? places[count - 1] + 1 : 0;
    if (count > 0 && end_of_place(s, s->next_place - 1) > store_size(image->store)) {
        return error_set(error, EUCLEAN,
                         "%s: block %u of the file lies behind its end: open it read-only, or run "
                         "check --repair=all",
                         image->path, s->next_place - 1);
    }
    return true;
}

/* Children must see that this image is no longer what it was. */
static int mark_modified(Image *image)
{
    VdiHeader *header = &vdi_state(image)->header;
    if (image->keep_identity) {
        return 0;
    }
    if (!vdi_uuid_make(header->modified, NULL)) {
        return -EIO;
    }
    int r = store_write(image->store, header->modified, VDI_UUID_SIZE, VDI_H_MODIFIED);
    return r < 0 ? r : store_sync(image->store);
}

bool vdi_start_writing(Image *image, GError **error)
{
    VdiState *s = image->state;
    if (image->repair) {
        return true; /* check looks at everything itself, and mends it */
    }
    if (!scan(image, error)) {
        return false;
    }
    s->allocated_on_disk = s->header.allocated;
    s->size_at_open = s->fresh_start = store_size(image->store);
    int r = mark_modified(image);
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot write the UUID of the last change", image->path);
}

/* Cuts off what was grown ahead of need, and says the true number of blocks. What the file had when
 * it was opened is left alone. */
int vdi_finish(Image *image)
{
    VdiState *s = image->state;
    if (image->repair) {
        return 0;
    }
    int r = vdi_is_dirty(image) || s->broken ? vdi_flush(image) : 0;
    if (r < 0 || !scan(image, NULL)) {
        return r;
    }
    g_hash_table_remove_all(s->reserved);
    if (s->allocated_on_disk != s->next_place) {
        r = write_allocated(image);
    }
    uint64_t end = s->next_place > 0 ? end_of_place(s, s->next_place - 1) : s->header.data_offset;
    end = max_u64(end, s->size_at_open);
    if (r < 0 || end >= store_size(image->store)) {
        return r;
    }
    r = store_truncate(image->store, end);
    return r < 0 ? r : store_sync(image->store);
}
