/*
 * The verb resize: an image that is served gets another size.
 *
 * Clients that come see the new size; those that are there keep the one that they were told, and may
 * use the new part. The block device of the kernel follows.
 */
#include "cli/output.h"
#include "cli/serve-impl.h"
#include "cli/size-change.h"

#include "base/errors.h"

static bool get_arguments(JsonObject *arguments, SizeChange *change, bool *shrink, GError **error)
{
    const char *text = NULL;
    if (!control_get_string(arguments, "size", &text, error) ||
        !control_get_bool(arguments, "shrink", shrink, error)) {
        return false;
    }
    return text != NULL ? size_change_parse(text, change, error)
                        : error_set(error, EINVAL, "size is missing: must be a string, as \"+1G\"");
}

static bool resize_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    Serve *serve = context;
    SizeChange change;
    bool shrink = false;
    g_autoptr(ServedImage) image = serve_image_argument(serve, arguments, error);
    if (image == NULL || !get_arguments(arguments, &change, &shrink, error)) {
        return false;
    }
    uint64_t old_size = disk_node(image->disk)->size, size;
    Worker *worker = g_ptr_array_index(serve->workers, 0);
    if (!size_change_apply(&change, old_size, &size, error) ||
        !disk_resize(image->disk, worker, size, shrink, error)) {
        return false;
    }
    json_object_set_int_member(answer, "old-size", old_size);
    json_object_set_int_member(answer, "size", disk_node(image->disk)->size);
    return serve_attach_resized(serve, image, error);
}

void serve_resize_start(Serve *serve)
{
    static const char *const keys[] = {"image", "size", "shrink", NULL};
    control_add_verb(serve->control, "resize", keys, resize_verb, serve);
}
