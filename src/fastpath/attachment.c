/*
 * The life of an attachment.
 *
 *      connect nbd -> wait until it is ready -> device-mapper above it      (new)
 *      device-mapper: check every line -> sockets for nbd                   (adopt)
 *      device-mapper off -> flush -> stop replacing sockets -> disconnect   (detach)
 *
 * What must stay true:
 *
 *  1. Adopting checks the kernel's lines before the nbd device brings the first request, as that
 *     may allocate.
 *  2. What fails while attaching leaves nothing behind; what fails while adopting leaves everything
 *     as it was: somebody may have a filesystem on it.
 *  3. Detaching asks whether the device is in use before it changes anything.
 */
#include "fastpath/attachment-impl.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/log.h"
#include "fastpath/dm.h"

#define SECTOR             512
#define READY_SECONDS      30
#define DISCONNECT_SECONDS 10

static uint64_t device_size(const Disk *disk)
{
    return align_down(disk_node((Disk *)disk)->size, SECTOR);
}

static bool check_options(const Disk *disk, const AttachmentOptions *options, GError **error)
{
    uint64_t size = disk_node((Disk *)disk)->size;
    if (strlen(options->path) > NBDLINK_IDENTIFIER_MAX - 16) {
        return error_set(error, ENAMETOOLONG, "%s: the path is too long to be attached: at most %d",
                         options->path, NBDLINK_IDENTIFIER_MAX - 16);
    }
    if (device_size(disk) == 0) {
        return error_set(error, EINVAL,
                         "%s: has %" PRIu64 " bytes: must be at least a sector of %d",
                         options->path, size, SECTOR);
    }
    if (device_size(disk) != size) {
        log_warning("%s: the last %" PRIu64 " bytes are no whole sector: the device ends before",
                    options->path, size - device_size(disk));
    }
    if (options->device != NULL && nbdlink_index(options->device) < 0) {
        return error_set(error, EINVAL, "'%s' is no nbd device: must be /dev/nbdN",
                         options->device);
    }
    return true;
}

static bool name_is_taken(const char *name)
{
    g_autofree char *node = g_strconcat("/dev/mapper/", name, NULL);
    DmInfo info;
    return access(node, F_OK) == 0 || (dm_info(name, &info, NULL) && info.exists);
}

/* The default name, with a part of the path's hash where somebody else's device has it. */
static char *choose_name(const AttachmentOptions *options)
{
    if (options->name != NULL) {
        return g_strdup(options->name);
    }
    char *name = attachment_safe_name(options->path);
    if (name_is_taken(name)) {
        g_autofree char *taken = name, *hash = attachment_path_hash(options->path);
        name = g_strdup_printf("%s-%.8s", taken, hash);
    }
    return name;
}

/* In snapshot mode nothing is ever written through the server. */
static bool below_is_read_only(AttachMode mode, bool read_only)
{
    return read_only || mode == ATTACH_SNAPSHOT;
}

static Attachment *attachment_alloc(Disk *disk, const AttachmentOptions *options)
{
    Attachment *attachment = g_new0(Attachment, 1);
    attachment->disk = disk;
    attachment->mode = options->mode;
    attachment->read_only = options->read_only;
    attachment->lines_max = options->lines_max;
    attachment->path = g_strdup(options->path);
    attachment->identifier = attachment_identifier(options->path);
    NbdLinkDevice device = {
        .flags = below_is_read_only(options->mode, options->read_only) ? NBDLINK_READ_ONLY
                                                                       : NBDLINK_TRIM,
        .size = device_size(disk),
        .request_timeout = options->request_timeout,
        .dead_timeout = options->dead_timeout,
        .identifier = attachment->identifier,
    };
    attachment->sockets = attachment_sockets_new(options, &device);
    return attachment;
}

static void attachment_free(Attachment *attachment)
{
    attachment_sockets_stop(attachment->sockets);
    attachment_sockets_unref(attachment->sockets);
    g_free(attachment->path);
    g_free(attachment->identifier);
    g_free(attachment->name);
    g_free(attachment->uuid);
    g_free(attachment->nbd_node);
    g_free(attachment);
}

static void set_mode(Attachment *attachment, AttachMode mode)
{
    attachment->mode = mode;
    g_free(attachment->uuid);
    attachment->uuid = mode == ATTACH_OFF ? NULL : attachment_uuid(mode, attachment->path);
}

/* Chooses another name where somebody has taken the default one meanwhile. */
static bool map_under_a_name(Attachment *attachment, const AttachmentOptions *options,
                             GError **error)
{
    g_autoptr(GError) why = NULL;
    attachment->name = choose_name(options);
    if (attachment_mapped_start(attachment, false, &why)) {
        return true;
    }
    g_autofree char *taken = attachment->name;
    attachment->name = choose_name(options);
    if (strcmp(attachment->name, taken) == 0) {
        g_propagate_error(error, g_steal_pointer(&why));
        return false;
    }
    return attachment_mapped_start(attachment, false, error);
}

/* The device above; where the mode is auto, none is fine too. */
static bool map_new_device(Attachment *attachment, const AttachmentOptions *options, GError **error)
{
    if (attachment->mode != ATTACH_AUTO) {
        set_mode(attachment, attachment->mode);
        return attachment->mode == ATTACH_OFF || map_under_a_name(attachment, options, error);
    }
    g_autoptr(GError) why = NULL;
    bool use = !attachment->read_only && attachment_mapped_available(&why);
    set_mode(attachment, use ? ATTACH_LINEAR : ATTACH_OFF);
    if (use && !map_under_a_name(attachment, options, &why)) {
        log_warning("%s: attached without a fast path: %s", attachment->path, why->message);
        set_mode(attachment, ATTACH_OFF);
    }
    return true;
}

static void disconnect_quietly(Attachment *attachment)
{
    g_autoptr(GError) error = NULL;
    attachment_sockets_stop(attachment->sockets);
    if (!nbdlink_disconnect(attachment->sockets->index, DISCONNECT_SECONDS, &error)) {
        log_warning("%s", error->message);
    }
}

static bool attach_new(Attachment *attachment, const AttachmentOptions *options, GError **error)
{
    AttachmentSockets *sockets = attachment->sockets;
    int wanted = options->device != NULL ? nbdlink_index(options->device) : -1;
    bool ready = attachment_sockets_connect(sockets, wanted, error);
    if (sockets->index < 0) {
        return false;
    }
    attachment->nbd_node = nbdlink_node(sockets->index);
    ready =
        ready &&
        nbdlink_wait_ready(sockets->index, device_size(attachment->disk), READY_SECONDS, error) &&
        map_new_device(attachment, options, error);
    if (!ready) {
        disconnect_quietly(attachment);
    }
    return ready;
}

/* What a dead server left. name: of the device-mapper device, or NULL. */
static bool attach_again(Attachment *attachment, int index, AttachMode mode, const char *name,
                         GError **error)
{
    if (attachment->mode != ATTACH_AUTO && attachment->mode != mode) {
        log_warning("%s: is attached with fast path %s already, not %s", attachment->path,
                    attachment_mode_name(mode), attachment_mode_name(attachment->mode));
    }
    if (nbdlink_is_read_only(index) != below_is_read_only(mode, attachment->read_only)) {
        return error_set(error, EINVAL, "%s: is attached %s: say so, or detach it first",
                         attachment->path,
                         attachment->read_only ? "for writing" : "read-only (--read-only)");
    }
    set_mode(attachment, mode);
    attachment->name = g_strdup(name);
    attachment->nbd_node = nbdlink_node(index);
    uint64_t size = device_size(attachment->disk);
    bool resized = nbdlink_size(index) != size; /* while nobody served it */
    return (!resized || nbdlink_resize(index, &attachment->sockets->device, error)) &&
           attachment_mapped_start(attachment, true, error) &&
           attachment_sockets_adopt(attachment->sockets, index, error) &&
           nbdlink_wait_ready(index, size, READY_SECONDS, error) &&
           (!resized || attachment_mapped_resized(attachment, error));
}

Attachment *attachment_new(Disk *disk, const AttachmentOptions *options, GError **error)
{
    if (!check_options(disk, options, error)) {
        return NULL;
    }
    g_autofree char *identifier = attachment_identifier(options->path), *name = NULL;
    AttachMode mode = attachment_find_mode(options->path, &name);
    int index = nbdlink_find(identifier);
    if (index < 0 && mode != ATTACH_OFF) {
        error_set(
            error, EUCLEAN,
            "/dev/mapper/%s: the nbd device below it is gone: take it down with cownbd rescue",
            name);
        return NULL;
    }
    if (index >= 0 && !options->adopt) {
        g_autofree char *device = attachment_find(options->path);
        error_set(error, EEXIST, "%s: is attached already, as %s", options->path, device);
        return NULL;
    }
    Attachment *attachment = attachment_alloc(disk, options);
    if (index >= 0 ? !attach_again(attachment, index, mode, name, error)
                   : !attach_new(attachment, options, error)) {
        if (index >= 0) {
            attachment_mapped_leave(attachment);
        }
        attachment_free(attachment);
        return NULL;
    }
    return attachment;
}

const char *attachment_device(const Attachment *attachment)
{
    const char *mapped = attachment_mapped_device(attachment);
    return mapped != NULL ? mapped : attachment->nbd_node;
}

const char *attachment_path(const Attachment *attachment)
{
    return attachment->path;
}

void attachment_get_stats(Attachment *attachment, AttachmentStats *stats)
{
    *stats = (AttachmentStats){
        .mode = attachment->mode,
        .device = attachment_device(attachment),
        .nbd_device = attachment->nbd_node,
        .connections = attachment->sockets->count,
        .reconnects = attachment_sockets_reconnects(attachment->sockets),
        .resizes = attachment->resizes,
    };
    attachment_mapped_get_stats(attachment, stats);
}

bool attachment_resized(Attachment *attachment, GError **error)
{
    attachment->resizes++;
    return attachment_sockets_resize(attachment->sockets, device_size(attachment->disk), error) &&
           attachment_mapped_resized(attachment, error);
}

bool attachment_is_alive(const Attachment *attachment)
{
    return attachment_sockets_is_ours(attachment->sockets);
}

/* Unless somebody uses the nbd device itself. */
static bool disconnect(Attachment *attachment, GError **error)
{
    int claim = attachment_claim(attachment->nbd_node, error);
    if (claim < 0) {
        return false;
    }
    close(claim); /* who has it open keeps the device in the kernel */
    attachment_sockets_stop(attachment->sockets);
    return nbdlink_disconnect(attachment->sockets->index, DISCONNECT_SECONDS, error);
}

bool attachment_detach(Attachment *attachment, GError **error)
{
    if (!attachment_mapped_stop(attachment, error)) {
        return false;
    }
    set_mode(attachment, ATTACH_OFF); /* what is left, should the rest be refused */
    if (attachment_is_alive(attachment) && !disconnect(attachment, error)) {
        return false;
    }
    attachment_free(attachment);
    return true;
}

void attachment_leave(Attachment *attachment)
{
    attachment_mapped_leave(attachment);
    attachment_free(attachment);
}
