/*
 * qcow2: another name in the header for the backing, or none.
 *
 *     cluster 0:  | header | extensions ... end |        | old name |   | new name |
 *                 |<------- sector 0 -------->|
 *
 * The new name is written where nothing of the old header lies, and synced. Then sector 0 is
 * written in one piece, and with it everything that decides: where the name is, how long, and the
 * backing's format, which is the first extension. So after a cut the header says all of the old or
 * all of the new. To keep that true the extensions must end inside sector 0; the names of features,
 * which are there for people, are left out where they would not fit.
 */
#include "formats/qcow2.h"

#include "base/cleanup.h"
#include "base/errors.h"

#define SECTOR         512u
#define EXTENSION_HEAD 8u

typedef struct NewHeader {
    const Image *image;
    uint8_t *cluster;       /* cluster 0 as it is */
    uint64_t old_end;       /* where the extensions end now */
    GByteArray *extensions; /* as they shall be, the end included */
    uint64_t name_offset;
} NewHeader;

static void append(GByteArray *list, uint32_t type, const void *data, uint32_t length)
{
    static const uint8_t padding[8];
    uint8_t head[EXTENSION_HEAD];
    store_be32(head, type);
    store_be32(head + 4, length);
    g_byte_array_append(list, head, sizeof head);
    g_byte_array_append(list, data, length);
    g_byte_array_append(list, padding, align_up(length, 8) - length);
}

/* The extensions as they are, without those of the type `without` and the backing's format, behind
 * the new format. Sets old_end. The list was checked when the image was opened. */
static void build_extensions(NewHeader *new, const char *format, uint32_t without)
{
    const Qcow2State *s = new->image->state;
    uint64_t at = s->header.header_length;
    g_byte_array_set_size(new->extensions, 0);
    format = format_name_in_images(format);
    if (format) {
        append(new->extensions, QCOW2_EXT_BACKING_FORMAT, format, strlen(format));
    }
    while (range_within(at, EXTENSION_HEAD, s->cluster_size)) {
        uint32_t type = load_be32(new->cluster + at), n = load_be32(new->cluster + at + 4);
        at += EXTENSION_HEAD;
        if (type == QCOW2_EXT_END || !range_within(at, n, s->cluster_size)) {
            break;
        }
        if (type != QCOW2_EXT_BACKING_FORMAT && type != without) {
            append(new->extensions, type, new->cluster + at, n);
        }
        at += align_up(n, 8);
    }
    new->old_end = min_u64(at, s->cluster_size);
    append(new->extensions, QCOW2_EXT_END, NULL, 0);
}

/* A place behind all extensions, old and new, and beside the old name. Where a cluster is a sector,
 * that is written as a whole, and the name with it. */
static bool place_name(NewHeader *new, uint64_t length)
{
    const Qcow2State *s = new->image->state;
    const Qcow2Header *h = &s->header;
    if (s->cluster_size == SECTOR) {
        new->name_offset = h->header_length + new->extensions->len;
        return range_within(new->name_offset, length, SECTOR);
    }
    new->name_offset = align_up(max_u64(new->old_end, SECTOR), 8);
    if (ranges_overlap(new->name_offset, length, h->backing_file_offset, h->backing_file_size)) {
        new->name_offset = align_up(h->backing_file_offset + h->backing_file_size, 8);
    }
    return range_within(new->name_offset, length, s->cluster_size);
}

static bool fits(NewHeader *new, uint64_t name_length)
{
    const Qcow2State *s = new->image->state;
    return s->header.header_length + new->extensions->len <= SECTOR &&
           (name_length == 0 || place_name(new, name_length));
}

static int write_name(Image *image, const NewHeader *new, const char *name)
{
    if (new->name_offset < SECTOR) {
        memcpy(new->cluster + new->name_offset, name, strlen(name));
        return 0;
    }
    int r = store_write(image->store, name, strlen(name), new->name_offset);
    return r < 0 ? r : store_sync(image->store);
}

static int write_sector(Image *image, NewHeader *new, uint64_t name_length)
{
    const Qcow2State *s = image->state;
    uint8_t *sector = new->cluster;
    uint64_t at = s->header.header_length;
    store_be64(sector + offsetof(Qcow2HeaderDisk, backing_file_offset),
               name_length ? new->name_offset : 0);
    store_be32(sector + offsetof(Qcow2HeaderDisk, backing_file_size), name_length);
    memcpy(sector + at, new->extensions->data, new->extensions->len);
    int r = store_write(image->store, sector, SECTOR, 0);
    return r < 0 ? r : store_sync(image->store);
}

static void remember(Image *image, const NewHeader *new, const char *name, const char *format)
{
    Qcow2State *s = image->state;
    s->header.backing_file_offset = name ? new->name_offset : 0;
    s->header.backing_file_size = name ? strlen(name) : 0;
    qcow2_extensions_locate(s, new->extensions->data, new->extensions->len,
                            name ? new->name_offset : s->cluster_size);
    image_name_backing(image, name, format);
}

static bool write_header(Image *image, NewHeader *new, const char *name, const char *format,
                         GError **error)
{
    Qcow2State *s = image->state;
    uint64_t name_length = name ? strlen(name) : 0;
    with_mutex(&s->header_lock);
    int r = store_read(image->store, new->cluster, s->cluster_size, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", image->path);
    }
    build_extensions(new, format, QCOW2_EXT_END);
    if (!fits(new, name_length)) {
        build_extensions(new, format, QCOW2_EXT_FEATURE_NAMES);
    }
    if (!fits(new, name_length)) {
        return error_set(error, ENOSPC,
                         "%s: the first cluster has no room to change the backing safely: convert "
                         "the image into a new one",
                         image->path);
    }
    r = name ? write_name(image, new, name) : 0;
    r = r < 0 ? r : write_sector(image, new, name_length);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot write the header", image->path);
    }
    remember(image, new, name, format);
    return true;
}

bool qcow2_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                       GError **error)
{
    const Qcow2State *s = image->state;
    if (name && qcow2_data_is_raw(s)) {
        return error_set(error, EINVAL,
                         "%s: has a raw data file, which says all of the disk: can have no backing",
                         image->path);
    }
    if (name && strlen(name) > QCOW2_MAX_BACKING_NAME) {
        return error_set(error, EINVAL, "%s: the backing name has %zu bytes: must be at most %d",
                         image->path, strlen(name), QCOW2_MAX_BACKING_NAME);
    }
    NewHeader new = {
        .image = image,
        .cluster = g_try_malloc(s->cluster_size),
        .extensions = g_byte_array_new(),
    };
    bool done = new.cluster ? write_header(image, &new, name, format, error)
                            : error_set_errno(error, ENOMEM, "%s", image->path);
    g_byte_array_unref(new.extensions);
    g_free(new.cluster);
    return done;
}
