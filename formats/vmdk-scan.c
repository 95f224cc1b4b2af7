/*
 * vmdk: who uses which part of a sparse extent.
 *
 *     1   header, descriptor, directories, and the tables that they name
 *     2   the grains that tables name which are in the file and on nothing else
 *
 * Claims are sorted by their place; one that begins before the end of the one before it is on top of it. Where a grain
 * and something else meet, the grain is wrong.
 *
 * A file may claim any capacity, and be sparse: what the host has no bytes of is not read, for entries there are 0. Each
 * table is read once, as no two of them may share space, so that the entries are no more than the file has bytes for.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/vmdk-impl.h"

#define PIECE 4096u /* entries of a directory in one read */

uint64_t vmdk_claim_length(const VmdkSparse *sparse, const VmdkClaim *claim)
{
    switch ((VmdkUser)claim->user) {
    case VMDK_HEAD:
        return claim->index * VMDK_SECTOR;
    case VMDK_GRAIN: /* how long a compressed one is only its marker says */
        return sparse->compressed ? VMDK_SECTOR : sparse->grain;
    default:
        return align_up(sparse->entries_per_table * UINT64_C(4), VMDK_SECTOR);
    }
}

static uint64_t offset_of(const VmdkClaim *claim)
{
    return (uint64_t)claim->sector * VMDK_SECTOR;
}

static void claim_head(VmdkScan *scan, uint64_t offset, uint64_t length)
{
    VmdkClaim claim = {
        .sector = offset / VMDK_SECTOR,
        .user = VMDK_HEAD,
        .index = div_round_up(length, VMDK_SECTOR),
    };
    if (length > 0) {
        g_array_append_val(scan->claims, claim);
    }
}

/* A grain may be cut short by the end of the file, a table may not. */
static int claim_entry(VmdkScan *scan, VmdkUser user, uint64_t index, uint32_t sector)
{
    VmdkClaim claim = {.sector = sector, .user = user, .index = index};
    uint64_t least = user == VMDK_GRAIN ? 1 : vmdk_claim_length(scan->sparse, &claim);
    if (!range_within(offset_of(&claim), least, store_size(scan->sparse->store))) {
        return scan->fault(scan, VMDK_OUTSIDE, &claim);
    }
    g_array_append_val(scan->claims, claim);
    return 0;
}

/* How many of the entries at offset the host has no bytes of. */
static uint64_t hole_at(const VmdkSparse *sparse, uint64_t offset, uint64_t entries)
{
    uint64_t run;
    bool data;
    if (store_next_data(sparse->store, offset, entries * 4, &data, &run) < 0 || data) {
        return 0;
    }
    return run / 4;
}

/* Claims what `count` entries at offset name. */
static int claim_entries(VmdkScan *scan, VmdkUser user, uint64_t first, uint64_t offset,
                         uint64_t count)
{
    const VmdkSparse *sparse = scan->sparse;
    uint32_t entries[PIECE];
    int r = 0;
    for (uint64_t at = 0, n; r == 0 && at < count; at += n) {
        n = hole_at(sparse, offset + at * 4, count - at);
        if (n > 0) {
            continue;
        }
        n = min_u64(PIECE, count - at);
        r = store_read(sparse->store, entries, n * 4, offset + at * 4);
        for (uint64_t i = 0; r == 0 && i < n; i++) {
            uint32_t entry = le32toh(entries[i]);
            bool has = user == VMDK_GRAIN ? vmdk_entry_has_place(sparse, entry) : entry != 0;
            r = has ? claim_entry(scan, user, first + at + i, entry) : 0;
        }
    }
    return r;
}

static int compare_claims(const void *a, const void *b)
{
    const VmdkClaim *x = a, *y = b;
    if (x->sector != y->sector) {
        return x->sector < y->sector ? -1 : 1;
    }
    if (x->user != y->user) {
        return x->user < y->user ? -1 : 1;
    }
    return x->index < y->index ? -1 : x->index > y->index;
}

static void sort_claims(GArray *claims)
{
    const VmdkClaim *items = (const VmdkClaim *)claims->data;
    for (guint i = 1; i < claims->len; i++) {
        if (compare_claims(&items[i - 1], &items[i]) > 0) {
            g_array_sort(claims, compare_claims);
            return;
        }
    }
}

/* Of two that meet only the first is kept, or the one that is no grain. */
static int drop_overlaps(VmdkScan *scan)
{
    GArray *claims = scan->claims;
    guint kept = 0;
    int r = 0;
    sort_claims(claims);
    for (guint i = 0; i < claims->len; i++) {
        VmdkClaim claim = g_array_index(claims, VmdkClaim, i);
        VmdkClaim *last = kept > 0 ? &g_array_index(claims, VmdkClaim, kept - 1) : NULL;
        bool meets =
            last && offset_of(&claim) < offset_of(last) + vmdk_claim_length(scan->sparse, last);
        VmdkClaim wrong = claim;
        if (meets && last->user == VMDK_GRAIN && claim.user != VMDK_GRAIN) {
            wrong = *last;
            *last = claim;
        } else if (!meets) {
            g_array_index(claims, VmdkClaim, kept++) = claim;
        }
        r = meets && r == 0 ? scan->fault(scan, VMDK_TAKEN, &wrong) : r;
    }
    g_array_set_size(claims, kept);
    return r;
}

static int claim_tables(VmdkScan *scan)
{
    const VmdkSparse *sparse = scan->sparse;
    uint64_t tables = vmdk_sparse_tables(sparse);
    claim_head(scan, 0, sparse->head_length);
    claim_head(scan, sparse->descriptor_offset, sparse->descriptor_length);
    claim_head(scan, sparse->directory_offset, sparse->directory_length);
    int r = claim_entries(scan, VMDK_TABLE, 0, sparse->directory_offset, tables);
    if (r == 0 && sparse->redundant_offset != 0) {
        claim_head(scan, sparse->redundant_offset, tables * 4);
        r = claim_entries(scan, VMDK_TABLE_COPY, 0, sparse->redundant_offset, tables);
    }
    return r < 0 ? r : drop_overlaps(scan);
}

/* Of the last table only what the capacity needs: nobody looks at the rest. */
static int claim_grains(VmdkScan *scan)
{
    const VmdkSparse *sparse = scan->sparse;
    uint64_t grains = div_round_up(sparse->size, sparse->grain);
    guint count = scan->claims->len;
    int r = 0;
    for (guint i = 0; r == 0 && i < count; i++) {
        VmdkClaim claim = g_array_index(scan->claims, VmdkClaim, i);
        if (claim.user != VMDK_TABLE) {
            continue;
        }
        uint64_t first = claim.index * sparse->entries_per_table;
        r = claim_entries(scan, VMDK_GRAIN, first, offset_of(&claim),
                          min_u64(sparse->entries_per_table, grains - first));
    }
    return r < 0 ? r : drop_overlaps(scan);
}

int vmdk_scan(VmdkScan *scan)
{
    scan->claims = g_array_new(false, false, sizeof(VmdkClaim));
    int r = claim_tables(scan);
    r = r < 0 ? r : claim_grains(scan);
    if (scan->claims->len > 0) {
        const VmdkClaim *last = &g_array_index(scan->claims, VmdkClaim, scan->claims->len - 1);
        scan->end = offset_of(last) + vmdk_claim_length(scan->sparse, last);
    }
    return r;
}

/* ---- for writers ---------------------------------------------------------------------------- */

void vmdk_space_begin(VmdkSparse *sparse, uint64_t end)
{
    sparse->used_end = align_up(end, sparse->grain);
    sparse->fresh_start = sparse->size_at_open =
        max_u64(store_size(sparse->store), sparse->used_end);
}

typedef struct WriterScan {
    VmdkScan scan;
    VmdkFault fault;
    VmdkClaim claim;
    bool refused;
} WriterScan;

static int note_fault(VmdkScan *scan, VmdkFault fault, const VmdkClaim *claim)
{
    WriterScan *writer = (WriterScan *)scan;
    writer->refused = true;
    writer->fault = fault;
    writer->claim = *claim;
    return -EUCLEAN;
}

/* After a cut the copy of a table may be older than the table, or newer; or one of them may be missing. */
static int renew_copy(VmdkSparse *sparse, const VmdkClaim *claim)
{
    bool table = claim->user == VMDK_TABLE || claim->user == VMDK_TABLE_COPY;
    return table && sparse->redundant_offset != 0 ? vmdk_copy_renew(sparse, claim->index) : 0;
}

bool vmdk_scan_for_writing(VmdkSparse *sparse, GError **error)
{
    static const char *const users[] = {"header", "grain table", "copy of a grain table", "grain"};
    static const char *const faults[] = {"is not in the file", "lies on something else"};
    WriterScan writer = {.scan = {.sparse = sparse, .fault = note_fault}};
    if (sparse->copy_error) {
        g_propagate_error(error, g_error_copy(sparse->copy_error));
        return false;
    }
    int r = vmdk_scan(&writer.scan);
    if (writer.refused) {
        g_array_unref(writer.scan.claims);
        return error_set(error, EUCLEAN,
                         "%s: the %s at %" PRIu64
                         " %s: open it read-only, or run check --repair=all",
                         sparse->store->name, users[writer.claim.user], offset_of(&writer.claim),
                         faults[writer.fault]);
    }
    vmdk_space_begin(sparse, writer.scan.end);
    if (r == 0 && store_size(sparse->store) < sparse->used_end) { /* the last grain becomes whole */
        r = store_truncate(sparse->store, sparse->used_end);
    }
    for (guint i = 0; r == 0 && sparse->is_unclean && i < writer.scan.claims->len; i++) {
        r = renew_copy(sparse, &g_array_index(writer.scan.claims, VmdkClaim, i));
    }
    g_array_unref(writer.scan.claims);
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot look through its tables", sparse->store->name);
}
