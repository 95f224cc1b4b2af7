/*
 * qcow2 check: mending entries of L1 and L2 tables.
 *
 * What must stay true: a table is only written where nothing else refers to its clusters. An L1
 * entry gone wrong may point to guest data; what looks like bad entries there is nobody's table,
 * and must not be "mended".
 */
#include "formats/qcow2-check.h"

/* ---- entries that cannot be ---- */

static void say_mended(Qcow2Check *check, const char *what, uint64_t at, const char *entry,
                       const char *mended, CheckVerdict verdict)
{
    check_say(check, "Repairing %s entry at %" PRIu64 ", %s, which %s: now %s%s", what, at, entry,
              verdict.reason, mended, verdict.lost ? "; what it pointed to is lost" : "");
}

static bool mend_table(Qcow2Check *check, const CheckTable *table, uint8_t *entries, void *opaque)
{
    bool changed = false;
    for (uint64_t i = 0; check_only_table(check, table) && i < check_table_entries(check); i++) {
        Qcow2Entry entry = qcow2_entry_load(check->s, entries, i);
        CheckVerdict verdict = check_l2_entry(check, table, i, entry);
        if (verdict.reason) {
            g_autofree char *was = check_entry_text(check, entry);
            g_autofree char *now = check_entry_text(check, verdict.mended);
            say_mended(check, "L2", table->offset + i * check->s->entry_size, was, now, verdict);
            qcow2_entry_store(check->s, entries, i, verdict.mended);
            changed = true;
        }
    }
    return changed;
}

static bool only_l1(Qcow2Check *check, uint64_t offset, uint64_t length)
{
    uint64_t last = (offset + length - 1) >> check->s->cluster_bits;
    for (uint64_t cluster = offset >> check->s->cluster_bits; cluster <= last; cluster++) {
        if (counts_wanted(&check->counts, cluster) != 1) {
            return false;
        }
    }
    return true;
}

/* Calls edit for each entry of an L1 table; what it changes is written. */
typedef uint64_t (*L1Edit)(Qcow2Check *check, uint64_t at, uint64_t entry, void *opaque);

static int edit_l1(Qcow2Check *check, uint64_t offset, uint32_t entries, L1Edit edit, void *opaque)
{
    uint64_t length = (uint64_t)entries * 8;
    if (length == 0 || !only_l1(check, offset, length)) {
        return 0;
    }
    g_autofree uint8_t *table = g_try_malloc(length);
    int result = table ? store_read(check->store, table, length, offset) : -ENOMEM;
    for (uint64_t i = 0; i < length && result == 0; i += 8) {
        uint64_t entry = load_be64(table + i);
        uint64_t mended = entry == 0 ? 0 : edit(check, offset + i, entry, opaque);
        if (mended != entry) {
            store_be64(table + i, mended);
            result = store_write(check->store, table + i, 8, offset + i);
        }
    }
    return result;
}

static uint64_t mend_l1_entry(Qcow2Check *check, uint64_t at, uint64_t entry, void *tables_lost)
{
    CheckVerdict verdict = check_l1_entry(check, entry);
    if (!verdict.reason) {
        return entry;
    }
    g_autofree char *was = g_strdup_printf("0x%" PRIx64, entry);
    g_autofree char *now = g_strdup_printf("0x%" PRIx64, verdict.mended.word);
    say_mended(check, "L1", at, was, now, verdict);
    if (verdict.lost) {
        *(bool *)tables_lost = true;
    }
    return verdict.mended.word;
}

int check_mend_entries(Qcow2Check *check, bool *tables_lost)
{
    const Qcow2Header *header = &check->s->header;
    int result = check_visit_tables(check, mend_table, NULL);
    if (result == 0) {
        result =
            edit_l1(check, header->l1_table_offset, header->l1_size, mend_l1_entry, tables_lost);
    }
    const GArray *snapshots = check->s->snapshots;
    for (unsigned i = 0; snapshots && i < snapshots->len && result == 0; i++) {
        const Qcow2Snapshot *snapshot = &g_array_index(snapshots, Qcow2Snapshot, i);
        result = edit_l1(check, snapshot->l1_table_offset, snapshot->l1_size, mend_l1_entry,
                         tables_lost);
    }
    return result;
}

/* ---- COPIED ---- */

/* The entry with COPIED as it should be. It is only set where no doubt is left: a cluster that is
 * wrongly thought to be shared is copied once too often, one wrongly thought not to be is
 * overwritten. */
static uint64_t with_copied(Qcow2Check *check, uint64_t entry)
{
    uint64_t cluster = (entry & QCOW2_OFFSET_MASK) >> check->s->cluster_bits;
    bool one =
        counts_wanted(&check->counts, cluster) == 1 && counts_found(&check->counts, cluster) == 1;
    return one ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED;
}

static uint64_t copied_l1_entry(Qcow2Check *check, uint64_t at, uint64_t entry, void *opaque)
{
    return check_l1_entry(check, entry).reason ? entry : with_copied(check, entry);
}

static bool copied_table(Qcow2Check *check, const CheckTable *table, uint8_t *entries, void *opaque)
{
    bool changed = false;
    if (table->active == 0 || !check_only_table(check, table)) {
        return false;
    }
    for (uint64_t i = 0; i < check_table_entries(check); i++) {
        Qcow2Entry entry = qcow2_entry_load(check->s, entries, i);
        if ((entry.word & QCOW2_COMPRESSED) || (entry.word & QCOW2_OFFSET_MASK) == 0 ||
            check_l2_entry(check, table, i, entry).reason) {
            continue;
        }
        uint64_t right =
            check->s->external ? entry.word | QCOW2_COPIED : with_copied(check, entry.word);
        if (right != entry.word) {
            check_say(check, "Repairing OFLAG_COPIED data cluster: entry=0x%" PRIx64, entry.word);
            entry.word = right;
            qcow2_entry_store(check->s, entries, i, entry);
            changed = true;
        }
    }
    return changed;
}

int check_mend_copied(Qcow2Check *check)
{
    const Qcow2Header *header = &check->s->header;
    int result = check_visit_tables(check, copied_table, NULL);
    return result ? result
                  : edit_l1(check, header->l1_table_offset, header->l1_size, copied_l1_entry, NULL);
}
