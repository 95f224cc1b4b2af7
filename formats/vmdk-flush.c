/*
 * vmdk: the start of writing, flush in the order that a crash needs, and the end.
 *
 *     first change   another CID, extents marked as in use ........... sync
 *     flush          new tables, freeSector .. sync (also data, in all files)
 *                    tables, directories ..... sync
 *     end            flush, cut off what was grown ahead, marks taken away
 *
 * An extent whose mark is there was not closed: its tables and their copies may differ then, for a cut may have come
 * between the two. The directory counts, so nothing needs to be mended before the next session.
 *
 * Until the first change no place is shown as writable: the first write comes by allocate, which starts the session.
 */
#include <errno.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"
#include "formats/vmdk-impl.h"

/* ---- may it be written ---------------------------------------------------------------------- */

static const char *refusal_of(const VmdkExtent *extent)
{
    const VmdkSparse *sparse = extent->sparse;
    if (extent->access != VMDK_ACCESS_RW) {
        return "is not RW";
    }
    if (!extent->store) {
        return "is of type ZERO";
    }
    if (!sparse) {
        return NULL;
    }
    if (sparse->compressed) {
        return "is compressed (streamOptimized)";
    }
    if (sparse->unclean_offset == 0) {
        return "is of ESX's kind seSparse";
    }
    if (sparse->has_footer) {
        return "has its header at its end (gdOffset -1)";
    }
    return extent->offset % sparse->grain == 0 ? NULL : "begins inside a grain";
}

bool vmdk_writable(const Image *image, const VmdkState *state, GError **error)
{
    for (unsigned i = 0; i < state->count; i++) {
        const char *refusal = refusal_of(&state->extents[i]);
        if (refusal) {
            return error_set(error, ENOTSUP,
                             "%s: extent %u %s, which cannot be written: open it read-only (-r), "
                             "or convert it",
                             image->path, i + 1, refusal);
        }
    }
    return true;
}

bool vmdk_start_writing(Image *image, GError **error)
{
    VmdkState *state = image->state;
    for (unsigned i = 0; i < state->count && !image->repair; i++) {
        VmdkSparse *sparse = state->extents[i].sparse;
        if (sparse && !vmdk_scan_for_writing(sparse, error)) {
            return false;
        }
    }
    return true;
}

/* ---- sync ----------------------------------------------------------------------------------- */

int vmdk_sync(Image *image)
{
    const VmdkState *state = image->state;
    int r = state->embedded ? 0 : store_sync_changes(image->store);
    for (unsigned i = 0; r == 0 && i < state->count; i++) {
        Store *store = state->extents[i].store;
        bool again = i > 0 && store == state->extents[i - 1].store;
        r = !store || again ? 0 : store_sync_changes(store);
    }
    return r;
}

int vmdk_mark_extents(const VmdkState *state, uint8_t mark)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < state->count; i++) {
        VmdkSparse *sparse = state->extents[i].sparse;
        if (sparse && sparse->is_unclean != (mark != 0)) {
            r = store_write(sparse->store, &mark, sizeof mark, sparse->unclean_offset);
        }
    }
    return r;
}

int vmdk_start_session(Image *image)
{
    VmdkState *state = image->state;
    if (state->started) {
        return 0;
    }
    int r = image->keep_identity ? 0 : vmdk_cid_change(image);
    r = r < 0 ? r : vmdk_mark_extents(state, 1);
    r = r < 0 ? r : vmdk_sync(image);
    state->started = r == 0;
    for (unsigned i = 0; r == 0 && i < state->count; i++) {
        if (state->extents[i].sparse) {
            state->extents[i].sparse->is_unclean = true;
            state->extents[i].sparse->writable = true;
        }
    }
    return r;
}

/* ---- flush ---------------------------------------------------------------------------------- */

static bool has_second(const VmdkSparse *sparse)
{
    return sparse->second_pending || metacache_has_dirty(sparse->cache, META_SECOND);
}

static bool is_dirty(const VmdkSparse *sparse)
{
    return has_second(sparse) || metacache_has_dirty(sparse->cache, META_FIRST);
}

void vmdk_update_dirty(VmdkState *state)
{
    bool dirty = false;
    for (unsigned i = 0; i < state->count; i++) {
        dirty |= state->extents[i].sparse && is_dirty(state->extents[i].sparse);
    }
    state->dirty = dirty;
}

bool vmdk_is_dirty(const Image *image)
{
    return vmdk_state(image)->dirty;
}

static int write_first(const VmdkState *state)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < state->count; i++) {
        VmdkSparse *sparse = state->extents[i].sparse;
        r = sparse ? vmdk_space_record(sparse) : 0;
        r = r == 0 && sparse ? metacache_write(sparse->cache, META_FIRST) : r;
    }
    return r;
}

/* From the first write on the disk may show new tables, also when this fails. */
static int write_second(const VmdkState *state)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < state->count; i++) {
        VmdkSparse *sparse = state->extents[i].sparse;
        if (!sparse || !has_second(sparse)) {
            continue;
        }
        sparse->second_pending = true;
        g_hash_table_remove_all(sparse->new_tables);
        r = metacache_write(sparse->cache, META_SECOND);
        r = r < 0 ? r : store_sync_changes(sparse->store);
        sparse->second_pending = r < 0;
    }
    return r;
}

int vmdk_flush(Image *image)
{
    VmdkState *state = image->state;
    int r = write_first(state);
    r = r < 0 ? r : vmdk_sync(image);
    r = r < 0 ? r : write_second(state);
    if (r == 0) {
        state->write_error = 0;
    } else {
        log_limited(LOG_LEVEL_ERROR, "%s: cannot write metadata: %s", image->path, g_strerror(-r));
    }
    vmdk_update_dirty(state);
    return r;
}

void vmdk_flush_if_full(Image *image)
{
    VmdkState *state = image->state;
    bool full = false;
    for (unsigned i = 0; i < state->count; i++) {
        full |= state->extents[i].sparse && metacache_is_full(state->extents[i].sparse->cache);
    }
    if (full) {
        state->write_error = vmdk_flush(image);
    }
}

/* ---- the end -------------------------------------------------------------------------------- */

/* What was grown ahead of need is cut off. What the file had when it was opened is left alone. */
int vmdk_trim(VmdkSparse *sparse)
{
    uint64_t end = max_u64(sparse->used_end, sparse->size_at_open);
    if (end >= store_size(sparse->store)) {
        return 0;
    }
    int r = store_truncate(sparse->store, end);
    return r == -ENOTSUP || r == -EINVAL ? 0 : r; /* a block device */
}

int vmdk_finish(Image *image)
{
    VmdkState *state = image->state;
    if (!state->started) {
        return 0;
    }
    int r = vmdk_is_dirty(image) ? vmdk_flush(image) : 0;
    for (unsigned i = 0; r == 0 && i < state->count; i++) {
        r = state->extents[i].sparse ? vmdk_trim(state->extents[i].sparse) : 0;
    }
    r = r < 0 ? r : vmdk_sync(image);
    r = r < 0 ? r : vmdk_mark_extents(state, 0);
    for (unsigned i = 0; r == 0 && i < state->count; i++) {
        if (state->extents[i].sparse) {
            state->extents[i].sparse->is_unclean = false;
            state->extents[i].sparse->writable = false;
        }
    }
    r = r < 0 ? r : vmdk_sync(image);
    state->started = r < 0;
    return r;
}
