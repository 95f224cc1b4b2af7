/*
 * vhd: the names by which a differencing image knows its parent.
 *
 * A locator says for one platform where the parent is:
 *
 *     W2ru  relative, UTF-16 in little endian, ".\base.vhd"           looked at first
 *     MacX  a URL in UTF-8, "file://./base.vhd" as Xen writes it      then
 *     W2ku  absolute, UTF-16 in little endian, "C:\images\base.vhd"   then
 *
 * and the header has the parent's bare name. A path of Windows says nothing here but for its last
 * part, which is tried beside the image; that the right file was found, only the parent's UUID
 * tells (vhd.c).
 *
 * Which space a locator takes is said in sectors by the specification and in bytes by some writers.
 */
#include "formats/vhd.h"

#include <string.h>
#include <sys/stat.h>

#include "base/errors.h"
#include "formats/windows-name.h"

#define LOCATOR_MAX   4096u /* bytes of a name */
#define PLATFORM_W2RU 0x57327275u
#define PLATFORM_W2KU 0x57326b75u
#define PLATFORM_MACX 0x4d616358u
#define NEW_SPACE     (VHD_LOCATORS_SPACE / 2) /* bytes for each of the two that we write */

uint64_t vhd_locator_space(uint32_t space, uint32_t length)
{
    uint64_t bytes =
        space % VHD_SECTOR == 0 && space >= length ? space : (uint64_t)space * VHD_SECTOR;
    return max_u64(bytes, align_up(length, VHD_SECTOR));
}

static char *read_locator(const Image *image, const VhdState *s, uint32_t platform, gsize *length)
{
    for (unsigned i = 0; i < VHD_LOCATORS; i++) {
        const uint8_t *locator = s->header.bytes + VHD_H_LOCATORS + i * VHD_LOCATOR_SIZE;
        uint64_t offset = load_be64(locator + 16);
        *length = load_be32(locator + 8);
        if (load_be32(locator) != platform || *length == 0 || *length > LOCATOR_MAX ||
            !range_within(offset, *length, store_size(image->store))) {
            continue;
        }
        char *bytes = g_malloc0(*length + 1);
        if (store_read(image->store, bytes, *length, offset) == 0) {
            return bytes;
        }
        g_free(bytes);
    }
    return NULL;
}

static char *read_windows(const Image *image, const VhdState *s, uint32_t platform)
{
    gsize length;
    g_autofree char *bytes = read_locator(image, s, platform, &length);
    return bytes ? windows_name_decode(bytes, length, "UTF-16LE") : NULL;
}

static char *read_url(const Image *image, const VhdState *s)
{
    gsize length;
    g_autofree char *bytes = read_locator(image, s, PLATFORM_MACX, &length);
    if (!bytes || !g_str_has_prefix(bytes, "file://")) {
        return NULL;
    }
    const char *path = bytes + strlen("file://");
    if (g_str_has_prefix(path, "localhost/")) {
        path += strlen("localhost");
    }
    char *plain = g_uri_unescape_string(path, NULL);
    if (!plain || !*plain || !g_utf8_validate(plain, -1, NULL)) {
        g_clear_pointer(&plain, g_free);
    }
    return plain;
}

static char *read_bare_name(const VhdState *s)
{
    const uint8_t *name = s->header.bytes + VHD_H_PARENT_NAME;
    gsize length = 0;
    while (length < VHD_NAME_MAX && load_be16(name + length) != 0) {
        length += 2;
    }
    return length ? windows_name_decode(name, length, "UTF-16BE") : NULL;
}

bool vhd_parent_read(Image *image, const VhdState *s, GError **error)
{
    char *name = windows_name_to_local(read_windows(image, s, PLATFORM_W2RU));
    name = name ? name : windows_name_to_local(read_url(image, s));
    name = name ? name : windows_name_to_local(read_windows(image, s, PLATFORM_W2KU));
    name = name ? name : windows_name_to_local(read_bare_name(s));
    if (!name) {
        return error_set(error, EUCLEAN,
                         "%s: type is 4 (differencing), but neither a parent locator nor the "
                         "header has the parent's name",
                         image->path);
    }
    image->backing_name = name;
    image->backing_substitute = windows_name_substitute(name);
    /* Xen's way to say that the parent is no vhd: it has no UUID. */
    image->backing_format =
        g_strdup(bytes_are_zero(s->header.parent_uuid, VHD_UUID_SIZE) ? "raw" : "vhd");
    return true;
}

static void add_locator(uint8_t *header, unsigned number, uint32_t platform, const void *text,
                        gsize length, uint64_t offset, GByteArray *data)
{
    uint8_t *locator = header + VHD_H_LOCATORS + number * VHD_LOCATOR_SIZE;
    store_be32(locator, platform);
    store_be32(locator + 4, NEW_SPACE / VHD_SECTOR);
    store_be32(locator + 8, length);
    store_be64(locator + 16, offset);
    guint start = data->len;
    g_byte_array_set_size(data, start + NEW_SPACE);
    memset(data->data + start, 0, NEW_SPACE);
    memcpy(data->data + start, text, length);
}

bool vhd_parent_check(const char *format, const Image *backing, GError **error)
{
    bool raw = strcmp(format, "raw") == 0;
    if (!raw && format_find(format) != &format_vhd) {
        return error_set(error, EINVAL, "the backing format is %s: must be vhd or raw", format);
    }
    return raw || backing ||
           error_set(error, EINVAL,
                     "the UUID of the backing file is needed: it must be looked at (without "
                     "-u)");
}

/* What the parent is known by. A raw one has no UUID. */
static void make_identity(const Image *backing, uint8_t *header)
{
    struct stat st;
    if (backing && backing->format == &format_vhd) {
        memcpy(header + VHD_H_PARENT_UUID, vhd_state(backing)->footer.uuid, VHD_UUID_SIZE);
    }
    if (backing && stat(backing->path, &st) == 0) {
        store_be32(header + VHD_H_PARENT_TIME, vhd_time(st.st_mtime));
    }
}

bool vhd_parent_make(const char *name, const Image *backing, uint64_t offset, uint8_t *header,
                     GByteArray *data, GError **error)
{
    g_autofree char *windows = windows_name_from_local(name, error);
    if (!windows) {
        return false;
    }
    g_autofree char *escaped = g_uri_escape_string(name, "/", TRUE);
    g_autofree char *url = g_strconcat("file://", name[0] == '/' ? "" : "./", escaped, NULL);
    g_autofree char *base = g_path_get_basename(name);
    gsize length, base_length;
    g_autofree char *relative = g_convert(windows, -1, "UTF-16LE", "UTF-8", NULL, &length, NULL);
    g_autofree char *bare = g_convert(base, -1, "UTF-16BE", "UTF-8", NULL, &base_length, NULL);
    if (!relative || !bare) {
        return error_set(error, EINVAL, "the name of the backing file is no text in UTF-8");
    }
    if (length > NEW_SPACE || strlen(url) > NEW_SPACE || base_length > VHD_NAME_MAX) {
        return error_set(error, EINVAL,
                         "the name of the backing file is too long: must be at most %u characters, "
                         "its last part at most %u",
                         NEW_SPACE / 2, VHD_NAME_MAX / 2);
    }
    memcpy(header + VHD_H_PARENT_NAME, bare, base_length);
    make_identity(backing, header);
    add_locator(header, 0, PLATFORM_MACX, url, strlen(url), offset, data);
    add_locator(header, 1, name[0] == '/' ? PLATFORM_W2KU : PLATFORM_W2RU, relative, length,
                offset + NEW_SPACE, data);
    return true;
}
