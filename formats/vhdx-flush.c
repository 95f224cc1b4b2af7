/*
 * vhdx: the log, written; the start of writing, flush, and the end.
 *
 *     flush, for each group of pages that changed:
 *         sync (data, and the pages of the group before) -> entry of the log -> sync -> pages in place
 *
 * Sector bits go before the table: bits of a block that the table does not show say nothing. The pages of the last
 * group are not synced: should they get lost, the log has them. Each entry is a sequence of its own, and takes less
 * than half of the log, so that the one before it, whose pages are not durable until then, is never written over
 * before the new one is.
 *
 * The first entry of a session gets a GUID of its own, and the header that GUID when the entry is durable. An orderly
 * end takes it out again; whoever opens the file then need not look at the log.
 *
 * A failure leaves all that was not written as dirty as it was, and a flush begins again from the start. Where it came
 * between the pages of a group, the file has some of them: the entry that has all is done again first, for as soon as
 * another one is in the log that one alone counts.
 */
#include "formats/vhdx.h"

#include "base/errors.h"
#include "base/log.h"

void vhdx_update_dirty(VhdxState *s)
{
    s->dirty = metacache_has_dirty(s->tables, META_FIRST) ||
               metacache_has_dirty(s->tables, META_SECOND) || s->freed->len > 0;
}

bool vhdx_is_dirty(const Image *image)
{
    return vhdx_state(image)->dirty;
}

/* ---- the log ---- */

static void make_descriptor(uint8_t *descriptor, uint8_t *data, const MetaBlock *block,
                            uint64_t sequence)
{
    memcpy(descriptor, "desc", 4);
    memcpy(descriptor + 4, block->data + VHDX_PAGE - 4, 4);
    memcpy(descriptor + 8, block->data, 8);
    store_le64(descriptor + 16, block->offset);
    store_le64(descriptor + 24, sequence);
    memcpy(data, "data", 4);
    store_le32(data + 4, sequence >> 32);
    memcpy(data + 8, block->data + 8, VHDX_PAGE - 12);
    store_le32(data + VHDX_PAGE - 4, sequence);
}

static void make_entry(const Image *image, uint8_t *entry, uint64_t length,
                       MetaBlock *const *blocks, unsigned count)
{
    const VhdxState *s = image->state;
    uint64_t size = store_size(image->store);
    memcpy(entry, "loge", 4);
    store_le32(entry + VHDX_L_LENGTH, length);
    store_le32(entry + VHDX_L_TAIL, s->log_position);
    store_le64(entry + VHDX_L_SEQUENCE, s->log_sequence);
    store_le32(entry + VHDX_L_DESCRIPTORS, count);
    memcpy(entry + VHDX_L_GUID, s->log_guid, VHDX_GUID_SIZE);
    store_le64(entry + VHDX_L_FLUSHED, align_down(size, VHDX_MIB));
    store_le64(entry + VHDX_L_LAST, align_up(size, VHDX_MIB));
    for (unsigned i = 0; i < count; i++) {
        make_descriptor(entry + VHDX_L_HEADER_SIZE + i * VHDX_L_DESCRIPTOR,
                        entry + (i + UINT64_C(1)) * VHDX_PAGE, blocks[i], s->log_sequence);
    }
    store_le32(entry + VHDX_L_CHECKSUM, vhdx_checksum(entry, length));
}

/* At log_position, and on from the start where the log ends. */
static int write_entry(Image *image, const uint8_t *entry, uint64_t length)
{
    const VhdxState *s = image->state;
    const VhdxRange *log = &s->header.log;
    uint64_t before_end = min_u64(length, log->length - s->log_position);
    int r = store_write(image->store, entry, before_end, log->offset + s->log_position);
    if (r == 0 && before_end < length) {
        r = store_write(image->store, entry + before_end, length - before_end, log->offset);
    }
    return r < 0 ? r : store_sync(image->store);
}

/* NULL: the log is empty. */
static int set_log_guid(Image *image, const uint8_t *guid)
{
    VhdxState *s = image->state;
    VhdxHeader header = s->header;
    memset(header.log_guid, 0, VHDX_GUID_SIZE);
    if (guid) {
        memcpy(header.log_guid, guid, VHDX_GUID_SIZE);
    }
    int r = vhdx_header_write(image->store, &header);
    if (r == 0) {
        s->header = header;
    }
    return r;
}

/* Pages of the group are durable in the log when this returns 0. An entry that could not be written is written again at
 * its place; one that was is left alone, also when the header could not be written after it: nobody knows what of that
 * is on the disk. */
static int log_group(void *opaque, MetaBlock *const *blocks, unsigned count)
{
    Image *image = opaque;
    VhdxState *s = image->state;
    uint64_t length = (count + UINT64_C(1)) * VHDX_PAGE;
    g_autofree uint8_t *entry = g_try_malloc0(length);
    int r = entry ? store_sync(image->store) : -ENOMEM;
    if (r == 0) {
        make_entry(image, entry, length, blocks, count);
        r = write_entry(image, entry, length);
    }
    if (r == 0) {
        s->log_sequence++;
        s->log_position = (s->log_position + length) % s->header.log.length;
    }
    if (r == 0 && vhdx_guid_is_null(s->header.log_guid)) {
        r = set_log_guid(image, s->log_guid);
    }
    if (r == 0) {
        g_free(s->entry);
        s->entry = g_steal_pointer(&entry);
    }
    return r;
}

/* All pages of the newest entry, as the log has them, durably. */
static int redo_entry(Image *image)
{
    const VhdxState *s = image->state;
    uint32_t count = load_le32(s->entry + VHDX_L_DESCRIPTORS);
    int r = 0;
    for (uint32_t i = 0; r == 0 && i < count; i++) {
        uint8_t page[VHDX_PAGE];
        const uint8_t *descriptor = s->entry + VHDX_L_HEADER_SIZE + i * VHDX_L_DESCRIPTOR;
        vhdx_log_page(descriptor, s->entry + (i + UINT64_C(1)) * VHDX_PAGE, page);
        r = store_write(image->store, page, sizeof page, load_le64(descriptor + 16));
    }
    return r < 0 ? r : store_sync(image->store);
}

/* ---- flush ---- */

int vhdx_flush(Image *image)
{
    VhdxState *s = image->state;
    bool changed =
        metacache_has_dirty(s->tables, META_FIRST) || metacache_has_dirty(s->tables, META_SECOND);
    if (s->broken < 0) {
        return s->broken;
    }
    int r = s->entry_torn ? redo_entry(image) : 0;
    s->entry_torn = r < 0;
    r = r == 0 && !changed ? store_sync(image->store) : r;
    for (MetaOrder order = META_FIRST; r == 0 && order <= META_SECOND; order++) {
        r = metacache_write_groups(s->tables, order, VHDX_L_FIRST_PAGE, log_group, image);
        s->entry_torn = r < 0 && s->entry != NULL;
    }
    if (r == 0) {
        s->write_error = 0;
        vhdx_space_flushed(s);
    } else {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    vhdx_update_dirty(s);
    return r;
}

void vhdx_flush_if_full(Image *image)
{
    VhdxState *s = image->state;
    if (metacache_is_full(s->tables)) {
        s->write_error = vhdx_flush(image);
    }
}

/* ---- start and end ---- */

/* Others must see that this file is no longer what it was; children, that its guest's data are not. */
static int mark_modified(Image *image)
{
    VhdxState *s = image->state;
    VhdxHeader header = s->header;
    s->log_sequence = 1;
    if (!vhdx_guid_make(header.file_guid, NULL) || !vhdx_guid_make(s->log_guid, NULL) ||
        (!image->repair && !image->keep_identity && !vhdx_guid_make(header.data_guid, NULL))) {
        return -EIO;
    }
    memset(header.log_guid, 0, VHDX_GUID_SIZE);
    int r = vhdx_header_write(image->store, &header);
    if (r == 0) {
        s->header = header;
        s->replayed_size = 0;
        g_hash_table_remove_all(s->replayed);
    }
    return r;
}

bool vhdx_start_writing(Image *image, GError **error)
{
    VhdxState *s = image->state;
    if (!image->repair && !vhdx_space_scan(image, error)) {
        return false; /* a check looks at everything itself, and mends it */
    }
    int r = g_hash_table_size(s->replayed) > 0 ? vhdx_log_write_back(image) : 0;
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot do the log again", image->path);
    }
    r = mark_modified(image);
    return r == 0 || error_set_errno(error, -r, "%s: cannot write the header", image->path);
}

/* After a flush. */
static int empty_log(Image *image)
{
    if (vhdx_guid_is_null(vhdx_state(image)->header.log_guid)) {
        return 0;
    }
    int r = store_sync(image->store);
    return r < 0 ? r : set_log_guid(image, NULL);
}

int vhdx_trim(Image *image)
{
    uint64_t end = vhdx_space_end(image->state);
    if (end >= store_size(image->store)) {
        return 0;
    }
    int r = empty_log(image);
    r = r < 0 ? r : store_truncate(image->store, end);
    if (r == -ENOTSUP || r == -EINVAL) {
        return 0; /* a block device */
    }
    return r < 0 ? r : store_sync(image->store);
}

/* Empties the log; then what was taken ahead of need or given back is cut off. */
int vhdx_finish(Image *image)
{
    VhdxState *s = image->state;
    int r = vhdx_flush(image);
    r = r < 0 ? r : empty_log(image);
    if (r < 0 || !s->moved || s->fixed || image->repair) {
        return r;
    }
    g_autoptr(GList) indices = g_hash_table_get_keys(s->reserved);
    for (GList *item = indices; item; item = item->next) {
        vhdx_space_give_back(s, GPOINTER_TO_UINT(item->data));
    }
    return vhdx_trim(image);
}
