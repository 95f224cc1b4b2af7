/*
 * The verb snapshot: an internal snapshot of an image that is served is made or deleted.
 */
#include "base/errors.h"
#include "cli/serve-impl.h"
#include "formats/format.h"

static bool get_change(JsonObject *arguments, const Format *format, DiskSnapshotChange *change,
                       GError **error)
{
    const char *action = NULL;
    if (!control_get_string(arguments, "action", &action, error)) {
        return false;
    }
    if (g_strcmp0(action, "create") == 0) {
        *change = format->snapshot_create;
    } else if (g_strcmp0(action, "delete") == 0) {
        *change = format->snapshot_delete;
    } else {
        return error_set(error, EINVAL,
                         "action is %s%s%s: must be create or delete while an image is served",
                         action ? "'" : "missing", action ? action : "", action ? "'" : "");
    }
    return *change != NULL ||
           error_set(error, ENOTSUP, "format %s has no snapshots: only qcow2 has", format->name);
}

static bool snapshot_verb(JsonObject *arguments, JsonObject *answer, void *context, GError **error)
{
    Serve *serve = context;
    const char *name = NULL;
    DiskSnapshotChange change = NULL;
    g_autoptr(ServedImage) image = serve_image_argument(serve, arguments, error);
    if (image == NULL || !get_change(arguments, image->image->format, &change, error) ||
        !control_get_string(arguments, "name", &name, error)) {
        return false;
    }
    if (name == NULL) {
        return error_set(error, EINVAL, "name is missing: must be a string");
    }
    if (!image->write) {
        return error_set(error, EROFS, "%s: is served read-only", image->real_path);
    }
    Worker *worker = g_ptr_array_index(serve->workers, 0);
    return disk_snapshot(image->disk, worker, change, name, error);
}

void serve_snapshot_start(Serve *serve)
{
    static const char *const keys[] = {"image", "action", "name", NULL};
    control_add_verb(serve->control, "snapshot", keys, snapshot_verb, serve);
}
