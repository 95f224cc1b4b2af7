/*
 * The device-mapper device above an attachment's nbd device: one of two movers, or none. What is
 * common to both is here, so that the attachment's life need not know them.
 */
#include "fastpath/attachment-impl.h"

#include "base/errors.h"
#include "fastpath/dm.h"
#include "map/encryption.h"

bool attachment_mapped_available(GError **error)
{
    return dm_available("linear", error);
}

static bool start_linear(Attachment *attachment, bool adopt, GError **error)
{
    LinearOptions options = {
        .nbd_device = attachment->nbd_node,
        .name = attachment->name,
        .uuid = attachment->uuid,
        .lines_max = attachment->lines_max,
        .read_only = attachment->read_only,
        .adopt = adopt,
    };
    attachment->linear = linear_new(attachment->disk, &options, error);
    return attachment->linear != NULL;
}

static bool start_snapshot(Attachment *attachment, bool adopt, GError **error)
{
    SnapshotOptions options = {
        .nbd_device = attachment->nbd_node,
        .name = attachment->name,
        .uuid = attachment->uuid,
        .lines_max = attachment->lines_max,
        .adopt = adopt,
    };
    attachment->snapshot = snapshot_new(attachment->disk, &options, error);
    return attachment->snapshot != NULL;
}

bool attachment_mapped_start(Attachment *attachment, bool adopt, GError **error)
{
    if (attachment->mode != ATTACH_OFF && chain_is_encrypted(disk_image(attachment->disk))) {
        return error_set(error, ENOTSUP,
                         "%s: is encrypted: the kernel cannot read it by itself, and a store of "
                         "writes would not be encrypted: must be --fast-path=off",
                         attachment->path);
    }
    switch (attachment->mode) {
    case ATTACH_LINEAR:
        return start_linear(attachment, adopt, error);
    case ATTACH_SNAPSHOT:
        return start_snapshot(attachment, adopt, error);
    default:
        return true;
    }
}

bool attachment_mapped_resized(Attachment *attachment, GError **error)
{
    if (attachment->snapshot != NULL) {
        return error_set(error, ENOTSUP, "%s: cannot be resized in snapshot mode: detach it before",
                         attachment->path);
    }
    return attachment->linear == NULL || linear_resized(attachment->linear, error);
}

bool attachment_mapped_stop(Attachment *attachment, GError **error)
{
    if (attachment->linear != NULL) {
        if (!linear_stop(attachment->linear, error)) {
            return false;
        }
        attachment->linear = NULL;
    }
    if (attachment->snapshot != NULL) {
        if (!snapshot_stop(attachment->snapshot, error)) {
            return false;
        }
        attachment->snapshot = NULL;
    }
    return true;
}

void attachment_mapped_leave(Attachment *attachment)
{
    g_clear_pointer(&attachment->linear, linear_leave);
    g_clear_pointer(&attachment->snapshot, snapshot_leave);
}

const char *attachment_mapped_device(const Attachment *attachment)
{
    if (attachment->linear != NULL) {
        return linear_device(attachment->linear);
    }
    return attachment->snapshot != NULL ? snapshot_device(attachment->snapshot) : NULL;
}

void attachment_mapped_get_stats(Attachment *attachment, AttachmentStats *stats)
{
    if (attachment->linear != NULL) {
        linear_get_stats(attachment->linear, &stats->linear);
    }
    if (attachment->snapshot != NULL) {
        snapshot_get_stats(attachment->snapshot, &stats->snapshot);
    }
}
