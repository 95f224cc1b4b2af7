/*
 * vhdx: check and repair.
 *
 *     region table     one of the two is damaged ............... written anew from the other
 *     table            a state that there is not ............... the block is given up
 *                      a block, or sector bits, that are not in
 *                      the file or lie on header or regions .... the same
 *                      a mixture with the parent, and no parent,
 *                      or no sector bits ....................... the block is given up
 *                      two blocks that share space ............. the second gets a copy of its own
 *     space            behind the last block ................... cut off
 *
 * First every place is claimed by who comes first, then copies are made, so that a copy lies on nobody's place. What is
 * free between blocks is no damage: the next writer takes it.
 *
 * What is written goes through the log like any other change.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/space.h"

typedef struct Check {
    Image *image;
    VhdxState *s;
    CheckResult *result;
    CheckRepair repair;
    GArray *shared; /* VhdxEntry: lie where something else does */
    uint64_t size;  /* of the file: copies take no more in all */
    uint64_t copied;
} Check;

static uint64_t length_of(const Check *check, const VhdxEntry *entry)
{
    return entry->is_bits ? VHDX_MIB : check->s->block_size;
}

static const char *kind_of(const VhdxEntry *entry)
{
    return entry->is_bits ? "sector bits of block" : "block";
}

static int give_up(const Check *check, const VhdxEntry *entry)
{
    bool mend = check_result_corruption(check->result, check->repair);
    return mend ? vhdx_entry_set(check->image, entry->index, VHDX_NOT_PRESENT) : 0;
}

static bool is_state(const Check *check, const VhdxEntry *entry)
{
    VhdxBlockState state = vhdx_entry_state(entry->value);
    if (entry->is_bits) {
        return state == VHDX_NOT_PRESENT || state == VHDX_PRESENT;
    }
    return state <= VHDX_UNMAPPED || state == VHDX_PRESENT ||
           (state == VHDX_PARTIAL && check->s->has_parent);
}

/* The file was cut off inside what the entry names; who reads it finds zeroes there. */
static int check_whole(const Check *check, const VhdxEntry *entry)
{
    Store *store = check->image->store;
    uint64_t end = vhdx_entry_offset(entry->value) + length_of(check, entry);
    if (end <= vhdx_file_size(check->image, check->s)) {
        return 0;
    }
    check_result_say(check->result, "%s %u is at %" PRIu64 ", and the file ends inside of it",
                     kind_of(entry), entry->block, vhdx_entry_offset(entry->value));
    bool mend = check_result_corruption(check->result, check->repair);
    return mend && store_size(store) < end ? store_truncate(store, end) : 0;
}

/* Claims the place of each entry. */
static int visit(void *opaque, const VhdxEntry *entry)
{
    const Check *check = opaque;
    uint64_t offset = vhdx_entry_offset(entry->value);
    if (!is_state(check, entry)) {
        check_result_say(check->result, "%s %u is in state %u, which there is not here",
                         kind_of(entry), entry->block, vhdx_entry_state(entry->value));
        return give_up(check, entry);
    }
    if (!vhdx_has_place(entry->value)) {
        return 0;
    }
    check->result->allocated_clusters += !entry->is_bits;
    VhdxClaim claim = vhdx_space_claim(check->image, (VhdxRange){offset, length_of(check, entry)});
    if (claim == VHDX_PLACE_TAKEN) {
        g_array_append_val(check->shared, *entry);
    }
    if (claim == VHDX_PLACE_OUTSIDE) {
        check_result_say(check->result, "%s %u is at %" PRIu64 ", which is not in the file",
                         kind_of(entry), entry->block, offset);
        return give_up(check, entry);
    }
    return claim == VHDX_PLACE_GOOD ? check_whole(check, entry) : 0;
}

static bool is_in_region(const Check *check, const VhdxEntry *entry)
{
    uint64_t offset = vhdx_entry_offset(entry->value), length = length_of(check, entry);
    bool meets = offset < VHDX_MIB;
    for (guint i = 0; !meets && i < check->s->regions->len; i++) {
        const VhdxRange *region = &g_array_index(check->s->regions, VhdxRange, i);
        meets = ranges_overlap(offset, length, region->offset, region->length);
    }
    return meets;
}

/* The bytes to a place of their own. In all no more than the file has: a small file could make a
 * huge one otherwise. */
static int copy_place(Check *check, const VhdxEntry *entry)
{
    uint64_t length = length_of(check, entry);
    int r;
    check->copied += length;
    if (check->copied > check->size) {
        return -EFBIG;
    }
    const VhdxReserved *reserved = vhdx_space_reserve(check->image, entry->index, length, &r);
    if (!reserved) {
        return r;
    }
    uint64_t to = reserved->place.offset;
    g_hash_table_remove(check->s->reserved, GUINT_TO_POINTER(entry->index));
    r = space_copy(check->image->store, vhdx_entry_offset(entry->value), to, length);
    VhdxBlockState state = vhdx_entry_state(entry->value);
    return r < 0 ? r : vhdx_entry_set(check->image, entry->index, to | state);
}

static int check_shared(Check *check)
{
    int r = 0;
    for (guint i = 0; r == 0 && i < check->shared->len; i++) {
        const VhdxEntry *entry = &g_array_index(check->shared, VhdxEntry, i);
        bool in_region = is_in_region(check, entry);
        check_result_say(check->result, "%s %u is at %" PRIu64 ", %s", kind_of(entry), entry->block,
                         vhdx_entry_offset(entry->value),
                         in_region ? "on top of headers or tables" : "where another block lies");
        if (in_region) {
            r = give_up(check, entry);
        } else if (check_result_corruption(check->result, check->repair)) {
            r = copy_place(check, entry);
        }
    }
    return r;
}

/* Blocks that are a mixture need their sector bits. */
static int visit_partial(void *opaque, const VhdxEntry *entry)
{
    const Check *check = opaque;
    uint64_t bits;
    if (entry->is_bits || vhdx_entry_state(entry->value) != VHDX_PARTIAL || !check->s->has_parent) {
        return 0;
    }
    int r = vhdx_entry_get(check->image, vhdx_bits_entry(check->s, entry->block), &bits);
    if (r < 0 || vhdx_entry_state(bits) == VHDX_PRESENT) {
        return r;
    }
    check_result_say(check->result, "block %u has no sector bits", entry->block);
    return give_up(check, entry);
}

static int check_region_tables(const Check *check)
{
    VhdxState *s = check->s;
    if (s->regions_bad == 0) {
        return 0;
    }
    check_result_say(check->result, "region table %u is damaged", s->regions_bad);
    if (!check_result_corruption(check->result, check->repair)) {
        return 0;
    }
    uint64_t bad = VHDX_REGIONS_1 + (s->regions_bad == 2 ? VHDX_TABLE_SIZE : 0);
    uint64_t good = VHDX_REGIONS_1 + (s->regions_bad == 1 ? VHDX_TABLE_SIZE : 0);
    int r = space_copy(check->image->store, good, bad, VHDX_TABLE_SIZE);
    r = r < 0 ? r : store_sync(check->image->store);
    if (r == 0) {
        s->regions_bad = 0;
    }
    return r;
}

/* What lies behind the last block that is used. A fixed image has nothing there. */
static int check_tail(const Check *check)
{
    uint64_t size = store_size(check->image->store), end = vhdx_space_end(check->s);
    uint64_t spare = size > end ? (size - end) / VHDX_MIB : 0;
    if (spare == 0) {
        return 0;
    }
    check_result_say(check->result, "%" PRIu64 " MiB behind the last block are not used", spare);
    if (check->repair == CHECK_REPORT_ONLY) {
        check->result->leaks += spare;
        return 0;
    }
    check->result->leaks_fixed += spare;
    return vhdx_trim(check->image);
}

static int check_all(Check *check)
{
    int r = vhdx_walk(check->image, visit, check);
    r = r < 0 ? r : check_shared(check);
    r = r < 0 ? r : vhdx_walk(check->image, visit_partial, check);
    r = r < 0 ? r : check_region_tables(check);
    if (r == 0 && check->repair != CHECK_REPORT_ONLY) {
        r = vhdx_finish(check->image); /* others do not read an image whose log is not empty */
    }
    return r < 0 ? r : check_tail(check);
}

bool vhdx_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    g_autoptr(GArray) shared = g_array_new(false, false, sizeof(VhdxEntry));
    Check check = {.image = image,
                   .s = image->state,
                   .result = result,
                   .repair = repair,
                   .shared = shared,
                   .size = store_size(image->store)};
    if (!vhdx_space_start(image, error)) {
        return false;
    }
    result->total_clusters = check.s->blocks;
    int r = check_all(&check);
    result->image_end_offset = vhdx_space_end(check.s);
    return r == 0 || error_set_errno(error, -r, "%s: cannot check", image->path);
}
