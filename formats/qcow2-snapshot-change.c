/*
 * qcow2: internal snapshots made, applied and deleted.
 *
 *     create    its L1 table and the new snapshot table written, references + 1
 *               -> COPIED taken from the active tables -> header: the new table
 *     delete    the new snapshot table written -> header -> references - 1 -> COPIED set
 *     apply     a new active L1 table written, references + 1 of the snapshot's
 *               -> header: L1 table and size -> references - 1 of the old one's -> COPIED set
 *
 * Each arrow is a sync. The header changes in one sector, so at any time the image is as it was
 * before or as it is afterwards; what a cut may leave besides are leaks, and COPIED flags that do not
 * fit their refcounts: too few, or of a cluster whose second reference is a leak. That harms nobody,
 * but a check would complain. So in version 3 the dirty bit is set while it lasts, and whoever opens
 * the image for writing next makes the refcounts anew, as after lazy refcounts.
 */
#include "formats/qcow2.h"

#include <string.h>

#include "base/errors.h"
#include "base/log.h"

#define NAME_MAX_BYTES 255 /* QEMU keeps no more */

/* ---- before and after ---- */

static bool failed(const Image *image, int r, const char *what, GError **error)
{
    return error_set_errno(error, -r, "%s: %s", image->path, what);
}

static int mark_dirty(Image *image, bool dirty)
{
    const Qcow2Header *h = &qcow2_state(image)->header;
    uint64_t others = h->incompatible_features & ~QCOW2_INCOMPAT_DIRTY;
    return qcow2_header_set_features(image, dirty ? others | QCOW2_INCOMPAT_DIRTY : others,
                                     h->autoclear_features);
}

/* Nothing is dirty, nothing waits to be freed, what is to be freed or shared (l1) is in order; then the
 * header says that refcounts are at work. */
static bool begin(Image *image, const uint64_t *l1, uint32_t entries, GError **error)
{
    int r = qcow2_may_change(image);
    r = r < 0 ? r : qcow2_settle(image);
    if (r < 0) {
        return failed(image, r, "cannot write what was changed before", error);
    }
    r = qcow2_tree_look(image, l1, entries);
    if (r < 0) {
        return failed(image, r, "its tables cannot be used", error);
    }
    r = mark_dirty(image, true);
    return r == 0 || failed(image, r, "cannot write the header", error);
}

/* COPIED as the refcounts say, all of it durable. */
static int end(Image *image)
{
    int r = qcow2_settle(image);
    r = r < 0 ? r : qcow2_tree_mend_copied(image);
    r = r < 0 ? r : qcow2_settle(image);
    return r < 0 ? r : mark_dirty(image, false);
}

/* The image is as it was, but for what could not be taken back: that leaks. */
static bool undo(Image *image)
{
    int r = end(image);
    if (r < 0) {
        log_warning(
            "%s: cannot take everything back: %s: refcounts are made anew when it is opened "
            "for writing next",
            image->path, g_strerror(-r));
    }
    return false;
}

/* The change is done and durable, but for the freeing of what it made superfluous. */
static bool finish(Image *image, int r)
{
    r = r < 0 ? r : end(image);
    if (r < 0) {
        log_warning("%s: space could not be freed: %s: check --repair=leaks finds it", image->path,
                    g_strerror(-r));
    }
    return true;
}

/* An L1 table of `entries` (perhaps none) in new clusters. */
static bool write_l1(Image *image, const uint64_t *l1, uint32_t entries, Qcow2Run *run,
                     GError **error)
{
    const Qcow2State *s = image->state;
    uint64_t bytes = align_up((uint64_t)entries * 8, s->cluster_size);
    *run = (Qcow2Run){0, 0};
    if (entries == 0) {
        return true;
    }
    g_autofree uint8_t *table = g_try_malloc0(bytes);
    int r = table != NULL ? qcow2_alloc_table(image, bytes >> s->cluster_bits, run) : -ENOMEM;
    if (r == 0) {
        for (uint32_t i = 0; i < entries; i++) {
            store_be64(table + (uint64_t)i * 8, l1[i] & ~QCOW2_COPIED);
        }
        r = store_write(image->store, table, bytes, run->first << s->cluster_bits);
        if (r < 0) {
            qcow2_alloc_return(image, *run);
        }
    }
    return r == 0 || failed(image, r, "cannot write an L1 table", error);
}

static bool reference(Image *image, const uint64_t *l1, uint32_t entries, GError **error)
{
    const Qcow2State *s = image->state;
    int r = qcow2_tree_reference(image, l1, entries);
    if (r == -ERANGE) {
        return error_set(error, ERANGE,
                         "%s: its %u-bit refcounts cannot count one more reference to its data: "
                         "the refcount_bits of an image are chosen when it is created",
                         image->path, 1u << s->refcount_order);
    }
    return r == 0 || failed(image, r, "cannot raise refcounts", error);
}

/* ---- create ---- */

static bool check_name(const Image *image, const char *name, GError **error)
{
    const GArray *snapshots = qcow2_state(image)->snapshots;
    size_t length = strlen(name);
    if (length == 0 || length > NAME_MAX_BYTES) {
        return error_set(error, EINVAL,
                         "%s: the name of a snapshot has %zu bytes: must have 1 to %d", image->path,
                         length, NAME_MAX_BYTES);
    }
    for (unsigned i = 0; i < snapshots->len; i++) {
        if (strcmp(g_array_index(snapshots, Qcow2Snapshot, i).name, name) == 0) {
            return error_set(error, EEXIST, "%s: there is a snapshot '%s' already", image->path,
                             name);
        }
    }
    if (snapshots->len >= QCOW2_MAX_SNAPSHOTS) {
        return error_set(error, EFBIG, "%s: has %u snapshots: must be at most %u", image->path,
                         snapshots->len, QCOW2_MAX_SNAPSHOTS);
    }
    return true;
}

/* One more than the largest number among the IDs. */
static char *new_id(const Image *image)
{
    const GArray *snapshots = qcow2_state(image)->snapshots;
    uint64_t largest = 0;
    for (unsigned i = 0; i < snapshots->len; i++) {
        guint64 id;
        const char *text = g_array_index(snapshots, Qcow2Snapshot, i).id;
        if (g_ascii_string_to_unsigned(text, 10, 0, UINT32_MAX, &id, NULL)) {
            largest = max_u64(largest, id);
        }
    }
    return g_strdup_printf("%" PRIu64, largest + 1);
}

/* L1 table and snapshot table are written, *l1 and *table say where. */
static bool create_tables(Image *image, const char *name, Qcow2Run *l1, Qcow2SnapshotTable *table,
                          GError **error)
{
    const Qcow2State *s = image->state;
    if (!write_l1(image, s->l1, s->l1_size, l1, error)) {
        return false;
    }
    int64_t now = g_get_real_time();
    g_autofree char *id = new_id(image), *copy = g_strdup(name);
    Qcow2Snapshot snapshot = {
        .l1_table_offset = l1->first << s->cluster_bits,
        .l1_size = s->l1_size,
        .disk_size = image->size,
        .date_sec = now / G_USEC_PER_SEC,
        .date_nsec = now % G_USEC_PER_SEC * 1000,
        .id = id,
        .name = copy,
    };
    if (!qcow2_snapshot_table_write(image, &snapshot, NULL, table, error)) {
        qcow2_alloc_return(image, *l1);
        return false;
    }
    return true;
}

/* What must be durable before the header may change: refcounts, then the absence of COPIED. */
static bool share_all(Image *image, GError **error)
{
    int r = qcow2_settle(image);
    r = r < 0 ? r : qcow2_tree_mend_copied(image);
    r = r < 0 ? r : qcow2_settle(image);
    return r == 0 || failed(image, r, "cannot write metadata", error);
}

bool qcow2_snapshot_create(Image *image, const char *name, GError **error)
{
    Qcow2State *s = image->state;
    Qcow2Run l1;
    Qcow2SnapshotTable table;
    if (s->external) {
        return error_set(error, ENOTSUP,
                         "%s: its data lies in %s, each cluster at its one place: can have no "
                         "snapshots",
                         image->path, s->data->name);
    }
    if (!check_name(image, name, error) || !begin(image, s->l1, s->l1_size, error)) {
        return false;
    }
    if (!create_tables(image, name, &l1, &table, error)) {
        return undo(image);
    }
    if (!reference(image, s->l1, s->l1_size, error)) {
        qcow2_alloc_return(image, table.run);
        qcow2_alloc_return(image, l1);
        return undo(image);
    }
    if (!share_all(image, error) || !qcow2_snapshot_table_use(image, &table, error)) {
        return false; /* the dirty bit stays: too much is not known */
    }
    return finish(image, 0);
}

/* ---- delete ---- */

bool qcow2_snapshot_delete(Image *image, const char *name, GError **error)
{
    Qcow2State *s = image->state;
    Qcow2SnapshotTable table;
    const Qcow2Snapshot *snapshot = qcow2_snapshot_find(image, name, error);
    if (!snapshot) {
        return false;
    }
    uint32_t entries = snapshot->l1_size;
    Qcow2Run own = {snapshot->l1_table_offset >> s->cluster_bits,
                    div_round_up((uint64_t)entries * 8, s->cluster_size)};
    g_autofree uint64_t *l1 = qcow2_snapshot_l1(image, snapshot, 0, error);
    if (!l1 || !begin(image, l1, entries, error)) {
        return false;
    }
    if (!qcow2_snapshot_table_write(image, NULL, snapshot, &table, error)) {
        return undo(image);
    }
    int r = qcow2_settle(image);
    if (r < 0) {
        return failed(image, r, "cannot write metadata", error);
    }
    if (!qcow2_snapshot_table_use(image, &table, error)) {
        return false;
    }
    r = qcow2_tree_release(image, l1, entries);
    qcow2_run_append(s->unmapped, own);
    qcow2_update_dirty(s);
    return finish(image, r);
}

/* ---- apply ---- */

/* The active state from now on: a new L1 table, which has its references already. Takes l1 over when
 * it goes well. */
static bool switch_l1(Image *image, uint64_t *l1, uint32_t entries, uint64_t size, Qcow2Run run,
                      GError **error)
{
    Qcow2State *s = image->state;
    Qcow2Run old_run = {s->header.l1_table_offset >> s->cluster_bits,
                        div_round_up((uint64_t)s->l1_size * 8, s->cluster_size)};
    uint64_t *old = s->l1;
    uint32_t old_entries = s->l1_size;
    int r = qcow2_header_set_disk(image, size, run.first << s->cluster_bits, entries);
    if (r < 0) {
        return failed(image, r, "cannot write the header", error);
    }
    s->l1 = l1;
    s->l1_size = entries;
    image->size = size;
    qcow2_metadata_index(image);
    r = qcow2_tree_release(image, old, old_entries);
    g_free(old);
    qcow2_run_append(s->unmapped, old_run);
    qcow2_update_dirty(s);
    return finish(image, r);
}

bool qcow2_snapshot_apply(Image *image, const char *name, GError **error)
{
    Qcow2State *s = image->state;
    const Qcow2Snapshot *snapshot = qcow2_snapshot_find(image, name, error);
    uint32_t entries;
    Qcow2Run run;
    if (!snapshot || !qcow2_snapshot_l1_size(image, snapshot, &entries, error)) {
        return false;
    }
    if (s->bitmap_count > 0) {
        return error_set(error, EBUSY,
                         "%s: has bitmaps, which would not know what changes: remove them first",
                         image->path);
    }
    g_autofree uint64_t *l1 = qcow2_snapshot_l1(image, snapshot, entries, error);
    if (!l1 || !begin(image, l1, entries, error)) {
        return false;
    }
    if (!write_l1(image, l1, entries, &run, error)) {
        return undo(image);
    }
    if (!reference(image, l1, entries, error)) {
        qcow2_alloc_return(image, run);
        return undo(image);
    }
    int r = qcow2_settle(image);
    if (r < 0) {
        return failed(image, r, "cannot write metadata", error);
    }
    if (!switch_l1(image, l1, entries, snapshot->disk_size, run, error)) {
        return false;
    }
    (void)g_steal_pointer(&l1); /* the state's now */
    return true;
}
