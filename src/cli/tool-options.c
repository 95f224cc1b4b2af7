/*
 * What the tools that read and write whole disks share.
 */
#include "cli/tool-options.h"

#include "base/errors.h"
#include "cli/create-target.h"
#include "formats/option.h"
#include "tools/bulk.h"

bool tool_threads_check(int *threads, GError **error)
{
    if (*threads == 0) {
        *threads = MIN(g_get_num_processors(), BULK_THREADS_MAX);
    }
    return (*threads >= 1 && *threads <= BULK_THREADS_MAX) ||
           error_set(error, EINVAL, "--threads is %d: must be 1 to %d", *threads, BULK_THREADS_MAX);
}

bool tool_rate_parse(const char *text, uint64_t *rate, GError **error)
{
    *rate = 0;
    return !text || (option_parse_size(text, rate) && *rate > 0) ||
           error_set(error, EINVAL, "-r is '%s': must be bytes a second, as in 50M", text);
}

Image *tool_open_backing(const char *path, const char *name, const char *format,
                         const CliCommon *common, GError **error)
{
    ImageOpen how = {
        .format = cli_format(format, error),
        .allow_paths = (const char *const *)common->allow_paths,
        .no_lock = common->force_share,
        .secrets = common->secrets,
        .no_secrets = !common->secrets,
    };
    if (!how.format) {
        return NULL;
    }
    g_autofree char *resolved = cli_name_beside(path, name);
    if (target_is_file(path, resolved)) {
        error_set(error, EINVAL, "%s: cannot be its own backing file", path);
        return NULL;
    }
    return image_open(resolved, &how, error);
}

bool tool_no_snapshots(const Image *image, GError **error)
{
    GVariantBuilder list;
    if (!image->format->snapshots) {
        return true;
    }
    g_variant_builder_init(&list, G_VARIANT_TYPE("aa{sv}"));
    unsigned count = image->format->snapshots(image, 0, &list);
    g_variant_builder_clear(&list);
    return count == 0 ||
           error_set(error, ENOTSUP,
                     "%s: has %u internal snapshots, which would read something else over another "
                     "backing: delete them, or copy the disk with 'cownbd convert'",
                     image->path, count);
}

bool tool_not_in_chain(const Image *chain, const char *path, GError **error)
{
    for (const Image *image = chain; image; image = image->backing) {
        if (target_is_file(image->path, path)) {
            return error_set(error, EINVAL,
                             "%s: is the same file as %s, which is read: must be "
                             "another one",
                             path, image->path);
        }
    }
    return true;
}
