/*
 * qcow2, the copy-on-write format of QEMU, versions 2 and 3: open, close, and what info shows.
 *
 *     header + extensions + backing name      cluster 0
 *     refcount table -> refcount blocks       who uses which cluster
 *     L1 table -> L2 tables -> data           where guest clusters lie
 *     snapshot table -> L1 tables             older states; their clusters have refcounts above 1
 *
 * qcow2.h says which file does what. What must stay true:
 *
 *   - a cluster that any table on the disk refers to has a refcount on the disk (rules 1 to 5 of
 *     "what a crash may do");
 *   - L1, refcount table and header change on the disk only in flush (and the feature bits when
 *     opening and on damage);
 *   - only entries with COPIED (refcount 1) are changed in place, and only such we mark so.
 */
#include "formats/qcow2.h"
#include "formats/qcow2-bitmap.h"

#include "base/errors.h"
#include "base/log.h"

#define HEAD_SIZE      65536 /* read at first: the header, and names of features behind it */
#define META_BLOCK_MAX 4096

static int qcow2_probe(const uint8_t *head, size_t n, const char *path)
{
    /* Version 1 is another format, qcow. A version to come is ours, so that it is refused by its
     * number. */
    return n >= 8 && load_be32(head) == QCOW2_MAGIC && load_be32(head + 4) >= 2 ? 100 : 0;
}

static void qcow2_close(Image *image)
{
    Qcow2State *s = image->state;
    metacache_free(s->meta);
    luks_header_free(s->luks);
    g_clear_pointer(&s->data, store_unref);
    g_free(s->data_name);
    qcow2_snapshots_free(s);
    qcow2_bitmaps_free(s);
    g_clear_pointer(&s->l1_dirty, g_hash_table_destroy);
    g_clear_pointer(&s->l1_new, g_hash_table_destroy);
    g_clear_pointer(&s->table_dirty, g_hash_table_destroy);
    g_clear_pointer(&s->metadata, g_array_unref);
    g_clear_pointer(&s->claims, g_hash_table_destroy);
    g_clear_pointer(&s->freed, g_array_unref);
    g_clear_pointer(&s->unmapped, g_array_unref);
    g_free(s->l1);
    g_free(s->table);
    pthread_mutex_destroy(&s->header_lock);
    g_free(s);
    image->state = NULL;
}

static Qcow2State *state_new(void)
{
    Qcow2State *s = g_new0(Qcow2State, 1);
    pthread_mutex_init(&s->header_lock, NULL);
    s->l1_dirty = g_hash_table_new(NULL, NULL);
    s->l1_new = g_hash_table_new(NULL, NULL);
    s->table_dirty = g_hash_table_new(NULL, NULL);
    s->claims = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    s->metadata = g_array_new(false, false, sizeof(uint64_t));
    s->freed = g_array_new(false, false, sizeof(Qcow2Run));
    s->unmapped = g_array_new(false, false, sizeof(Qcow2Run));
    return s;
}

static bool read_header(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    uint64_t n = min_u64(HEAD_SIZE, store_size(image->store));
    g_autofree uint8_t *head = g_malloc(HEAD_SIZE);
    int r = store_read(image->store, head, n, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", image->path);
    }
    if (!qcow2_header_unpack(head, n, image->path, &s->header, error)) {
        return false;
    }
    s->cluster_bits = s->header.cluster_bits;
    s->cluster_size = UINT64_C(1) << s->cluster_bits;
    s->extended = s->header.incompatible_features & QCOW2_INCOMPAT_EXTENDED_L2;
    s->external = s->header.incompatible_features & QCOW2_INCOMPAT_DATA_FILE;
    s->entry_size = s->extended ? 16 : 8;
    s->l2_bits = s->cluster_bits - (s->extended ? 4 : 3);
    s->unit = s->extended ? s->cluster_size / QCOW2_SUBCLUSTERS : s->cluster_size;
    s->refcount_order = s->header.refcount_order;
    s->block_bits = s->cluster_bits + 3 - s->refcount_order;
    s->refcount_max = UINT64_MAX >> (64 - (1u << s->refcount_order));
    s->meta_size = min_u64(s->cluster_size, META_BLOCK_MAX);
    image->size = s->header.size;
    image->allocation_unit = s->unit;
    image->largest_unit = s->cluster_size;
    image->partial_units = s->extended;
    image->plain_only = s->external;
    return qcow2_header_read(image, error) && qcow2_data_open(image, error);
}

bool qcow2_l1_read(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    uint64_t bytes = (uint64_t)s->header.l1_size * 8;
    g_clear_pointer(&s->l1, g_free);
    s->l1_size = 0;
    if (bytes == 0) {
        return true;
    }
    uint64_t *l1 = g_try_malloc(bytes);
    if (l1 == NULL) {
        return error_set_errno(error, ENOMEM, "%s: L1 table", image->path);
    }
    int r = store_read(image->store, l1, bytes, s->header.l1_table_offset);
    if (r < 0) {
        g_free(l1);
        return error_set_errno(error, -r, "%s: cannot read the L1 table", image->path);
    }
    for (uint32_t i = 0; i < s->header.l1_size; i++) {
        l1[i] = load_be64(&l1[i]);
    }
    s->l1 = l1;
    s->l1_size = s->header.l1_size;
    return true;
}

static bool read_tables(Image *image, GError **error)
{
    return qcow2_l1_read(image, error) && qcow2_refcount_table_read(image, error) &&
           qcow2_snapshots_read(image, error);
}

static void count_space_anew(Image *image)
{
    Qcow2State *s = image->state;
    /* A cluster that the file's end cuts short becomes whole: extents never pass the end. */
    uint64_t size = align_up(store_size(image->store), s->cluster_size);
    if (size != store_size(image->store)) {
        (void)store_truncate(image->store, size); /* a block device stays as it is: map copes */
    }
    s->size_at_open = s->fresh_start = size;
    s->space_known = false;
    s->gap_hint = 0;
    s->packed_end = 0;
    qcow2_metadata_index(image);
}

bool qcow2_reload(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    metacache_forget(s->meta, 0, QCOW2_MAX_HOST_OFFSET);
    g_hash_table_remove_all(s->l1_dirty);
    g_hash_table_remove_all(s->l1_new);
    g_hash_table_remove_all(s->table_dirty);
    g_array_set_size(s->freed, 0);
    g_array_set_size(s->unmapped, 0);
    qcow2_bitmaps_free(s);
    s->second_pending = false;
    s->broken = s->write_error = 0;
    s->corrupt = false;
    g_clear_pointer(&image->backing_name, g_free);
    g_clear_pointer(&image->backing_format, g_free);
    if (!read_header(image, error) || !read_tables(image, error)) {
        s->broken = -EIO;
        return false;
    }
    if (image->write) {
        count_space_anew(image);
    }
    qcow2_update_dirty(s);
    return true;
}

/* An image that a writer with lazy refcounts left behind: its refcounts may be too low. */
static bool rebuild_refcounts(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    CheckResult result = {0};
    log_warning("%s: the dirty bit is set (not closed by its last writer): rebuilding refcounts",
                image->path);
    bool repair = image->repair;
    image->repair = true;
    bool ok = qcow2_check(image, CHECK_REPAIR_ALL, &result, error);
    image->repair = repair;
    if (!ok) {
        return false;
    }
    if (result.corruptions > 0 || result.check_errors > 0) {
        return error_set(error, EUCLEAN,
                         "%s: the dirty bit is set, and the refcounts cannot be rebuilt: %" PRIu64
                         " errors are left: run check --repair=all",
                         image->path, result.corruptions + result.check_errors);
    }
    if (!qcow2_reload(image, error)) {
        return false;
    }
    int r =
        qcow2_header_set_features(image, s->header.incompatible_features & ~QCOW2_INCOMPAT_DIRTY,
                                  s->header.autoclear_features);
    return r == 0 || error_set_errno(error, -r, "%s: cannot clear the dirty bit", image->path);
}

static bool qcow2_start_writing(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    if (!image->repair && (s->header.incompatible_features & QCOW2_INCOMPAT_CORRUPT)) {
        return error_set(error, EUCLEAN,
                         "%s: the corrupt bit is set: open it read-only, or run check --repair=all",
                         image->path);
    }
    count_space_anew(image);
    if (image->repair) {
        return true;
    }
    if ((s->header.incompatible_features & QCOW2_INCOMPAT_DIRTY) &&
        !rebuild_refcounts(image, error)) {
        return false;
    }
    uint64_t shared;
    if (qcow2_metadata_is_shared(s, &shared)) {
        return error_set(error, EUCLEAN,
                         "%s: the L2 table or refcount block at %" PRIu64
                         " is used twice: open it read-only, or run check --repair=all",
                         image->path, shared << s->cluster_bits);
    }
    bool has_bitmaps;
    if (!qcow2_bitmaps_start(image, &has_bitmaps, error)) {
        return false;
    }
    /* Whatever other bits promise, our writes break it. */
    uint64_t kept = (has_bitmaps ? QCOW2_AUTOCLEAR_BITMAPS : 0) |
                    (qcow2_data_is_raw(s) ? QCOW2_AUTOCLEAR_DATA_RAW : 0);
    if (s->header.autoclear_features != kept) {
        int r = qcow2_header_set_features(image, s->header.incompatible_features, kept);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot clear the autoclear bits", image->path);
        }
    }
    return true;
}

static bool qcow2_open(Image *image, GError **error)
{
    Qcow2State *s = state_new();
    image->state = s;
    bool ok = read_header(image, error);
    if (ok) {
        uint64_t limit =
            image->metadata_cache ? image->metadata_cache : IMAGE_METADATA_CACHE_DEFAULT;
        s->meta = metacache_new(image->store, s->meta_size, limit);
        ok = read_tables(image, error) && qcow2_encryption_open(image, error);
    }
    if (!ok) {
        qcow2_close(image);
        g_clear_pointer(&image->backing_name, g_free);
        g_clear_pointer(&image->backing_format, g_free);
    }
    return ok;
}

static void add_entry(GVariantBuilder *data, const char *key, GVariant *value)
{
    g_variant_builder_add(data, "{sv}", key, value);
}

static void qcow2_info(const Image *image, GVariantBuilder *data)
{
    const Qcow2Header *h = &qcow2_state(image)->header;
    bool zstd = h->compression_type == QCOW2_COMPRESSION_ZSTD;
    add_entry(data, "compat", g_variant_new_string(h->version < 3 ? "0.10" : "1.1"));
    add_entry(data, "compression-type", g_variant_new_string(zstd ? "zstd" : "zlib"));
    if (h->version >= 3) {
        add_entry(data, "lazy-refcounts",
                  g_variant_new_boolean(h->compatible_features & QCOW2_COMPAT_LAZY_REFCOUNTS));
    }
    qcow2_bitmap_info(image, data);
    qcow2_encryption_info(image, data);
    add_entry(data, "refcount-bits", g_variant_new_int64(1 << h->refcount_order));
    qcow2_data_info(image, data);
    if (h->version >= 3) {
        add_entry(data, "corrupt",
                  g_variant_new_boolean(h->incompatible_features & QCOW2_INCOMPAT_CORRUPT));
        add_entry(data, "extended-l2",
                  g_variant_new_boolean(h->incompatible_features & QCOW2_INCOMPAT_EXTENDED_L2));
    }
}

static uint64_t qcow2_cluster_size(const Image *image)
{
    return qcow2_state(image)->cluster_size;
}

static bool qcow2_dirty_flag(const Image *image)
{
    return qcow2_state(image)->header.incompatible_features & QCOW2_INCOMPAT_DIRTY;
}

const Format format_qcow2 = {
    .name = "qcow2",
    .probe = qcow2_probe,
    .open = qcow2_open,
    .start_writing = qcow2_start_writing,
    .close = qcow2_close,
    .map = qcow2_map,
    .unit_at = qcow2_unit_at,
    .allocate = qcow2_allocate,
    .commit = qcow2_commit,
    .abandon = qcow2_abandon,
    .unmap = qcow2_unmap,
    .flush = qcow2_flush,
    .sync = qcow2_sync,
    .finish = qcow2_finish,
    .is_dirty = qcow2_is_dirty,
    .decode = qcow2_decode,
    .encode = qcow2_encode,
    .set_backing = qcow2_set_backing,
    .info = qcow2_info,
    .snapshots = qcow2_snapshots_info,
    .snapshot_show = qcow2_snapshot_show,
    .snapshot_create = qcow2_snapshot_create,
    .snapshot_apply = qcow2_snapshot_apply,
    .snapshot_delete = qcow2_snapshot_delete,
    .mark = qcow2_mark,
    .bitmap_names = qcow2_bitmap_names,
    .bitmap_get = qcow2_bitmap_get,
    .bitmap_change = qcow2_bitmap_change,
    .cluster_size = qcow2_cluster_size,
    .dirty_flag = qcow2_dirty_flag,
    .allocated_bytes = qcow2_allocated_bytes,
    .resize = qcow2_resize,
    .measure = qcow2_measure,
    .create_like = qcow2_create_like,
    .create_options = qcow2_create_options,
    .create = qcow2_create,
    .check = qcow2_check,
};
