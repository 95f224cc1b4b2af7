/*
 * Which devices of the kernel are ours, and whose image they show. Reads sysfs, changes nothing.
 *
 * An image has one nbd device (by its identifier) and, above it, at most one device-mapper device
 * that the user sees (by its UUID, which ends with a hash of the path). From such a device back to
 * the image: the nbd device whose identifier has that hash; when that one is gone, the image is not
 * known any more, and only rescue can help.
 */
#include "fastpath/attachment-impl.h"

#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/errors.h"
#include "fastpath/nbdlink.h"

/* The contents of a file in sysfs without its newline; NULL when there is none. */
static char *read_line(const char *path)
{
    char *text = NULL;
    return g_file_get_contents(path, &text, NULL, NULL) ? g_strchomp(text) : NULL;
}

char *attachment_block_attribute(const char *block, const char *attribute)
{
    g_autofree char *path = g_strdup_printf("/sys/block/%s/%s", block, attribute);
    return read_line(path);
}

char *attachment_mapped_name(const char *uuid)
{
    g_autoptr(GDir) directory = g_dir_open("/sys/block", 0, NULL);
    const char *block;
    while (directory != NULL && (block = g_dir_read_name(directory)) != NULL) {
        if (!g_str_has_prefix(block, "dm-")) {
            continue;
        }
        g_autofree char *found = attachment_block_attribute(block, "dm/uuid");
        if (found != NULL && strcmp(found, uuid) == 0) {
            return attachment_block_attribute(block, "dm/name");
        }
    }
    return NULL;
}

AttachMode attachment_find_mode(const char *path, char **name)
{
    static const AttachMode mapped[] = {ATTACH_LINEAR, ATTACH_SNAPSHOT};
    for (unsigned i = 0; i < G_N_ELEMENTS(mapped); i++) {
        g_autofree char *uuid = attachment_uuid(mapped[i], path);
        *name = attachment_mapped_name(uuid);
        if (*name != NULL) {
            return mapped[i];
        }
    }
    return ATTACH_OFF;
}

char *attachment_find(const char *path)
{
    g_autofree char *name = NULL, *identifier = attachment_identifier(path);
    if (attachment_find_mode(path, &name) != ATTACH_OFF) {
        return g_strconcat("/dev/mapper/", name, NULL);
    }
    int index = nbdlink_find(identifier);
    return index >= 0 ? nbdlink_node(index) : NULL;
}

bool attachment_is_read_only(const char *path)
{
    g_autofree char *identifier = attachment_identifier(path);
    int index = nbdlink_find(identifier);
    return index >= 0 && nbdlink_is_read_only(index);
}

/* The path in the identifier of that nbd device; NULL when it is not ours. */
static char *path_of_nbd(int index)
{
    g_autofree char *identifier = nbdlink_is_connected(index) ? nbdlink_identifier(index) : NULL;
    const char *path = identifier != NULL ? attachment_identified_path(identifier) : NULL;
    return g_strdup(path);
}

/* The path of the image whose hash ends a UUID of ours ("COWNBD-linear-<hash>", perhaps with more
 * behind it); NULL when none of the nbd devices has it. */
static char *path_of_uuid(const char *uuid)
{
    const char *hash = strchr(uuid + strlen(ATTACHMENT_UUID_PREFIX), '-');
    g_autoptr(GDir) directory = g_dir_open("/sys/block", 0, NULL);
    const char *block;
    while (hash != NULL && directory != NULL && (block = g_dir_read_name(directory)) != NULL) {
        int index = nbdlink_index(block);
        g_autofree char *path = index >= 0 ? path_of_nbd(index) : NULL;
        g_autofree char *its_hash = path != NULL ? attachment_path_hash(path) : NULL;
        if (its_hash != NULL && g_str_has_prefix(hash + 1, its_hash)) {
            return g_steal_pointer(&path);
        }
    }
    return NULL;
}

char *attachment_device_uuid(const char *device)
{
    struct stat st;
    if (stat(device, &st) != 0 || !S_ISBLK(st.st_mode)) {
        return NULL;
    }
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/dm/uuid", major(st.st_rdev), minor(st.st_rdev));
    return read_line(path);
}

static char *not_ours(const char *device, GError **error)
{
    error_set(error, EPERM,
              "%s: cownbd did not make it: detach it with what did (nbd-client -d, dmsetup remove)",
              device);
    return NULL;
}

char *attachment_image_of(const char *device, GError **error)
{
    struct stat st;
    if (stat(device, &st) != 0 || !S_ISBLK(st.st_mode)) {
        error_set(error, ENODEV, "%s: is no block device: must be /dev/nbdN or in /dev/mapper",
                  device);
        return NULL;
    }
    int index = nbdlink_index(device);
    if (index >= 0 && !nbdlink_is_connected(index)) {
        error_set(error, ENODEV, "%s: nothing is attached to it", device);
        return NULL;
    }
    g_autofree char *uuid = index < 0 ? attachment_device_uuid(device) : NULL;
    if (index < 0 && (uuid == NULL || !g_str_has_prefix(uuid, ATTACHMENT_UUID_PREFIX))) {
        return not_ours(device, error);
    }
    char *path = index >= 0 ? path_of_nbd(index) : path_of_uuid(uuid);
    if (path == NULL && index >= 0) {
        return not_ours(device, error);
    }
    if (path == NULL) {
        error_set(error, ENODEV, "%s: the nbd device below it is gone: cownbd rescue takes it down",
                  device);
    }
    return path;
}
