/*
 * qcow2: the directory of bitmaps written anew, and the header extension that points to it.
 *
 *     new directory in clusters of its own -> extension -> autoclear bit; the old one is freed
 *
 * The extension counts only while the autoclear bit is set. It is changed in one sector where it lies in
 * one, else with the bit cleared meanwhile (then a cut loses the bitmaps, and the image is whole). The
 * first time it is appended to the other extensions: what follows the end mark first, then, in eight
 * bytes, its head in place of the end mark.
 */
#include "formats/qcow2-bitmap.h"

#include "base/errors.h"

#define SECTOR         512
#define EXTENSION_HEAD 8
#define EXTENSION_SIZE QCOW2_BITMAPS_EXT_LENGTH

static int write_durably(Image *image, const void *bytes, size_t length, uint64_t at)
{
    int r = store_write(image->store, bytes, length, at);
    return r < 0 ? r : store_sync(image->store);
}

static int set_autoclear(Image *image, bool bitmaps)
{
    const Qcow2Header *h = &qcow2_state(image)->header;
    uint64_t others = h->autoclear_features & ~QCOW2_AUTOCLEAR_BITMAPS;
    uint64_t wanted = bitmaps ? others | QCOW2_AUTOCLEAR_BITMAPS : others;
    return h->autoclear_features == wanted
               ? 0
               : qcow2_header_set_features(image, h->incompatible_features, wanted);
}

static int change_extension(Image *image, const uint8_t *data)
{
    const Qcow2State *s = image->state;
    uint64_t at = s->bitmaps_extension;
    bool in_one_sector = at / SECTOR == (at + EXTENSION_SIZE - 1) / SECTOR;
    int r = in_one_sector ? 0 : set_autoclear(image, false);
    r = r < 0 ? r : write_durably(image, data, EXTENSION_SIZE, at);
    return r < 0 ? r : set_autoclear(image, true);
}

static int append_extension(Image *image, const uint8_t *data)
{
    Qcow2State *s = image->state;
    uint8_t rest[EXTENSION_SIZE + EXTENSION_HEAD] = {0}, head[EXTENSION_HEAD];
    uint64_t at = s->extensions_end;
    memcpy(rest, data, EXTENSION_SIZE);
    store_be32(head, QCOW2_EXT_BITMAPS);
    store_be32(head + 4, EXTENSION_SIZE);
    int r = write_durably(image, rest, sizeof rest, at + EXTENSION_HEAD);
    r = r < 0 ? r : write_durably(image, head, sizeof head, at);
    if (r == 0) {
        s->bitmaps_extension = at + EXTENSION_HEAD;
        s->extensions_end = at + EXTENSION_HEAD + EXTENSION_SIZE;
        r = set_autoclear(image, true);
    }
    return r;
}

/* Without bitmaps. The extension stays where others follow it, and counts for nothing. */
static int drop_extension(Image *image)
{
    Qcow2State *s = image->state;
    static const uint8_t end_mark[EXTENSION_HEAD];
    int r = set_autoclear(image, false);
    if (r == 0 && s->bitmaps_extension != 0 &&
        s->bitmaps_extension + EXTENSION_SIZE == s->extensions_end) {
        uint64_t at = s->bitmaps_extension - EXTENSION_HEAD;
        r = write_durably(image, end_mark, sizeof end_mark, at);
        s->extensions_end = at;
        s->bitmaps_extension = 0;
    }
    return r;
}

static bool has_room(const Qcow2State *s, uint64_t needed)
{
    return s->bitmaps_extension != 0 ||
           (s->extensions_end != 0 && s->extensions_end + needed <= s->extensions_limit);
}

/* The backing file's name, which most often follows the end mark, moves away. */
static bool make_room(Image *image, GError **error)
{
    const Qcow2State *s = image->state;
    const uint64_t needed = 2 * EXTENSION_HEAD + EXTENSION_SIZE;
    if (!has_room(s, needed) && image->backing_name) {
        g_autofree char *name = g_strdup(image->backing_name);
        g_autofree char *format = g_strdup(image->backing_format);
        if (!qcow2_set_backing(image, name, format, image->backing, error)) {
            return false;
        }
    }
    if (has_room(s, needed)) {
        return true;
    }
    return error_set(error, ENOSPC,
                     "%s: its header has no room for bitmaps: %" PRIu64
                     " bytes are needed before the backing file's name or the end of the first "
                     "cluster",
                     image->path, needed);
}

static int point_header(Image *image, uint32_t count, uint64_t size, uint64_t offset)
{
    Qcow2State *s = image->state;
    uint8_t data[EXTENSION_SIZE] = {0};
    store_be32(data, count);
    store_be64(data + 8, size);
    store_be64(data + 16, offset);
    int r = count == 0                  ? drop_extension(image)
            : s->bitmaps_extension != 0 ? change_extension(image, data)
                                        : append_extension(image, data);
    if (r == 0) {
        s->bitmap_count = count;
        s->bitmap_directory_size = size;
        s->bitmap_directory_offset = offset;
    } else {
        s->broken = r; /* which of the two the disk has is not known any more */
    }
    return r;
}

static int write_entries(Image *image, uint64_t size, Qcow2Run *run)
{
    const Qcow2State *s = image->state;
    uint64_t whole = align_up(size, s->cluster_size), at = 0;
    g_autofree uint8_t *bytes = g_try_malloc0(whole);
    int r = bytes ? qcow2_alloc_table(image, whole >> s->cluster_bits, run) : -ENOMEM;
    if (r < 0) {
        return r;
    }
    for (guint i = 0; i < s->bitmaps->len; i++) {
        const Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
        memcpy(bytes + at, bitmap->entry, bitmap->is.length);
        at += bitmap->is.length;
    }
    r = store_write(image->store, bytes, whole, run->first << s->cluster_bits);
    r = r < 0 ? r : qcow2_settle(image);
    if (r < 0) {
        qcow2_alloc_return(image, *run);
    }
    return r;
}

bool qcow2_bitmap_directory_write(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    uint64_t size = 0;
    for (guint i = 0; i < s->bitmaps->len; i++) {
        size += ((const Qcow2KeptBitmap *)g_ptr_array_index(s->bitmaps, i))->is.length;
    }
    Qcow2Run run = {0, 0}, old = {s->bitmap_directory_offset >> s->cluster_bits,
                                  div_round_up(s->bitmap_directory_size, s->cluster_size)};
    if (size > 0 && !make_room(image, error)) {
        return false;
    }
    int r = size > 0 ? write_entries(image, size, &run) : 0;
    r = r < 0 ? r : point_header(image, s->bitmaps->len, size, run.first << s->cluster_bits);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the directory of bitmaps", image->path);
    }
    uint64_t at = run.first << s->cluster_bits;
    for (guint i = 0; i < s->bitmaps->len; i++) {
        Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
        bitmap->at = at;
        at += bitmap->is.length;
    }
    qcow2_run_append(s->unmapped, old);
    qcow2_update_dirty(s);
    return true;
}
