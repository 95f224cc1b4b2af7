/*
 * vhdx: which MiB of the file are used.
 *
 * Everything in a vhdx lies at a MiB, so a bit for each says what is free: what an opening finds, and what a discard
 * has given back. Space that entries do not show any more is kept until the flush that makes this durable; then anybody
 * may have it. All space is cleared when it is handed out, so no block's bytes can turn up in another.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "formats/space.h"

static bool is_used(const VhdxState *s, uint64_t mib)
{
    return mib < s->used_count && s->used[mib / 8] >> mib % 8 & 1;
}

static void ensure_count(VhdxState *s, uint64_t count)
{
    uint64_t old = div_round_up(s->used_count, 8), bytes = div_round_up(count, 8);
    if (bytes > old) {
        bytes = max_u64(bytes, old * 2);
        s->used = g_realloc(s->used, bytes);
        memset(s->used + old, 0, bytes - old);
        s->used_count = bytes * 8;
    }
}

static void mark(VhdxState *s, VhdxRange place, bool used)
{
    uint64_t end = (place.offset + place.length) / VHDX_MIB;
    ensure_count(s, end);
    for (uint64_t mib = place.offset / VHDX_MIB; mib < end; mib++) {
        uint8_t bit = 1u << mib % 8;
        s->used[mib / 8] = used ? s->used[mib / 8] | bit : s->used[mib / 8] & ~bit;
    }
    if (!used) {
        s->search_from = min_u64(s->search_from, place.offset / VHDX_MIB);
    }
}

bool vhdx_space_start(Image *image, GError **error)
{
    VhdxState *s = image->state;
    uint64_t size = vhdx_file_size(image, s);
    if (size > VHDX_FILE_MAX) {
        return error_set(error, EFBIG,
                         "%s: the file has %" PRIu64 " bytes: at most %" PRIu64
                         " when it is written to",
                         image->path, size, VHDX_FILE_MAX);
    }
    g_clear_pointer(&s->used, g_free);
    s->used_count = s->search_from = 0;
    s->fresh_start = size;
    mark(s, (VhdxRange){0, VHDX_MIB}, true);
    for (guint i = 0; i < s->regions->len; i++) {
        mark(s, g_array_index(s->regions, VhdxRange, i), true);
    }
    return true;
}

VhdxClaim vhdx_space_claim(Image *image, VhdxRange place)
{
    VhdxState *s = image->state;
    uint64_t size = align_up(vhdx_file_size(image, s), VHDX_MIB);
    if (!range_within(place.offset, place.length, size)) {
        return VHDX_PLACE_OUTSIDE;
    }
    for (uint64_t at = place.offset; at < place.offset + place.length; at += VHDX_MIB) {
        if (is_used(s, at / VHDX_MIB)) {
            return VHDX_PLACE_TAKEN;
        }
    }
    mark(s, place, true);
    return VHDX_PLACE_GOOD;
}

/* The first MiB of so many that are free; perhaps some behind the end of the file. */
static uint64_t find_room(VhdxState *s, uint64_t count)
{
    uint64_t at = s->search_from, run = 0;
    while (run < count && at < s->used_count) {
        run = is_used(s, at) ? 0 : run + 1;
        at++;
    }
    uint64_t found = at - run;
    s->search_from = found;
    return found;
}

VhdxReserved *vhdx_space_reserve(Image *image, uint32_t index, uint64_t length, int *result)
{
    VhdxState *s = image->state;
    VhdxReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(index));
    *result = 0;
    if (reserved) {
        *result = reserved->spoiled ? -EIO : 0;
        return reserved->spoiled ? NULL : reserved;
    }
    VhdxRange place = {find_room(s, length / VHDX_MIB) * VHDX_MIB, length};
    uint64_t end = place.offset + length;
    *result = end > VHDX_FILE_MAX ? -EFBIG : space_grow(image->store, end, VHDX_MIB);
    if (*result == 0) {
        *result = space_make_fresh(image->store, place.offset, length, s->fresh_start);
    }
    if (*result < 0) {
        return NULL;
    }
    mark(s, place, true);
    s->fresh_start = max_u64(s->fresh_start, end);
    s->moved = true;
    reserved = g_new0(VhdxReserved, 1);
    reserved->place = place;
    g_hash_table_insert(s->reserved, GUINT_TO_POINTER(index), reserved);
    return reserved;
}

void vhdx_space_give_back(VhdxState *s, uint32_t index)
{
    const VhdxReserved *reserved = g_hash_table_lookup(s->reserved, GUINT_TO_POINTER(index));
    if (reserved) {
        mark(s, reserved->place, false);
        g_hash_table_remove(s->reserved, GUINT_TO_POINTER(index));
    }
}

void vhdx_space_free(VhdxState *s, VhdxRange place)
{
    s->moved = true;
    g_array_append_val(s->freed, place);
}

void vhdx_space_flushed(VhdxState *s)
{
    for (guint i = 0; i < s->freed->len; i++) {
        mark(s, g_array_index(s->freed, VhdxRange, i), false);
    }
    g_array_set_size(s->freed, 0);
}

typedef struct Scan {
    Image *image;
    uint64_t place; /* that cannot be */
    VhdxClaim claim;
} Scan;

static int scan_entry(void *opaque, const VhdxEntry *entry)
{
    Scan *scan = opaque;
    if (!vhdx_has_place(entry->value)) {
        return 0;
    }
    uint64_t block_size = vhdx_state(scan->image)->block_size;
    VhdxRange place = {vhdx_entry_offset(entry->value), entry->is_bits ? VHDX_MIB : block_size};
    scan->place = place.offset;
    scan->claim = vhdx_space_claim(scan->image, place);
    return scan->claim == VHDX_PLACE_GOOD ? 0 : -EUCLEAN;
}

bool vhdx_space_scan(Image *image, GError **error)
{
    Scan scan = {.image = image, .claim = VHDX_PLACE_GOOD};
    if (!vhdx_space_start(image, error)) {
        return false;
    }
    int r = vhdx_walk(image, scan_entry, &scan);
    if (scan.claim != VHDX_PLACE_GOOD) {
        return error_set(error, EUCLEAN,
                         "%s: the table has a block at %" PRIu64
                         ", %s: open it read-only, or run check --repair=all",
                         image->path, scan.place,
                         scan.claim == VHDX_PLACE_OUTSIDE ? "which is not in the file"
                                                          : "where something else lies");
    }
    return r == 0 || error_set_errno(error, -r, "%s: cannot read the table", image->path);
}

uint64_t vhdx_space_end(const VhdxState *s)
{
    uint64_t mib = s->used_count;
    while (mib > 0 && !is_used(s, mib - 1)) {
        mib--;
    }
    return mib * VHDX_MIB;
}
