/*
 * qcow2 check: data that lies on top of something else gets a place of its own.
 *
 * Two parts of the disk must not share a host cluster, nor may data share one with metadata: a
 * write to the one would change the other. Raising the refcount alone would only put that off, and
 * a refcount of one bit cannot be raised. So what the guest reads now is copied behind the end of
 * the file, and the entry points there. Snapshots share clusters rightly: they are about the same
 * part of the disk.
 *
 *     first walk: for each suspect cluster, which part of the disk refers to it first, and how
 *                 often data does
 *     second walk: entries of any other part, and all when metadata lies there, too, are moved
 */
#include "formats/qcow2-check.h"

#include "map/encryption.h"

typedef struct Suspect {
    uint64_t cluster;
    uint64_t guest;      /* cluster of the disk that may keep it */
    uint64_t references; /* by data */
} Suspect;

typedef struct Unshare {
    GHashTable *suspects; /* cluster -> Suspect */
    uint8_t *buffer;
    uint64_t next; /* cluster: where the next copy goes */
    int result;
    bool changed;
} Unshare;

/* The cluster of the file where an entry has plain data, or 0: there is none. */
static uint64_t data_cluster(const Qcow2Check *check, const CheckTable *table, uint64_t index,
                             Qcow2Entry entry)
{
    if (check->s->external || (entry.word & QCOW2_COMPRESSED) ||
        check_l2_entry(check, table, index, entry).reason) {
        return 0;
    }
    return (entry.word & QCOW2_OFFSET_MASK) >> check->s->cluster_bits;
}

/* A table that others refer to may be no table at all; it is one when every entry is possible. */
static bool is_table(Qcow2Check *check, const CheckTable *table, const uint8_t *entries)
{
    if (check_only_table(check, table)) {
        return true;
    }
    for (uint64_t i = 0; i < check_table_entries(check); i++) {
        if (check_l2_entry(check, table, i, qcow2_entry_load(check->s, entries, i)).reason) {
            return false;
        }
    }
    return true;
}

static bool note_suspects(Qcow2Check *check, const CheckTable *table, uint8_t *entries,
                          void *opaque)
{
    Unshare *unshare = opaque;
    for (uint64_t i = 0; i < check_table_entries(check); i++) {
        uint64_t cluster = data_cluster(check, table, i, qcow2_entry_load(check->s, entries, i));
        if (cluster == 0 || counts_wanted(&check->counts, cluster) <= 1) {
            continue;
        }
        Suspect *suspect = g_hash_table_lookup(unshare->suspects, &cluster);
        if (!suspect) {
            suspect = g_new(Suspect, 1);
            *suspect = (Suspect){.cluster = cluster, .guest = check_guest_cluster(check, table, i)};
            g_hash_table_insert(unshare->suspects, &suspect->cluster, suspect);
        }
        suspect->references += table->references;
    }
    return false;
}

static bool must_move(Qcow2Check *check, const Unshare *unshare, uint64_t cluster, uint64_t guest)
{
    const Suspect *suspect = g_hash_table_lookup(unshare->suspects, &cluster);
    return suspect && (suspect->guest != guest ||
                       counts_wanted(&check->counts, cluster) > suspect->references);
}

/* A copy of the cluster behind the end of the file; its offset, or 0 on failure. */
static uint64_t copy_cluster(Qcow2Check *check, Unshare *unshare, uint64_t cluster)
{
    uint64_t to = unshare->next << check->s->cluster_bits;
    /* LUKS counts sectors in the file: what moves is encrypted anew. AES counts them on the disk. */
    const Encryption *encryption = check->image->encryption;
    bool as_it_is = !encryption || encryption->by_guest;
    Extent extent = {
        .length = check->cluster_size,
        .host_offset = cluster << check->s->cluster_bits,
        .store = check->store,
        .image = as_it_is ? NULL : check->image,
        .type = EXTENT_DATA,
    };
    int result = extent_read(&extent, unshare->buffer);
    if (result == 0 && to >= QCOW2_MAX_HOST_OFFSET) {
        result = -EFBIG;
    }
    if (result == 0) {
        extent.host_offset = to;
        result = extent_write(&extent, &(struct iovec){unshare->buffer, extent.length}, 1);
    }
    if (result < 0) {
        unshare->result = result;
        return 0;
    }
    unshare->next++;
    return to;
}

static bool move_shared(Qcow2Check *check, const CheckTable *table, uint8_t *entries, void *opaque)
{
    Unshare *unshare = opaque;
    bool changed = false;
    if (!is_table(check, table, entries)) {
        return false;
    }
    for (uint64_t i = 0; i < check_table_entries(check) && unshare->result == 0; i++) {
        Qcow2Entry entry = qcow2_entry_load(check->s, entries, i);
        uint64_t cluster = data_cluster(check, table, i, entry);
        if (cluster == 0 ||
            !must_move(check, unshare, cluster, check_guest_cluster(check, table, i))) {
            continue;
        }
        uint64_t to = copy_cluster(check, unshare, cluster);
        if (to != 0) {
            check_say(check,
                      "Repairing cluster %" PRIu64 ", which is used twice: guest offset %" PRIu64
                      " gets a copy at %" PRIu64,
                      cluster, check_guest_cluster(check, table, i) << check->s->cluster_bits, to);
            entry.word = to | (entry.word & QCOW2_ZERO);
            qcow2_entry_store(check->s, entries, i, entry);
            changed = true;
        }
    }
    if (changed) {
        int result =
            store_sync(check->store); /* the copies, before the table that points to them */
        unshare->result = unshare->result ? unshare->result : result;
        unshare->changed |= result == 0;
        return result == 0;
    }
    return false;
}

int check_unshare(Qcow2Check *check, bool *changed)
{
    g_autofree uint8_t *buffer = g_malloc(check->cluster_size);
    Unshare unshare = {
        .suspects = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free),
        .buffer = buffer,
        .next = check->file_clusters + 1, /* behind what a compressed cluster may end in */
    };
    int result = check_visit_tables(check, note_suspects, &unshare);
    if (result == 0) {
        result = check_visit_tables(check, move_shared, &unshare);
    }
    g_hash_table_unref(unshare.suspects);
    *changed = unshare.changed;
    return result ? result : unshare.result;
}
