/*
 * qcow2: the table of internal snapshots, read and checked.
 *
 *     0 l1_table_offset  8 l1_size  12 id length  14 name length  16 date (s)  20 date (ns)  24 VM
 * clock (ns) 32 VM state size  36 extra length  40 extra: VM state size (8), disk size (8) ...  id
 * name  padding to 8
 *
 * The table is read at open, for the clusters of snapshots must never be handed out. One snapshot can
 * be shown in place of the active state, for reading: its L1 table stands in for the active one then,
 * its size of the disk for the present one.
 */
#include "formats/qcow2.h"

#include <string.h>

#include "base/errors.h"
#include "formats/info.h"

#define ENTRY_HEAD QCOW2_SNAPSHOT_HEAD

static void snapshot_clear(void *p)
{
    Qcow2Snapshot *snapshot = p;
    g_free(snapshot->id);
    g_free(snapshot->name);
}

void qcow2_snapshots_free(Qcow2State *s)
{
    g_clear_pointer(&s->snapshots, g_array_unref);
}

static bool check_l1(Image *image, unsigned index, const Qcow2Snapshot *snapshot, GError **error)
{
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;
    if (bytes > QCOW2_MAX_L1_BYTES) {
        return error_set(error, EUCLEAN,
                         "%s: snapshot %u: l1_size is %u: must be at most %u (32 MiB)", image->path,
                         index, snapshot->l1_size, QCOW2_MAX_L1_BYTES / 8);
    }
    uint64_t clusters = div_round_up(bytes, qcow2_state(image)->cluster_size);
    if (bytes != 0 && !qcow2_table_offset_ok(image, snapshot->l1_table_offset, clusters)) {
        return error_set(error, EUCLEAN,
                         "%s: snapshot %u: l1_table_offset is %" PRIu64
                         ": must be a multiple of the cluster size, and the table inside the file",
                         image->path, index, snapshot->l1_table_offset);
    }
    return true;
}

/* Reads the variable part: extra data, id, name. */
static bool read_tail(Image *image, unsigned index, uint64_t at, uint32_t id_length,
                      uint32_t name_length, Qcow2Snapshot *snapshot, GError **error)
{
    g_autofree uint8_t *tail = g_malloc(snapshot->extra_size + id_length + name_length + 1);
    uint64_t length = snapshot->extra_size + id_length + name_length;
    int r = store_read(image->store, tail, length, at);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read snapshot %u", image->path, index);
    }
    if (snapshot->extra_size >= 8) {
        snapshot->vm_state_size = load_be64(tail);
    }
    if (snapshot->extra_size >= 16) {
        snapshot->disk_size = load_be64(tail + 8);
    }
    const char *text = (const char *)tail + snapshot->extra_size;
    snapshot->id = g_strndup(text, id_length);
    snapshot->name = g_strndup(text + id_length, name_length);
    return true;
}

static bool read_entry(Image *image, unsigned index, uint64_t *at, Qcow2Snapshot *snapshot,
                       GError **error)
{
    uint8_t head[ENTRY_HEAD];
    int r = store_read(image->store, head, sizeof head, *at);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read snapshot %u", image->path, index);
    }
    *snapshot = (Qcow2Snapshot){
        .entry_offset = *at,
        .l1_table_offset = load_be64(head),
        .l1_size = load_be32(head + 8),
        .date_sec = load_be32(head + 16),
        .date_nsec = load_be32(head + 20),
        .vm_clock_nsec = load_be64(head + 24),
        .vm_state_size = load_be32(head + 32),
        .extra_size = load_be32(head + 36),
        .disk_size = image->size,
    };
    if (snapshot->extra_size > QCOW2_MAX_SNAPSHOT_EXTRA) {
        return error_set(error, EUCLEAN,
                         "%s: snapshot %u: extra data size is %u: must be at most 1024",
                         image->path, index, snapshot->extra_size);
    }
    uint32_t id_length = load_be16(head + 12), name_length = load_be16(head + 14);
    uint64_t length = ENTRY_HEAD + snapshot->extra_size + id_length + name_length;
    if (!range_within(*at, length, store_size(image->store))) {
        return error_set(error, EUCLEAN,
                         "%s: snapshot %u: its table entry must end inside the file", image->path,
                         index);
    }
    if (!check_l1(image, index, snapshot, error) ||
        !read_tail(image, index, *at + ENTRY_HEAD, id_length, name_length, snapshot, error)) {
        return false;
    }
    snapshot->entry_length = align_up(length, 8);
    *at += snapshot->entry_length;
    return true;
}

bool qcow2_snapshots_read(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    qcow2_snapshots_free(s);
    s->snapshots = g_array_new(false, false, sizeof(Qcow2Snapshot));
    g_array_set_clear_func(s->snapshots, snapshot_clear);
    s->snapshot_table_bytes = 0;
    uint64_t at = s->header.snapshots_offset;
    for (unsigned i = 0; i < s->header.nb_snapshots; i++) {
        Qcow2Snapshot snapshot;
        if (!read_entry(image, i, &at, &snapshot, error)) {
            return false;
        }
        g_array_append_val(s->snapshots, snapshot);
        s->snapshot_table_bytes = at - s->header.snapshots_offset;
        if (s->snapshot_table_bytes > QCOW2_MAX_SNAPSHOT_TABLE_BYTES) {
            return error_set(error, EUCLEAN, "%s: the snapshot table must be at most 64 MiB",
                             image->path);
        }
    }
    return true;
}

const Qcow2Snapshot *qcow2_snapshot_find(const Image *image, const char *name, GError **error)
{
    const GArray *snapshots = qcow2_state(image)->snapshots;
    const Qcow2Snapshot *found = NULL;
    for (unsigned i = 0; i < snapshots->len; i++) {
        const Qcow2Snapshot *snapshot = &g_array_index(snapshots, Qcow2Snapshot, i);
        if (strcmp(snapshot->name, name) != 0 && strcmp(snapshot->id, name) != 0) {
            continue;
        }
        if (found) {
            error_set(error, EEXIST,
                      "%s: '%s' is the name or ID of more than one snapshot: give the one that is "
                      "not",
                      image->path, name);
            return NULL;
        }
        found = snapshot;
    }
    if (!found) {
        error_set(error, ENOENT, "%s: there is no snapshot '%s': cownbd snapshot list shows them",
                  image->path, name);
    }
    return found;
}

uint64_t *qcow2_snapshot_l1(const Image *image, const Qcow2Snapshot *snapshot, uint32_t least,
                            GError **error)
{
    uint64_t bytes = (uint64_t)snapshot->l1_size * 8;
    uint64_t *l1 = g_try_malloc0(max_u64(bytes, (uint64_t)least * 8) + 8);
    int r = l1 != NULL ? store_read(image->store, l1, bytes, snapshot->l1_table_offset) : -ENOMEM;
    if (r < 0) {
        g_free(l1);
        error_set_errno(error, -r, "%s: cannot read the L1 table of snapshot '%s'", image->path,
                        snapshot->name);
        return NULL;
    }
    for (uint32_t i = 0; i < snapshot->l1_size; i++) {
        l1[i] = load_be64(&l1[i]) & ~QCOW2_COPIED;
    }
    return l1;
}

bool qcow2_snapshot_l1_size(const Image *image, const Qcow2Snapshot *snapshot, uint32_t *entries,
                            GError **error)
{
    const Qcow2State *s = qcow2_state(image);
    uint64_t needed = qcow2_l1_needed(s, snapshot->disk_size);
    if (snapshot->disk_size > INT64_MAX || needed > QCOW2_MAX_L1_BYTES / 8) {
        return error_set(error, EUCLEAN,
                         "%s: snapshot '%s': its disk size is %" PRIu64
                         ": needs an L1 table of over 32 MiB",
                         image->path, snapshot->name, snapshot->disk_size);
    }
    *entries = max_u64(needed, snapshot->l1_size);
    return true;
}

bool qcow2_snapshot_show(Image *image, const char *name, GError **error)
{
    Qcow2State *s = image->state;
    const Qcow2Snapshot *snapshot = qcow2_snapshot_find(image, name, error);
    uint32_t entries;
    if (!snapshot || !qcow2_snapshot_l1_size(image, snapshot, &entries, error)) {
        return false;
    }
    uint64_t *l1 = qcow2_snapshot_l1(image, snapshot, entries, error);
    if (!l1) {
        return false;
    }
    g_free(s->l1);
    s->l1 = l1;
    s->l1_size = entries;
    s->header.l1_table_offset = snapshot->l1_table_offset;
    s->header.l1_size = snapshot->l1_size;
    image->size = s->header.size = snapshot->disk_size;
    return true;
}

static void add_number(GVariantBuilder *entry, const char *key, int64_t value)
{
    g_variant_builder_add(entry, "{sv}", key, g_variant_new_int64(value));
}

/* How many instructions the machine had run: the third number of the extra data. */
static bool read_icount(const Image *image, const Qcow2Snapshot *snapshot, uint64_t *icount)
{
    uint8_t bytes[8];
    if (snapshot->extra_size < 24 || store_read(image->store, bytes, sizeof bytes,
                                                snapshot->entry_offset + ENTRY_HEAD + 16) < 0) {
        return false;
    }
    *icount = load_be64(bytes);
    return *icount != UINT64_MAX;
}

unsigned qcow2_snapshots_info(const Image *image, unsigned most, GVariantBuilder *list)
{
    const GArray *snapshots = qcow2_state(image)->snapshots;
    for (unsigned i = 0; i < snapshots->len && i < most; i++) {
        const Qcow2Snapshot *snapshot = &g_array_index(snapshots, Qcow2Snapshot, i);
        GVariantBuilder entry;
        uint64_t icount;
        g_variant_builder_init(&entry, G_VARIANT_TYPE("a{sv}"));
        if (read_icount(image, snapshot, &icount)) {
            add_number(&entry, "icount", icount);
        }
        add_number(&entry, "vm-clock-nsec", snapshot->vm_clock_nsec % 1000000000);
        info_add_text(&entry, "name", snapshot->name, -1);
        add_number(&entry, "date-sec", snapshot->date_sec);
        add_number(&entry, "date-nsec", snapshot->date_nsec);
        add_number(&entry, "vm-clock-sec", snapshot->vm_clock_nsec / 1000000000);
        info_add_text(&entry, "id", snapshot->id, -1);
        add_number(&entry, "vm-state-size", snapshot->vm_state_size);
        g_variant_builder_add_value(list, g_variant_builder_end(&entry));
    }
    return snapshots->len;
}
