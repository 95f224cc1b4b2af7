/*
 * The device-mapper device above an attachment's nbd device: one of two movers, or none.
 */
#include "fastpath/attachment-impl.h"

#include "base/errors.h"

bool attachment_mapped_available(GError **error)
{
    return error_set(error, ENOTSUP, "this build has no fast path");
}

bool attachment_mapped_start(Attachment *attachment, bool adopt, GError **error)
{
    return attachment->mode == ATTACH_OFF || attachment_mapped_available(error);
}

bool attachment_mapped_resized(Attachment *attachment, GError **error)
{
    return true;
}

bool attachment_mapped_stop(Attachment *attachment, GError **error)
{
    return true;
}

void attachment_mapped_leave(Attachment *attachment)
{
}

const char *attachment_mapped_device(const Attachment *attachment)
{
    return NULL;
}
