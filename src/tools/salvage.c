/*
 * What a damaged disk still reads as.
 *
 * A range that fails is halved until its parts are read, or as small as what a disk loses at a time. Where the map itself
 * cannot be read, that is a part of a table, which says something of much more than a sector: there it is not worth to
 * look at less than a page.
 */
#include "tools/salvage.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"

#define LEAST_READ 512u
#define LEAST_MAP  4096u

struct Salvage {
    pthread_mutex_t lock;
    GArray *losses; /* SalvageLoss */
};

Salvage *salvage_new(void)
{
    Salvage *salvage = g_new0(Salvage, 1);
    pthread_mutex_init(&salvage->lock, NULL);
    salvage->losses = g_array_new(false, false, sizeof(SalvageLoss));
    return salvage;
}

void salvage_free(Salvage *salvage)
{
    if (salvage) {
        pthread_mutex_destroy(&salvage->lock);
        g_array_unref(salvage->losses);
        g_free(salvage);
    }
}

static void add_loss(GArray *losses, SalvageLoss loss)
{
    SalvageLoss *last =
        losses->len > 0 ? &g_array_index(losses, SalvageLoss, losses->len - 1) : NULL;
    if (last && loss.offset <= last->offset + last->length && loss.offset >= last->offset) {
        last->length = max_u64(last->length, loss.offset + loss.length - last->offset);
    } else {
        g_array_append_val(losses, loss);
    }
}

static void note_loss(Salvage *salvage, uint64_t offset, uint64_t length, int error)
{
    with_mutex(&salvage->lock);
    add_loss(salvage->losses, (SalvageLoss){offset, length, -error});
}

static int by_offset(const void *a, const void *b)
{
    const SalvageLoss *left = a, *right = b;
    return (left->offset > right->offset) - (left->offset < right->offset);
}

const GArray *salvage_losses(Salvage *salvage)
{
    GArray *joined = g_array_new(false, false, sizeof(SalvageLoss));
    g_array_sort(salvage->losses, by_offset);
    for (guint i = 0; i < salvage->losses->len; i++) {
        add_loss(joined, g_array_index(salvage->losses, SalvageLoss, i));
    }
    g_array_unref(salvage->losses);
    salvage->losses = joined;
    return joined;
}

static uint64_t half(uint64_t length, uint64_t least)
{
    return max_u64(least, align_up(length / 2, least));
}

/* All of the range, or nothing is added. */
static int map_all(Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    ExtentList all;
    extent_list_init(&all);
    int r = reader_map(image, offset, length, &all);
    for (unsigned i = 0; r == 0 && i < all.count; i++) {
        extent_list_add(list, &all.items[i]);
    }
    extent_list_clear(&all);
    return r;
}

int salvage_map(Salvage *salvage, Image *image, uint64_t offset, uint64_t length, ExtentList *list)
{
    if (!salvage) {
        return reader_map(image, offset, length, list);
    }
    int r = map_all(image, offset, length, list);
    if (r == 0 || r == -ENOMEM) {
        return r;
    }
    uint64_t first = half(length, LEAST_MAP);
    if (first >= length) {
        note_loss(salvage, offset, length, r);
        extent_list_add_zero(list, offset, length, NULL);
        return 0;
    }
    r = salvage_map(salvage, image, offset, first, list);
    return r < 0 ? r : salvage_map(salvage, image, offset + first, length - first, list);
}

int salvage_read(Salvage *salvage, const ExtentList *list, uint64_t offset, uint64_t length,
                 uint8_t *buffer)
{
    int r = reader_read(list, offset, length, buffer);
    if (!salvage || r == 0 || r == -ENOMEM) {
        return r;
    }
    uint64_t first = half(length, LEAST_READ);
    if (first >= length) {
        note_loss(salvage, offset, length, r);
        memset(buffer, 0, length);
        return 0;
    }
    r = salvage_read(salvage, list, offset, first, buffer);
    return r < 0 ? r : salvage_read(salvage, list, offset + first, length - first, buffer + first);
}
