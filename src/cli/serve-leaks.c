/*
 * Space that a killed server had taken and given to nothing.
 *
 * Records of space are written before the tables that use it, so a death in between leaks some
 * clusters. A server that took over from a dead one looks for them when all is done and the image
 * is closed: nobody waits for it then, and nothing else uses the image.
 */
#include "base/log.h"
#include "cli/serve-impl.h"
#include "formats/format.h"

static void say_nothing(void *opaque, const char *text)
{
}

void serve_leaks_mend(const Serve *serve, const char *path)
{
    g_autoptr(GError) error = NULL;
    ImageOpen how = {.write = true, .no_backing = true};
    CheckResult result = {.message = say_nothing};
    g_autoptr(Image) image = NULL;
    if (cli_image_open(&serve->options.common, &how, &error)) {
        how.secrets = NULL;
        how.no_secrets = true; /* what was leaked is told by metadata alone */
        image = image_open(path, &how, &error);
    }
    if (image == NULL || (image->format->check != NULL &&
                          !image->format->check(image, CHECK_REPAIR_LEAKS, &result, &error))) {
        log_warning("%s: not looked at for leaked space: %s", path, error->message);
        return;
    }
    int r = image_finish(image);
    if (r != 0) {
        log_warning("%s: leaked space: %s", path, g_strerror(-r));
    }
    log_info("%s: %" G_GINT64_FORMAT " leaked clusters freed", path, (gint64)result.leaks_fixed);
}
