/*
 * vmdk: check and repair, extent by extent.
 *
 *     a grain table that is not in the file, or on something else ... made again from its copy, else given up
 *     a copy of a table, the same ................................... made again from the table
 *     a grain that is not in the file ............................... taken from the copy of its entry, else given up
 *     a grain on top of something else .............................. the same, else it gets bytes of its own
 *     a table and its copy differ ................................... the table counts, unless it has nothing where the
 *                                                                     copy has a grain that nobody else has
 *     a copy of the directory that is not in the file ............... the extent has no copies any more
 *     COWD: freeSector lies before something that is used ........... put behind it
 *     grains that nobody uses: at the end of the file ............... cut off
 *                              elsewhere ............................ counted; nothing can be done
 *
 * In an extent that was not closed tables and copies may differ: that is left over like grains that nobody uses. Flat
 * extents have nothing that could be wrong; their sizes were compared when they were opened.
 *
 * What was mended is looked at again, for it may show what was hidden: entries of a table that came from its copy. What
 * is written follows the order of a flush.
 */
#include <errno.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/check-result.h"
#include "formats/space.h"
#include "formats/vmdk-impl.h"

#define ROUNDS 4 /* of mending: tables, their grains, what those are on */

typedef struct Fault {
    VmdkFault kind;
    VmdkClaim claim;
} Fault;

typedef struct Check {
    VmdkScan scan;
    Image *image;
    VmdkSparse *sparse;
    CheckResult *result;
    CheckRepair repair; /* REPORT_ONLY when nothing may be mended any more */
    GArray *faults;     /* of Fault: of this round */
    GHashTable *tables; /* set: numbers of the tables whose place is right */
    GHashTable *copies; /* set: the same of copies */
    uint64_t size;      /* of the file at the start */
    uint64_t copied;    /* bytes */
    bool mended;        /* in this round */
} Check;

static int note_fault(VmdkScan *scan, VmdkFault kind, const VmdkClaim *claim)
{
    Check *check = (Check *)scan;
    Fault fault = {kind, *claim};
    g_array_append_val(check->faults, fault);
    return 0;
}

static uint64_t offset_of(uint32_t sector)
{
    return (uint64_t)sector * VMDK_SECTOR;
}

/* ---- plausible entries ---------------------------------------------------------------------- */

/* How many claims begin at or before the sector. */
static guint claims_up_to(const GArray *claims, uint32_t sector)
{
    guint low = 0, high = claims->len;
    while (low < high) {
        guint middle = low + (high - low) / 2;
        if (g_array_index(claims, VmdkClaim, middle).sector <= sector) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Who has some of the space of a grain at the sector; NULL: nobody. */
static const VmdkClaim *holder_of(const Check *check, uint32_t sector)
{
    const VmdkSparse *sparse = check->sparse;
    const GArray *claims = check->scan.claims;
    uint64_t offset = offset_of(sector);
    guint behind = claims_up_to(claims, sector);
    const VmdkClaim *before = behind > 0 ? &g_array_index(claims, VmdkClaim, behind - 1) : NULL;
    if (before && offset_of(before->sector) + vmdk_claim_length(sparse, before) > offset) {
        return before;
    }
    const VmdkClaim *after =
        behind < claims->len ? &g_array_index(claims, VmdkClaim, behind) : NULL;
    return after && offset_of(after->sector) < offset + sparse->grain ? after : NULL;
}

/* Whether a grain could lie there: in the file, where nothing else is. */
static bool is_plausible(const Check *check, uint32_t entry)
{
    return vmdk_entry_has_place(check->sparse, entry) &&
           offset_of(entry) + check->sparse->grain <= check->size && !holder_of(check, entry);
}

static GHashTable *tables_of(const Check *check, VmdkUser user)
{
    return user == VMDK_TABLE ? check->tables : check->copies;
}

static void collect_tables(Check *check)
{
    const GArray *claims = check->scan.claims;
    g_hash_table_remove_all(check->tables);
    g_hash_table_remove_all(check->copies);
    for (guint i = 0; i < claims->len; i++) {
        const VmdkClaim *claim = &g_array_index(claims, VmdkClaim, i);
        if (claim->user == VMDK_TABLE || claim->user == VMDK_TABLE_COPY) {
            g_hash_table_add(tables_of(check, claim->user), GSIZE_TO_POINTER(claim->index));
        }
    }
}

static bool is_claimed(const Check *check, VmdkUser user, uint64_t index)
{
    return g_hash_table_contains(tables_of(check, user), GSIZE_TO_POINTER(index));
}

/* ---- mending -------------------------------------------------------------------------------- */

/* A table whose place is wrong, made again from its copy where that is right. */
static int mend_table(Check *check, uint64_t index)
{
    VmdkSparse *sparse = check->sparse;
    int r = vmdk_entry_set(sparse, sparse->directory_offset + index * 4, 0, META_SECOND);
    return r == 0 && is_claimed(check, VMDK_TABLE_COPY, index) ? vmdk_table_renew(sparse, index)
                                                               : r;
}

static int mend_copy(Check *check, uint64_t index)
{
    VmdkSparse *sparse = check->sparse;
    int r = vmdk_entry_set(sparse, sparse->redundant_offset + index * 4, 0, META_SECOND);
    return r == 0 && is_claimed(check, VMDK_TABLE, index) ? vmdk_copy_renew(sparse, index) : r;
}

/* Its bytes to a place of their own. In all no more than the file has: a small file could make a
 * huge one otherwise. */
static int copy_grain(Check *check, uint32_t from, uint32_t *to)
{
    VmdkSparse *sparse = check->sparse;
    uint64_t offset;
    bool fresh;
    check->copied += sparse->grain;
    if (check->copied > check->size) {
        return -EFBIG;
    }
    int r = vmdk_space_take(sparse, sparse->grain, &offset, &fresh);
    *to = r == 0 ? offset / VMDK_SECTOR : 0;
    return r < 0 ? r : space_copy(sparse->store, offset_of(from), offset, sparse->grain);
}

/* The entry that the copy of a grain's table has, where that is another one, and a grain could lie there; else 0. */
static int better_entry(const Check *check, uint64_t grain, VmdkPlace *place, uint32_t *better)
{
    uint32_t entry, copy;
    int r = vmdk_entry_look(check->sparse, grain, place, &entry);
    r = r < 0 ? r : vmdk_entry_get(check->sparse, place->copy, &copy);
    *better = r == 0 && copy != entry && is_plausible(check, copy) ? copy : 0;
    return r;
}

/* Of two grains on each other the one moves whose copy says that it lies elsewhere; else the second gets a copy. */
static int mend_grain(Check *check, const Fault *fault)
{
    VmdkSparse *sparse = check->sparse;
    uint64_t grain = fault->claim.index;
    VmdkPlace place;
    uint32_t entry;
    int r = better_entry(check, grain, &place, &entry);
    if (r == 0 && entry == 0 && fault->kind == VMDK_TAKEN) {
        const VmdkClaim *holder = holder_of(check, fault->claim.sector);
        VmdkPlace other;
        if (holder && holder->user == VMDK_GRAIN) {
            r = better_entry(check, holder->index, &other, &entry);
        }
        if (r == 0 && entry != 0) {
            return vmdk_grain_set(sparse, holder->index, &other, entry);
        }
        r = r < 0 ? r : copy_grain(check, fault->claim.sector, &entry);
    }
    return r < 0 ? r : vmdk_grain_set(sparse, grain, &place, entry);
}

static void say_fault(const Check *check, const Fault *fault)
{
    static const char *const users[] = {"the head", "grain table", "the copy of grain table",
                                        "grain"};
    check_result_say(
        check->result, "%s: %s %" PRIu64 " is at %" PRIu64 ", %s", check->sparse->store->name,
        users[fault->claim.user], (uint64_t)fault->claim.index, offset_of(fault->claim.sector),
        fault->kind == VMDK_OUTSIDE ? "which is not in the file" : "on top of something else");
}

static int mend_fault(Check *check, const Fault *fault)
{
    CheckRepair repair = fault->claim.user == VMDK_HEAD ? CHECK_REPORT_ONLY : check->repair;
    say_fault(check, fault);
    if (!check_result_corruption(check->result, repair)) {
        return 0;
    }
    check->mended = true;
    switch ((VmdkUser)fault->claim.user) {
    case VMDK_TABLE:
        return mend_table(check, fault->claim.index);
    case VMDK_TABLE_COPY:
        return mend_copy(check, fault->claim.index);
    default:
        return mend_grain(check, fault);
    }
}

/* ---- tables and their copies ---------------------------------------------------------------- */

typedef struct Differences {
    uint64_t entries;  /* in how many */
    uint64_t restored; /* of those: the copy has a grain, the table nothing */
} Differences;

static int compare_table(const Check *check, uint64_t index, Differences *found)
{
    const VmdkSparse *sparse = check->sparse;
    uint64_t first = index * sparse->entries_per_table;
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < sparse->entries_per_table; i++) {
        VmdkPlace place;
        uint32_t entry, copy;
        r = vmdk_entry_look(sparse, first + i, &place, &entry);
        r = r < 0 ? r : vmdk_entry_get(sparse, place.copy, &copy);
        if (r == 0 && entry != copy) {
            found->entries++;
            found->restored += entry == 0 && is_plausible(check, copy);
        }
    }
    return r;
}

/* Takes entries that the table has lost from its copy. */
static int restore_entries(Check *check, uint64_t index)
{
    VmdkSparse *sparse = check->sparse;
    uint64_t first = index * sparse->entries_per_table;
    uint64_t table;
    int r = is_claimed(check, VMDK_TABLE, index)
                ? 0
                : vmdk_table_make(sparse, sparse->directory_offset, index, &table);
    for (uint64_t i = 0; r == 0 && i < sparse->entries_per_table; i++) {
        VmdkPlace place;
        uint32_t entry, copy;
        r = vmdk_entry_look(sparse, first + i, &place, &entry);
        r = r < 0 ? r : vmdk_entry_get(sparse, place.copy, &copy);
        if (r == 0 && entry == 0 && is_plausible(check, copy)) {
            r = vmdk_entry_set(sparse, place.entry, copy, META_SECOND);
        }
    }
    return r;
}

/* Left over by a cut, or damage. */
static bool count_differences(Check *check)
{
    CheckResult *result = check->result;
    if (!check->sparse->is_unclean) {
        return check_result_corruption(result, check->repair);
    }
    bool mend = check->repair != CHECK_REPORT_ONLY;
    result->leaks += !mend;
    result->leaks_fixed += mend;
    return mend;
}

static int check_copy(Check *check, uint64_t index)
{
    VmdkSparse *sparse = check->sparse;
    Differences found = {0};
    int r = compare_table(check, index, &found);
    if (r < 0 || found.entries == 0) {
        return r;
    }
    check_result_say(check->result,
                     "%s: grain table %" PRIu64 " and its copy differ in %" PRIu64 " entries%s",
                     sparse->store->name, index, found.entries,
                     sparse->is_unclean ? " (the extent was not closed)" : "");
    if (!count_differences(check)) {
        return 0;
    }
    check->mended = true;
    if (found.restored > 0 && !sparse->is_unclean) {
        r = restore_entries(check, index);
    }
    return r < 0 ? r : vmdk_copy_renew(sparse, index);
}

/* Tables with a wrong place had their turn; they come again in the next round. */
static int check_copies(Check *check)
{
    GArray *claims = check->scan.claims;
    int r = 0;
    if (check->sparse->redundant_offset == 0) {
        return 0;
    }
    for (guint i = 0; r == 0 && i < claims->len; i++) {
        VmdkClaim claim = g_array_index(claims, VmdkClaim, i);
        if (claim.user == VMDK_TABLE) {
            r = check_copy(check, claim.index);
        } else if (claim.user == VMDK_TABLE_COPY && !is_claimed(check, VMDK_TABLE, claim.index)) {
            r = check_copy(check, claim.index);
        }
    }
    return r;
}

/* ---- space ---------------------------------------------------------------------------------- */

static void count_gap(const Check *check, uint64_t from, uint64_t to)
{
    uint64_t grains = to > from ? (to - from) / check->sparse->grain : 0;
    if (grains > 0) {
        check->result->leaks += grains;
        check_result_say(check->result, "%s: %" PRIu64 " bytes at %" PRIu64 " are not used",
                         check->sparse->store->name, to - from, from);
    }
}

/* Room for whole grains behind the first grain. */
static void count_gaps(const Check *check)
{
    const GArray *claims = check->scan.claims;
    uint64_t end = UINT64_MAX;
    for (guint i = 0; i < claims->len; i++) {
        const VmdkClaim *claim = &g_array_index(claims, VmdkClaim, i);
        uint64_t offset = offset_of(claim->sector);
        count_gap(check, end, offset);
        if (claim->user == VMDK_GRAIN || end != UINT64_MAX) {
            end = offset + vmdk_claim_length(check->sparse, claim);
        }
    }
}

static int check_tail(const Check *check)
{
    const VmdkSparse *sparse = check->sparse;
    uint64_t end = align_up(check->scan.end, sparse->grain), size = store_size(sparse->store);
    uint64_t grains = size > end ? (size - end) / sparse->grain : 0;
    if (grains == 0) {
        return 0;
    }
    check_result_say(check->result, "%s: %" PRIu64 " bytes at the end of the file are not used",
                     sparse->store->name, size - end);
    if (check->repair == CHECK_REPORT_ONLY) {
        check->result->leaks += grains;
        return 0;
    }
    check->result->leaks_fixed += grains;
    int r = store_truncate(sparse->store, end);
    return r < 0 ? r : store_sync(sparse->store);
}

/* A writer that goes by it would put new grains over those that are there. */
static int check_free(const Check *check)
{
    VmdkSparse *sparse = check->sparse;
    uint32_t recorded;
    int r = vmdk_entry_get(sparse, sparse->free_offset, &recorded);
    if (r < 0 || sparse->free_offset == 0 || offset_of(recorded) >= check->scan.end) {
        return r;
    }
    check_result_say(check->result,
                     "%s: freeSector is %u, but space is used up to %" PRIu64 " (sector %" PRIu64
                     ")",
                     sparse->store->name, recorded, check->scan.end, check->scan.end / VMDK_SECTOR);
    if (!check_result_corruption(check->result, check->repair)) {
        return 0;
    }
    vmdk_space_begin(sparse, check->scan.end);
    return vmdk_flush(check->image);
}

static int check_head(const Check *check)
{
    VmdkSparse *sparse = check->sparse;
    /* Then the header is refused for writing, so nothing is mended. */
    if (sparse->directory_claims != 0) {
        check_result_say(check->result,
                         "%s: numGDEntries is %" PRIu32
                         ", but the file ends before so many: must be %" PRIu64 " at least",
                         sparse->store->name, sparse->directory_claims, vmdk_sparse_tables(sparse));
        (void)check_result_corruption(check->result, CHECK_REPORT_ONLY);
    }
    if (sparse->copy_error) {
        check_result_say(check->result, "%s", sparse->copy_error->message);
        return check_result_corruption(check->result, check->repair) ? vmdk_hosted_drop_copy(sparse)
                                                                     : 0;
    }
    return 0;
}

/* ---- one extent ----------------------------------------------------------------------------- */

static int check_round(Check *check)
{
    VmdkSparse *sparse = check->sparse;
    check->mended = false;
    g_array_set_size(check->faults, 0);
    g_clear_pointer(&check->scan.claims, g_array_unref);
    check->size = store_size(sparse->store);
    int r = vmdk_scan(&check->scan);
    collect_tables(check);
    if (r == 0 && check->repair != CHECK_REPORT_ONLY) {
        vmdk_space_begin(sparse, max_u64(check->scan.end, check->size));
    }
    for (guint i = 0; r == 0 && i < check->faults->len; i++) {
        r = mend_fault(check, &g_array_index(check->faults, Fault, i));
    }
    bool whole = check->faults->len == 0;
    r = r < 0 || !whole ? r : check_copies(check);
    r = r == 0 && check->mended ? vmdk_flush(check->image) : r;
    return r == 0 && check->mended ? vmdk_trim(sparse) : r;
}

static void count_grains(const Check *check)
{
    CheckResult *result = check->result;
    const GArray *claims = check->scan.claims;
    for (guint i = 0; i < claims->len; i++) {
        const VmdkClaim *claim = &g_array_index(claims, VmdkClaim, i);
        result->allocated_clusters += claim->user == VMDK_GRAIN;
        result->compressed_clusters += claim->user == VMDK_GRAIN && check->sparse->compressed;
    }
    result->total_clusters += div_round_up(check->sparse->size, check->sparse->grain);
    result->image_end_offset = check->scan.end;
}

static int check_extent(Check *check)
{
    int r = check_round(check);
    for (unsigned round = 1; r == 0 && check->mended && round <= ROUNDS; round++) {
        check->repair = round == ROUNDS ? CHECK_REPORT_ONLY : check->repair;
        r = check_round(check);
    }
    if (r < 0) {
        return r;
    }
    count_grains(check);
    r = check_head(check);
    if (r < 0 || check->sparse->compressed) {
        return r; /* streams have any length */
    }
    count_gaps(check);
    r = check_tail(check);
    return r < 0 ? r : check_free(check);
}

/* What an unclosed extent may have was looked at. */
static int close_extent(VmdkSparse *sparse)
{
    static const uint8_t closed = 0;
    int r = store_write(sparse->store, &closed, sizeof closed, sparse->unclean_offset);
    r = r < 0 ? r : store_sync(sparse->store);
    sparse->is_unclean = r < 0;
    return r;
}

static void check_clear(Check *check)
{
    g_array_unref(check->faults);
    g_hash_table_unref(check->tables);
    g_hash_table_unref(check->copies);
    g_clear_pointer(&check->scan.claims, g_array_unref);
}

bool vmdk_check(Image *image, CheckRepair repair, CheckResult *result, GError **error)
{
    const VmdkState *state = image->state;
    for (unsigned i = 0; i < state->count; i++) {
        VmdkSparse *sparse = state->extents[i].sparse;
        if (!sparse || sparse->unclean_offset == 0) {
            continue;
        }
        Check check = {.scan = {.sparse = sparse, .fault = note_fault},
                       .image = image,
                       .sparse = sparse,
                       .result = result,
                       .repair = repair,
                       .faults = g_array_new(false, false, sizeof(Fault)),
                       .tables = g_hash_table_new(NULL, NULL),
                       .copies = g_hash_table_new(NULL, NULL)};
        int r = check_extent(&check);
        if (r == 0 && sparse->is_unclean && repair != CHECK_REPORT_ONLY) {
            r = close_extent(sparse);
        }
        check_clear(&check);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot check", sparse->store->name);
        }
    }
    return true;
}
