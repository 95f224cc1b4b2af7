/*
 * qcow2: bitmaps from opening for writing to the orderly end.
 *
 *     start    enabled bitmaps loaded -> IN_USE in their directory entries -> the first guest write
 *     end      bits to clusters, refcounts -> tables -> IN_USE cleared -> clusters freed
 *
 * Each arrow is a sync. Whoever is cut off in between leaves IN_USE behind, and the bitmap is of no use
 * any more: it does not know what was written since. That is said when the image is opened for writing.
 */
#include "formats/qcow2-bitmap.h"

#include "base/errors.h"
#include "base/log.h"

#define FLAGS_AT 12 /* in a directory entry */

static int write_flags(Image *image, Qcow2KeptBitmap *bitmap, uint32_t flags)
{
    uint8_t field[4];
    store_be32(field, flags);
    int r = store_write(image->store, field, sizeof field, bitmap->at + FLAGS_AT);
    if (r == 0) {
        store_be32(bitmap->entry + FLAGS_AT, flags);
        bitmap->is.flags = flags;
    }
    return r;
}

static int set_in_use(Image *image, Qcow2KeptBitmap *bitmap)
{
    int r = write_flags(image, bitmap, bitmap->is.flags | QCOW2_BITMAP_IN_USE);
    bitmap->taken = r == 0;
    return r;
}

int qcow2_bitmap_take(Image *image, Qcow2KeptBitmap *bitmap)
{
    int r = qcow2_bitmap_load(image, bitmap);
    if (r < 0 || bitmap->taken) {
        return r;
    }
    r = set_in_use(image, bitmap);
    return r < 0 ? r : store_sync(image->store);
}

/* One that is enabled: taken, or from now on of no use. */
static int start_one(Image *image, Qcow2KeptBitmap *bitmap)
{
    const char *unusable = qcow2_bitmap_unusable(image, bitmap);
    int r = unusable ? 0 : qcow2_bitmap_load(image, bitmap);
    if (r == -EUCLEAN) {
        unusable = "its table cannot be true";
    } else if (r < 0) {
        return r;
    }
    if (!unusable) {
        return set_in_use(image, bitmap);
    }
    log_warning("%s: bitmap '%s' is not kept: %s: remove it", image->path, bitmap->name, unusable);
    return write_flags(image, bitmap, bitmap->is.flags | QCOW2_BITMAP_IN_USE);
}

static int start_all(Image *image)
{
    const Qcow2State *s = image->state;
    int r = 0;
    for (guint i = 0; r == 0 && i < s->bitmaps->len; i++) {
        Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
        if (bitmap->is.flags & QCOW2_BITMAP_AUTO) {
            r = start_one(image, bitmap);
            image->marks |= bitmap->taken;
        }
    }
    return r < 0 ? r : store_sync(image->store);
}

bool qcow2_bitmaps_start(Image *image, bool *kept, GError **error)
{
    Qcow2State *s = image->state;
    g_autoptr(GError) refusal = NULL;
    *kept = s->bitmap_count > 0;
    if (!*kept) {
        return true;
    }
    if (!qcow2_bitmaps_read(image, &refusal)) {
        if (refusal->code != EUCLEAN) {
            g_propagate_error(error, g_steal_pointer(&refusal));
            return false;
        }
        log_warning("%s: all its bitmaps are given up", refusal->message);
        s->bitmap_count = 0;
        *kept = false;
        return true;
    }
    int r = start_all(image);
    return r == 0 ||
           error_set_errno(error, -r, "%s: cannot take its bitmaps into use", image->path);
}

void qcow2_mark(Image *image, uint64_t offset, uint64_t length)
{
    const Qcow2State *s = image->state;
    for (guint i = 0; i < s->bitmaps->len; i++) {
        const Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
        if (bitmap->taken && (bitmap->flags & QCOW2_BITMAP_AUTO)) {
            dirtymap_mark(bitmap->map, offset, length);
        }
    }
}

/* ---- the end ---- */

typedef int (*EachTaken)(Image *image, Qcow2KeptBitmap *bitmap, void *argument);

static int each_taken(Image *image, EachTaken function, void *argument)
{
    const Qcow2State *s = image->state;
    int r = 0;
    for (guint i = 0; r == 0 && i < s->bitmaps->len; i++) {
        Qcow2KeptBitmap *bitmap = g_ptr_array_index(s->bitmaps, i);
        r = bitmap->taken ? function(image, bitmap, argument) : 0;
    }
    return r;
}

static int count_one(Image *image, Qcow2KeptBitmap *bitmap, void *argument)
{
    ++*(unsigned *)argument;
    return 0;
}

static int store_bits(Image *image, Qcow2KeptBitmap *bitmap, void *argument)
{
    return qcow2_bitmap_write_bits(image, bitmap, argument);
}

static int store_table(Image *image, Qcow2KeptBitmap *bitmap, void *argument)
{
    return qcow2_bitmap_write_table(image, bitmap);
}

static int clear_in_use(Image *image, Qcow2KeptBitmap *bitmap, void *argument)
{
    return write_flags(image, bitmap, bitmap->flags);
}

static int give_up(Image *image, Qcow2KeptBitmap *bitmap, void *argument)
{
    bitmap->taken = false;
    return 0;
}

/* In the order that a cut needs. */
static int store_taken(Image *image)
{
    Qcow2State *s = image->state;
    g_autoptr(GArray) superfluous = g_array_new(false, false, sizeof(Qcow2Run));
    int r = each_taken(image, store_bits, superfluous);
    r = r < 0 ? r : qcow2_settle(image);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : each_taken(image, store_table, NULL);
    r = r < 0 ? r : store_sync(image->store);
    r = r < 0 ? r : each_taken(image, clear_in_use, NULL);
    r = r < 0 ? r : store_sync(image->store);
    if (r == 0) {
        for (guint i = 0; i < superfluous->len; i++) {
            qcow2_run_append(s->unmapped, g_array_index(superfluous, Qcow2Run, i));
        }
        qcow2_update_dirty(s);
        r = qcow2_settle(image);
    }
    return r;
}

int qcow2_bitmaps_store(Image *image)
{
    const Qcow2State *s = image->state;
    unsigned count = 0;
    image->marks = false;
    if (s->bitmaps) {
        (void)each_taken(image, count_one, &count);
    }
    if (count == 0) {
        return 0;
    }
    int r = store_taken(image);
    (void)each_taken(image, give_up, NULL);
    return r;
}
