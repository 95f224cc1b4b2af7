/*
 * qcow2: the table of internal snapshots, written anew.
 *
 * The table is never changed where it lies. Every change writes a new one into clusters of its own,
 * syncs, points the header to it and syncs: the header's offset and count lie in one sector. The
 * entries that stay are copied byte for byte, with extra data that is not known here.
 */
#include "formats/qcow2.h"

#include <string.h>

#include "base/errors.h"

#define EXTRA_SIZE 16 /* size of the VM state, size of the disk: the least of version 3 */

/* Appends an entry as it lies in the present table. */
static int append_old(const Image *image, const Qcow2Snapshot *snapshot, GByteArray *table)
{
    guint at = table->len;
    g_byte_array_set_size(table, at + snapshot->entry_length);
    return store_read(image->store, table->data + at, snapshot->entry_length,
                      snapshot->entry_offset);
}

static void append_new(const Qcow2Snapshot *snapshot, GByteArray *table)
{
    size_t id = strlen(snapshot->id), name = strlen(snapshot->name);
    uint64_t length = align_up(QCOW2_SNAPSHOT_HEAD + EXTRA_SIZE + id + name, 8);
    guint at = table->len;
    g_byte_array_set_size(table, at + length);
    uint8_t *entry = table->data + at;
    memset(entry, 0, length);
    store_be64(entry, snapshot->l1_table_offset);
    store_be32(entry + 8, snapshot->l1_size);
    store_be16(entry + 12, id);
    store_be16(entry + 14, name);
    store_be32(entry + 16, snapshot->date_sec);
    store_be32(entry + 20, snapshot->date_nsec);
    store_be32(entry + 36, EXTRA_SIZE);
    store_be64(entry + QCOW2_SNAPSHOT_HEAD + 8, snapshot->disk_size);
    memcpy(entry + QCOW2_SNAPSHOT_HEAD + EXTRA_SIZE, snapshot->id, id);
    memcpy(entry + QCOW2_SNAPSHOT_HEAD + EXTRA_SIZE + id, snapshot->name, name);
}

static int gather(const Image *image, const Qcow2Snapshot *added, const Qcow2Snapshot *gone,
                  GByteArray *bytes, uint32_t *count)
{
    const GArray *snapshots = qcow2_state(image)->snapshots;
    int r = 0;
    *count = 0;
    for (unsigned i = 0; r == 0 && i < snapshots->len; i++) {
        const Qcow2Snapshot *snapshot = &g_array_index(snapshots, Qcow2Snapshot, i);
        if (snapshot != gone) {
            r = append_old(image, snapshot, bytes);
            (*count)++;
        }
    }
    if (r == 0 && added) {
        append_new(added, bytes);
        (*count)++;
    }
    return r;
}

static int write_bytes(Image *image, GByteArray *bytes, Qcow2Run *run)
{
    const Qcow2State *s = image->state;
    guint length = bytes->len, whole = align_up(length, s->cluster_size);
    g_byte_array_set_size(bytes, whole);
    memset(bytes->data + length, 0, whole - length);
    int r = qcow2_alloc_table(image, whole >> s->cluster_bits, run);
    if (r == 0) {
        r = store_write(image->store, bytes->data, whole, run->first << s->cluster_bits);
        if (r < 0) {
            qcow2_alloc_return(image, *run);
        }
    }
    return r;
}

bool qcow2_snapshot_table_write(Image *image, const Qcow2Snapshot *added, const Qcow2Snapshot *gone,
                                Qcow2SnapshotTable *table, GError **error)
{
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    *table = (Qcow2SnapshotTable){.count = 0};
    int r = gather(image, added, gone, bytes, &table->count);
    if (r == 0 && bytes->len > QCOW2_MAX_SNAPSHOT_TABLE_BYTES) {
        return error_set(error, EFBIG, "%s: the snapshot table must be at most 64 MiB",
                         image->path);
    }
    if (r == 0 && table->count > 0) {
        r = write_bytes(image, bytes, &table->run);
    }
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot write a new snapshot table", image->path);
}

bool qcow2_snapshot_table_use(Image *image, const Qcow2SnapshotTable *table, GError **error)
{
    Qcow2State *s = image->state;
    Qcow2Run old = {s->header.snapshots_offset >> s->cluster_bits,
                    div_round_up(s->snapshot_table_bytes, s->cluster_size)};
    int r = qcow2_header_set_snapshots(image, table->run.first << s->cluster_bits, table->count);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the header", image->path);
    }
    if (!qcow2_snapshots_read(image, error)) {
        s->broken = -EIO;
        return false;
    }
    qcow2_run_append(s->unmapped, old);
    qcow2_update_dirty(s);
    return true;
}
