/*
 * vdi: finding the parent.
 *
 * An image says its parent's UUID and nothing else; VirtualBox keeps the names in files of its own.
 * So the vdi files beside the image are looked at, and those in directories that are allowed. What
 * is found is opened like any name in an image, and its UUID looked at again (vdi_check_backing):
 * what is done here is no proof.
 *
 * To have another parent is to have other UUIDs, which lie in the first sector with the type of the image: it is written
 * in one piece, so that a cut leaves the old parent or the new one.
 *
 * What must stay true: the number of files that are looked at has a limit, and none is opened that
 * is no regular file.
 */
#include "formats/vdi.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"

#define FILES_MAX 4096 /* looked at in one directory */

static bool has_suffix(const char *name)
{
    size_t length = strlen(name);
    return length > 4 && g_ascii_strcasecmp(name + length - 4, ".vdi") == 0;
}

static bool has_uuid(const char *path, const uint8_t *uuid)
{
    uint8_t bytes[VDI_HEADER_END];
    autofd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
           pread(fd, bytes, sizeof bytes, 0) == (ssize_t)sizeof bytes &&
           load_le32(bytes + VDI_H_SIGNATURE) == VDI_SIGNATURE &&
           memcmp(bytes + VDI_H_UUID, uuid, VDI_UUID_SIZE) == 0;
}

/* The name of the file with that UUID in the directory, or NULL. g_free. */
static char *find_in(const char *directory, const uint8_t *uuid)
{
    g_autoptr(GDir) files = g_dir_open(directory, 0, NULL);
    const char *name;
    for (unsigned i = 0; files && i < FILES_MAX && (name = g_dir_read_name(files)); i++) {
        g_autofree char *path = g_build_filename(directory, name, NULL);
        if (has_suffix(name) && has_uuid(path, uuid)) {
            return g_strdup(name);
        }
    }
    return NULL;
}

static char *find_name(const Image *image, const uint8_t *uuid)
{
    g_autofree char *beside = g_path_get_dirname(image->path);
    char *name = find_in(beside, uuid);
    for (unsigned i = 0; !name && image->allow_paths && image->allow_paths[i]; i++) {
        g_autofree char *found = find_in(image->allow_paths[i], uuid);
        if (found) {
            g_autofree char *path = g_build_filename(image->allow_paths[i], found, NULL);
            name = g_canonicalize_filename(path, NULL);
        }
    }
    return name;
}

void vdi_parent_find(Image *image, const VdiHeader *header)
{
    if (vdi_uuid_is_null(header->link)) {
        return;
    }
    char *name = image->no_names ? NULL : find_name(image, header->link);
    if (!name) {
        g_autofree char *uuid = vdi_uuid_text(header->link);
        name = g_strdup_printf("{%s}.vdi", uuid);
    }
    image->backing_name = name;
    image->backing_format = g_strdup("vdi");
}

/* ---- another one ---- */

bool vdi_parent_check(const char *name, const char *format, const Image *backing, GError **error)
{
    if (format_find(format) != &format_vdi) {
        return error_set(error, EINVAL, "the backing format is %s: must be vdi", format);
    }
    if (!has_suffix(name)) {
        return error_set(error, EINVAL,
                         "the name of the backing file is '%s': must end in .vdi, for it is found "
                         "again by its UUID among such files",
                         name);
    }
    return backing || error_set(error, EINVAL,
                                "the UUID of the backing file is needed: it must be looked at "
                                "(without -u)");
}

static VdiType type_with(VdiType now, bool parent)
{
    if (parent) {
        return now == VDI_UNDO ? VDI_UNDO : VDI_DIFFERENCING;
    }
    return now == VDI_FIXED ? VDI_FIXED : VDI_DYNAMIC;
}

static int write_parent(Image *image, const VdiHeader *header)
{
    uint8_t sector[VDI_SECTOR];
    int r = store_read(image->store, sector, sizeof sector, 0);
    if (r < 0) {
        return r;
    }
    store_le32(sector + VDI_H_TYPE, header->type);
    memcpy(sector + VDI_H_LINK, header->link, VDI_UUID_SIZE);
    memcpy(sector + VDI_H_PARENT, header->parent, VDI_UUID_SIZE);
    r = store_write(image->store, sector, sizeof sector, 0);
    return r < 0 ? r : store_sync(image->store);
}

bool vdi_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                     GError **error)
{
    static const VdiHeader none;
    VdiState *s = image->state;
    VdiHeader header = s->header;
    if (name && !vdi_parent_check(name, format, backing, error)) {
        return false;
    }
    const VdiHeader *parent = name ? &vdi_state(backing)->header : &none;
    memcpy(header.link, parent->uuid, VDI_UUID_SIZE);
    memcpy(header.parent, parent->modified, VDI_UUID_SIZE);
    header.type = type_with(header.type, name);
    int r = write_parent(image, &header);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the header", image->path);
    }
    s->header = header;
    image_name_backing(image, name, format);
    return true;
}
