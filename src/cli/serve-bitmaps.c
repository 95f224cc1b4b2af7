/*
 * The bitmaps of an image as meta contexts of its export, as qemu names them:
 *
 *     qemu:dirty-bitmap:NAME     1 where something was written since the bitmap was made or cleared
 *
 * Bitmaps that follow what is written tell of every request that was answered.
 */
#include "base/dirtymap.h"
#include "base/log.h"
#include "cli/serve-impl.h"
#include "formats/format.h"

#define STATE_DIRTY 1

static uint32_t status(void *data, uint64_t offset, uint64_t length, uint64_t *run)
{
    return dirtymap_get(data, offset, length, run) ? STATE_DIRTY : 0;
}

static bool offer(const ServedImage *served, const char *name, GError **error)
{
    DirtyMap *map = served->image->format->bitmap_get(served->image, name, error);
    g_autofree char *context = g_strconcat("qemu:dirty-bitmap:", name, NULL);
    return map != NULL && export_add_context(served->export, context, status, map, error);
}

void serve_bitmaps_offer(const ServedImage *served)
{
    const Format *format = served->image->format;
    g_auto(GStrv) names = format->bitmap_names != NULL ? format->bitmap_names(served->image) : NULL;
    for (unsigned i = 0; names != NULL && names[i] != NULL; i++) {
        g_autoptr(GError) error = NULL;
        if (!offer(served, names[i], &error)) {
            log_warning("bitmap not shown to clients: %s", error->message);
        }
    }
}
