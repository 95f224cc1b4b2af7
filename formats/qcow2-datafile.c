/*
 * qcow2: guest data in a file of its own, which the image names.
 *
 *     image.qcow2   header, refcounts, L1, L2 tables, bitmaps
 *     disk.raw      | byte 0 of the disk | byte 1 | ...     each byte of the disk at its own offset
 *
 * The tables say which clusters are there; where one lies is no choice, so nothing in the data file is
 * allocated, counted, shared or moved: no snapshots, no compressed clusters. An entry at host offset 0 is told
 * from an unallocated one by COPIED.
 *
 * With data_file_raw, the file alone reads as the disk does: all of the disk is mapped from the start, zeroes
 * are written to the file instead of being said in a table, and there can be no backing.
 *
 * What must stay true: the data file is synced before an L2 entry that needs its bytes is written; what is
 * discarded is punched while nobody else uses the range, so a later write of it finds zeroes or what it
 * overwrites. A cut shows of each block an older or a newer state of that very block, as in one file.
 */
#include "formats/qcow2.h"

#include <errno.h>
#include <string.h>

#include "base/errors.h"
#include "formats/allocation.h"
#include "formats/info.h"
#include "formats/space.h"

#define MAP_STEP (UINT64_C(1) << 30) /* bytes of the disk mapped between two flushes */

bool qcow2_data_extension(Image *image, const uint8_t *data, uint32_t length, GError **error)
{
    Qcow2State *s = image->state;
    if (!s->external) {
        return true; /* means nothing */
    }
    if (length == 0 || length > QCOW2_MAX_DATA_FILE_NAME || memchr(data, 0, length) != NULL) {
        return error_set(error, EUCLEAN,
                         "%s: data file extension: the name has %u bytes: must be 1 to %u, none of "
                         "them zero",
                         image->path, length, QCOW2_MAX_DATA_FILE_NAME);
    }
    g_free(s->data_name);
    s->data_name = g_strndup((const char *)data, length);
    return true;
}

static bool check_header(const Image *image, GError **error)
{
    const Qcow2State *s = image->state;
    if (s->data_name == NULL) {
        return error_set(error, EUCLEAN,
                         "%s: incompatible_features says that there is an external data file, but "
                         "no header extension names it",
                         image->path);
    }
    if (s->header.nb_snapshots > 0) { /* they would share clusters whose place is no choice */
        return error_set(error, EUCLEAN,
                         "%s: nb_snapshots is %u with an external data file: must be 0",
                         image->path, s->header.nb_snapshots);
    }
    if (qcow2_data_is_raw(s) && image->backing_name != NULL) {
        return error_set(error, EUCLEAN,
                         "%s: has a backing file and a raw data file: must be one of the two",
                         image->path);
    }
    return true;
}

bool qcow2_data_open(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    if (!s->external || s->data != NULL) { /* open already: the header was read again */
        return true;
    }
    if (!check_header(image, error)) {
        return false;
    }
    s->data = image_open_named(image, s->data_name, image->write, NULL, error);
    if (s->data == NULL) {
        g_prefix_error(error, "%s: data file: ", image->path);
    }
    return s->data != NULL;
}

bool qcow2_is_misplaced(const Qcow2State *s, const Qcow2Cluster *cluster, uint64_t offset)
{
    return s->external && cluster->placed && cluster->host != align_down(offset, s->cluster_size);
}

static int set_length(Store *data, uint64_t size)
{
    int r = store_truncate(data, size);
    if (r == -ENOTSUP || r == -EINVAL) { /* a block device has the size it has */
        return store_size(data) >= size ? 0 : -ENOSPC;
    }
    return r;
}

int qcow2_data_extend(Image *image, uint64_t size)
{
    Store *data = qcow2_state(image)->data;
    return data != NULL && store_size(data) < size ? set_length(data, size) : 0;
}

int qcow2_data_cut(Image *image)
{
    Store *data = qcow2_state(image)->data;
    return data != NULL && store_size(data) > image->size ? set_length(data, image->size) : 0;
}

/* Before the range is used. At once for all of the disk, which costs no more. */
static int extend_for(Image *image, uint64_t end)
{
    bool there = store_size(qcow2_state(image)->data) >= min_u64(end, image->size);
    return there ? 0 : qcow2_data_extend(image, image->size);
}

static bool is_hole(Store *store, uint64_t offset, uint64_t length)
{
    bool data;
    uint64_t run;
    return store_next_data(store, offset, length, &data, &run) == 0 && !data && run >= length;
}

int qcow2_data_reserve(Image *image, Allocation *a)
{
    const Qcow2State *s = image->state;
    if (a->stored_length > 0) {
        return -ENOTSUP;
    }
    int r = extend_for(image, a->offset + a->length);
    if (r < 0) {
        return r;
    }
    bool fresh = is_hole(s->data, a->offset, a->length);
    allocation_add(image, a, s->data, a->offset, a->length, fresh);
    return 0;
}

/* Space only: what the entries say now reads as zeroes without it. */
void qcow2_data_free(Image *image, uint64_t offset, uint64_t end)
{
    (void)store_punch(qcow2_state(image)->data, offset, end - offset, STORE_PUNCH_FREE);
}

int qcow2_data_zero(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags)
{
    int r = qcow2_may_change(image);
    if (r == 0 && ((flags & UNMAP_BACKING) || image->encryption)) {
        return -ENOTSUP; /* a hole decrypts to noise */
    }
    r = r < 0 ? r : extend_for(image, offset + length);
    bool keep = flags & UNMAP_KEEP_SPACE;
    return r < 0 ? r
                 : store_punch(qcow2_state(image)->data, offset, length,
                               keep ? STORE_PUNCH_KEEP_SPACE : STORE_PUNCH_FREE);
}

/* All of the range is data afterwards; it holds what the data file holds. */
static int map_all(Image *image, uint64_t from, uint64_t end)
{
    int r = 0;
    for (uint64_t at = from; r == 0 && at < end;) {
        uint64_t next = min_u64(end, align_down(at, MAP_STEP) + MAP_STEP);
        Allocation all = {.offset = at, .length = next - at}, *list = &all;
        extent_list_init(&all.extents);
        r = qcow2_allocate(image, &list, 1);
        r = r < 0 ? r : qcow2_commit(image, &list, 1);
        extent_list_clear(&all.extents);
        at = next;
    }
    return r;
}

/* What the file holds behind the end of the disk was perhaps left there by a smaller one. */
int qcow2_data_grow(Image *image, uint64_t size)
{
    const Qcow2State *s = image->state;
    uint64_t end = image->size;
    int r = qcow2_data_cut(image);
    r = r < 0 ? r : qcow2_data_extend(image, size);
    if (r < 0 || !qcow2_data_is_raw(s)) {
        return r;
    }
    r = space_make_fresh(s->data, end, size - end,
                         UINT64_MAX); /* of a block device: it was not cut */
    return r < 0 ? r : map_all(image, align_down(end, s->cluster_size), size);
}

int qcow2_sync(Image *image)
{
    const Qcow2State *s = image->state;
    if (s->data == NULL) {
        return store_sync(image->store);
    }
    int r = store_sync_changes(s->data);
    return r < 0 ? r : store_sync_changes(image->store);
}

uint64_t qcow2_allocated_bytes(const Image *image)
{
    const Qcow2State *s = image->state;
    return store_allocated_bytes(image->store) +
           (s->data != NULL ? store_allocated_bytes(s->data) : 0);
}

void qcow2_data_info(const Image *image, GVariantBuilder *data)
{
    const Qcow2State *s = image->state;
    if (s->external) {
        info_add_text(data, "data-file", s->data_name, -1);
        g_variant_builder_add(data, "{sv}", "data-file-raw",
                              g_variant_new_boolean(qcow2_data_is_raw(s)));
    }
}
