/*
 * qcow2: the header, its extensions and the feature bits.
 *
 *     0           72                104 or 112     header_length                backing_file_offset  cluster_size
 *     | version 2 | also version 3 | later fields | type length data pad ... 0 | name of the backing ... |
 *
 * Nothing is shifted, multiplied or used as an offset before the check that makes it safe: version
 * and incompatible features first (a future version may mean anything), then cluster_bits, then
 * everything that depends on it.
 */
#include "formats/qcow2.h"

#include <stdarg.h>
#include <string.h>

#include "base/errors.h"
#include "base/cleanup.h"
#include "base/log.h"

#define FEATURE_ENTRY    48 /* type, bit, 46 bytes of name */
#define FEATURE_NAME     46
#define FEATURE_INCOMPAT 0
#define EXTENSION_HEAD   8

/* The fields that version 2 has, too. */
static void unpack_fields(const uint8_t *head, Qcow2Header *h)
{
    Qcow2HeaderDisk d = {0};
    memcpy(&d, head, QCOW2_V2_HEADER_LENGTH);
    *h = (Qcow2Header){
        .version = be32toh(d.version),
        .backing_file_offset = be64toh(d.backing_file_offset),
        .backing_file_size = be32toh(d.backing_file_size),
        .cluster_bits = be32toh(d.cluster_bits),
        .size = be64toh(d.size),
        .crypt_method = be32toh(d.crypt_method),
        .l1_size = be32toh(d.l1_size),
        .l1_table_offset = be64toh(d.l1_table_offset),
        .refcount_table_offset = be64toh(d.refcount_table_offset),
        .refcount_table_clusters = be32toh(d.refcount_table_clusters),
        .nb_snapshots = be32toh(d.nb_snapshots),
        .snapshots_offset = be64toh(d.snapshots_offset),
        .refcount_order = 4,
        .header_length = QCOW2_V2_HEADER_LENGTH,
    };
}

/* The name that the image's feature name table gives to an incompatible bit, or "bit N". Looks no
 * further than n. */
static char *feature_name(const uint8_t *head, size_t n, uint32_t header_length, unsigned bit)
{
    uint64_t at = header_length;
    while (range_within(at, EXTENSION_HEAD, n)) {
        uint32_t type = load_be32(head + at), length = load_be32(head + at + 4);
        at += EXTENSION_HEAD;
        if (type == QCOW2_EXT_END || !range_within(at, length, n)) {
            break;
        }
        for (uint32_t i = 0; type == QCOW2_EXT_FEATURE_NAMES && i + FEATURE_ENTRY <= length;
             i += FEATURE_ENTRY) {
            const uint8_t *entry = head + at + i;
            if (entry[0] == FEATURE_INCOMPAT && entry[1] == bit && entry[2] != 0) {
                g_autofree char *raw = g_strndup((const char *)entry + 2, FEATURE_NAME);
                return g_utf8_make_valid(raw, -1);
            }
        }
        at += align_up(length, 8);
    }
    return g_strdup_printf("bit %u", bit);
}

static bool check_features(const uint8_t *head, size_t n, const char *name, const Qcow2Header *h,
                           GError **error)
{
    uint64_t unknown = h->incompatible_features & ~QCOW2_INCOMPAT_KNOWN;
    if (unknown != 0) {
        g_autoptr(GString) list = g_string_new(NULL);
        for (unsigned bit = 0; bit < 64; bit++) {
            if (unknown & (UINT64_C(1) << bit)) {
                g_autofree char *feature = feature_name(head, n, h->header_length, bit);
                g_string_append_printf(list, "%s%s", list->len > 0 ? ", " : "", feature);
            }
        }
        g_autofree char *printable = g_strescape(list->str, NULL);
        return error_set(error, ENOTSUP, "%s: incompatible_features names what is unknown here: %s",
                         name, printable);
    }
    return true;
}

static bool unpack_v3(const uint8_t *head, size_t n, const char *name, Qcow2Header *h,
                      GError **error)
{
    if (n < QCOW2_V3_HEADER_LENGTH) {
        return error_set(error, EUCLEAN, "%s: the file ends inside the header: %zu bytes of %u",
                         name, n, QCOW2_V3_HEADER_LENGTH);
    }
    Qcow2HeaderDisk d = {0};
    memcpy(&d, head, n < sizeof d ? n : sizeof d);
    h->incompatible_features = be64toh(d.incompatible_features);
    h->compatible_features = be64toh(d.compatible_features);
    h->autoclear_features = be64toh(d.autoclear_features);
    h->refcount_order = be32toh(d.refcount_order);
    h->header_length = be32toh(d.header_length);
    if (!check_features(head, n, name, h, error)) {
        return false;
    }
    if (h->header_length < QCOW2_V3_HEADER_LENGTH || h->header_length % 8 != 0) {
        return error_set(error, EUCLEAN,
                         "%s: header_length is %u: must be at least 104 and a multiple of 8", name,
                         h->header_length);
    }
    if (h->header_length >= sizeof d) {
        h->compression_type = d.compression_type;
    }
    if (h->compression_type > QCOW2_COMPRESSION_ZSTD) {
        return error_set(error, ENOTSUP, "%s: compression_type is %u: must be 0 (zlib) or 1 (zstd)",
                         name, h->compression_type);
    }
    bool flagged = h->incompatible_features & QCOW2_INCOMPAT_COMPRESSION;
    if (flagged != (h->compression_type != QCOW2_COMPRESSION_ZLIB)) {
        return error_set(error, EUCLEAN,
                         "%s: compression_type is %u, but the compression bit of "
                         "incompatible_features is %s: must be %s",
                         name, h->compression_type, flagged ? "set" : "clear",
                         flagged ? "clear" : "set");
    }
    return true;
}

static bool check_basics(const char *name, const Qcow2Header *h, GError **error)
{
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS) {
        return error_set(error, EUCLEAN, "%s: cluster_bits is %u: must be 9 to 21", name,
                         h->cluster_bits);
    }
    bool extended = h->incompatible_features & QCOW2_INCOMPAT_EXTENDED_L2;
    if (extended && h->cluster_bits < QCOW2_EXTENDED_CLUSTER_BITS) {
        return error_set(error, EUCLEAN,
                         "%s: cluster_bits is %u: must be 14 to 21 with extended L2 entries", name,
                         h->cluster_bits);
    }
    if (h->refcount_order > QCOW2_MAX_REFCOUNT_ORDER) {
        return error_set(error, EUCLEAN, "%s: refcount_order is %u: must be 0 to 6", name,
                         h->refcount_order);
    }
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
    if (h->header_length > cluster_size) {
        return error_set(error, EUCLEAN,
                         "%s: header_length is %u: must not pass the cluster, %" PRIu64, name,
                         h->header_length, cluster_size);
    }
    if (h->crypt_method > QCOW2_CRYPT_LUKS) {
        return error_set(error, EUCLEAN, "%s: crypt_method is %u: must be 0, 1 (AES) or 2 (LUKS)",
                         name, h->crypt_method);
    }
    if (h->backing_file_offset != 0 && h->backing_file_size != 0) {
        if (h->backing_file_offset < h->header_length || h->backing_file_offset > cluster_size) {
            return error_set(error, EUCLEAN,
                             "%s: backing_file_offset is %" PRIu64
                             ": must lie behind the header, inside the first cluster",
                             name, h->backing_file_offset);
        }
        uint64_t room = cluster_size - h->backing_file_offset;
        if (h->backing_file_size > min_u64(QCOW2_MAX_BACKING_NAME, room)) {
            return error_set(error, EUCLEAN,
                             "%s: backing_file_size is %u: must be at most %" PRIu64, name,
                             h->backing_file_size, min_u64(QCOW2_MAX_BACKING_NAME, room));
        }
    }
    return true;
}

/* One table of the header: alignment, its limit, and that its end is a file offset. */
static bool check_table(const char *name, const char *field, uint64_t offset, uint64_t bytes,
                        const char *size_field, uint64_t limit, uint64_t cluster_size,
                        GError **error)
{
    if (bytes > limit) {
        return error_set(error, EUCLEAN,
                         "%s: %s makes a table of %" PRIu64 " bytes: must be at most %" PRIu64,
                         name, size_field, bytes, limit);
    }
    if (bytes == 0) {
        return true;
    }
    if (offset % cluster_size != 0 || offset == 0) {
        return error_set(error, EUCLEAN,
                         "%s: %s is %" PRIu64 ": must be a multiple of the cluster size, %" PRIu64
                         ", and not 0",
                         name, field, offset, cluster_size);
    }
    if (offset > INT64_MAX - bytes) {
        return error_set(error, EUCLEAN,
                         "%s: %s is %" PRIu64 ": must be below 2^63 with the table's size", name,
                         field, offset);
    }
    return true;
}

static bool check_tables(const char *name, const Qcow2Header *h, GError **error)
{
    uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;
    if (h->size > INT64_MAX) {
        return error_set(error, EUCLEAN, "%s: size is %" PRIu64 ": must be below 2^63", name,
                         h->size);
    }
    uint32_t entry_size = h->incompatible_features & QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8;
    uint64_t span = cluster_size * (cluster_size / entry_size); /* of one L2 table; at most 2^39 */
    uint64_t l1_needed = div_round_up(h->size, span);
    uint64_t l1_most = QCOW2_MAX_L1_BYTES / 8;
    if (l1_needed > l1_most) {
        return error_set(error, EUCLEAN,
                         "%s: size is %" PRIu64
                         ": needs an L1 table of over 32 MiB: must be at most "
                         "%" PRIu64 " with this cluster size",
                         name, h->size, l1_most * span);
    }
    if (h->l1_size < l1_needed) {
        return error_set(error, EUCLEAN,
                         "%s: l1_size is %u: must be at least %" PRIu64 " for the size", name,
                         h->l1_size, l1_needed);
    }
    if (h->refcount_table_clusters == 0) {
        return error_set(error, EUCLEAN, "%s: refcount_table_clusters is 0: must be at least 1",
                         name);
    }
    if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS) {
        return error_set(error, EUCLEAN, "%s: nb_snapshots is %u: must be at most 65536", name,
                         h->nb_snapshots);
    }
    return check_table(name, "l1_table_offset", h->l1_table_offset, (uint64_t)h->l1_size * 8,
                       "l1_size", QCOW2_MAX_L1_BYTES, cluster_size, error) &&
           check_table(name, "refcount_table_offset", h->refcount_table_offset,
                       h->refcount_table_clusters * cluster_size, "refcount_table_clusters",
                       QCOW2_MAX_REFCOUNT_TABLE_BYTES, cluster_size, error) &&
           check_table(name, "snapshots_offset", h->snapshots_offset, h->nb_snapshots,
                       "nb_snapshots", QCOW2_MAX_SNAPSHOTS, cluster_size, error);
}

bool qcow2_header_unpack(const uint8_t *head, size_t n, const char *name, Qcow2Header *header,
                         GError **error)
{
    if (n < QCOW2_V2_HEADER_LENGTH || load_be32(head) != QCOW2_MAGIC) {
        return error_set(error, EUCLEAN, "%s: magic is missing: a qcow2 image begins with QFI\\xfb",
                         name);
    }
    unpack_fields(head, header);
    if (header->version != 2 && header->version != 3) {
        return error_set(error, ENOTSUP, "%s: version is %u: must be 2 or 3", name,
                         header->version);
    }
    return (header->version == 2 || unpack_v3(head, n, name, header, error)) &&
           check_basics(name, header, error) && check_tables(name, header, error);
}

void qcow2_header_pack(const Qcow2Header *h, Qcow2HeaderDisk *disk)
{
    *disk = (Qcow2HeaderDisk){
        .magic = htobe32(QCOW2_MAGIC),
        .version = htobe32(h->version),
        .backing_file_offset = htobe64(h->backing_file_offset),
        .backing_file_size = htobe32(h->backing_file_size),
        .cluster_bits = htobe32(h->cluster_bits),
        .size = htobe64(h->size),
        .crypt_method = htobe32(h->crypt_method),
        .l1_size = htobe32(h->l1_size),
        .l1_table_offset = htobe64(h->l1_table_offset),
        .refcount_table_offset = htobe64(h->refcount_table_offset),
        .refcount_table_clusters = htobe32(h->refcount_table_clusters),
        .nb_snapshots = htobe32(h->nb_snapshots),
        .snapshots_offset = htobe64(h->snapshots_offset),
    };
    if (h->version >= 3) {
        disk->incompatible_features = htobe64(h->incompatible_features);
        disk->compatible_features = htobe64(h->compatible_features);
        disk->autoclear_features = htobe64(h->autoclear_features);
        disk->refcount_order = htobe32(h->refcount_order);
        disk->header_length = htobe32(h->header_length);
        disk->compression_type = h->compression_type;
    }
}

static bool read_bitmaps_extension(Image *image, const uint8_t *data, uint32_t length,
                                   GError **error)
{
    Qcow2State *s = image->state;
    if (!(s->header.autoclear_features & QCOW2_AUTOCLEAR_BITMAPS)) {
        return true; /* a writer that did not know bitmaps was here: they mean nothing any more */
    }
    if (length != QCOW2_BITMAPS_EXT_LENGTH) {
        return error_set(error, EUCLEAN, "%s: bitmaps extension: length is %u: must be 24",
                         image->path, length);
    }
    s->bitmap_count = load_be32(data);
    s->bitmap_directory_size = load_be64(data + 8);
    s->bitmap_directory_offset = load_be64(data + 16);
    if (s->bitmap_count == 0 || s->bitmap_count > QCOW2_MAX_BITMAPS) {
        return error_set(error, EUCLEAN, "%s: nb_bitmaps is %u: must be 1 to 65535", image->path,
                         s->bitmap_count);
    }
    uint64_t limit = (uint64_t)QCOW2_MAX_BITMAPS * 1024;
    return check_table(image->path, "bitmap_directory_offset", s->bitmap_directory_offset,
                       s->bitmap_directory_size, "bitmap_directory_size", limit, s->cluster_size,
                       error);
}

/* By our name of it, where we know the format. */
static void read_backing_format(Image *image, const char *text, uint32_t length)
{
    g_autofree char *name = g_strndup(text, length);
    const Format *format = format_find(name);
    g_free(image->backing_format);
    image->backing_format = format ? g_strdup(format->name) : g_steal_pointer(&name);
}

static bool read_extension(Image *image, uint32_t type, const uint8_t *data, uint32_t length,
                           GError **error)
{
    switch (type) {
    case QCOW2_EXT_BACKING_FORMAT:
        read_backing_format(image, (const char *)data, length);
        return true;
    case QCOW2_EXT_CRYPTO:
        return qcow2_crypto_extension(image, data, length, error);
    case QCOW2_EXT_BITMAPS:
        return read_bitmaps_extension(image, data, length, error);
    case QCOW2_EXT_DATA_FILE:
        return qcow2_data_extension(image, data, length, error);
    default: /* feature names were looked at before; unknown extensions are to be ignored */
        return true;
    }
}

void qcow2_extensions_locate(Qcow2State *s, const uint8_t *area, uint64_t length, uint64_t limit)
{
    s->bitmaps_extension = s->extensions_end = 0;
    s->extensions_limit = limit;
    for (uint64_t at = 0; range_within(at, EXTENSION_HEAD, length);) {
        uint32_t type = load_be32(area + at), n = load_be32(area + at + 4);
        if (type == QCOW2_EXT_END) {
            s->extensions_end = s->header.header_length + at;
            return;
        }
        if (type == QCOW2_EXT_BITMAPS && n == QCOW2_BITMAPS_EXT_LENGTH) {
            s->bitmaps_extension = s->header.header_length + at + EXTENSION_HEAD;
        }
        at += EXTENSION_HEAD + align_up(n, 8);
    }
}

static bool read_extensions(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    const Qcow2Header *h = &s->header;
    bool named = h->backing_file_offset != 0 && h->backing_file_size != 0;
    uint64_t end = named ? h->backing_file_offset : s->cluster_size;
    uint64_t length = end - h->header_length;
    g_autofree uint8_t *area = g_try_malloc(length + 1);
    if (area == NULL) {
        return error_set_errno(error, ENOMEM, "%s", image->path);
    }
    int r = store_read(image->store, area, length, h->header_length);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header extensions", image->path);
    }
    uint64_t at = 0;
    s->bitmap_count = 0;
    s->bitmap_directory_size = s->bitmap_directory_offset = 0;
    qcow2_extensions_locate(s, area, length, end);
    while (range_within(at, EXTENSION_HEAD, length)) {
        uint32_t type = load_be32(area + at), n = load_be32(area + at + 4);
        at += EXTENSION_HEAD;
        if (type == QCOW2_EXT_END) {
            break;
        }
        if (!range_within(at, n, length)) {
            return error_set(error, EUCLEAN,
                             "%s: header extension 0x%08x: length is %u: must end before %" PRIu64
                             " (the backing name or the first cluster's end)",
                             image->path, type, n, end);
        }
        if (!read_extension(image, type, area + at, n, error)) {
            return false;
        }
        at += align_up(n, 8);
    }
    return true;
}

static bool read_backing_name(Image *image, GError **error)
{
    const Qcow2Header *h = &qcow2_state(image)->header;
    if (h->backing_file_offset == 0 || h->backing_file_size == 0) {
        return true;
    }
    char name[QCOW2_MAX_BACKING_NAME + 1] = {0};
    int r = store_read(image->store, name, h->backing_file_size, h->backing_file_offset);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the backing file's name", image->path);
    }
    if (strlen(name) != h->backing_file_size) {
        return error_set(error, EUCLEAN, "%s: the backing file's name holds a zero byte",
                         image->path);
    }
    image->backing_name = g_strdup(name);
    return true;
}

static bool table_in_file(Image *image, const char *field, uint64_t offset, uint64_t bytes,
                          GError **error)
{
    uint64_t cluster_size = qcow2_state(image)->cluster_size;
    if (bytes == 0 || qcow2_table_offset_ok(image, offset, div_round_up(bytes, cluster_size))) {
        return true;
    }
    return error_set(error, EUCLEAN,
                     "%s: %s is %" PRIu64 ": the table must end inside the file, which has %" PRIu64
                     " bytes",
                     image->path, field, offset, store_size(image->store));
}

bool qcow2_header_read(Image *image, GError **error)
{
    Qcow2State *s = image->state;
    const Qcow2Header *h = &s->header;
    uint64_t l1_bytes = (uint64_t)h->l1_size * 8;
    uint64_t table_bytes = h->refcount_table_clusters * s->cluster_size;
    if (!read_extensions(image, error) || !read_backing_name(image, error) ||
        !table_in_file(image, "l1_table_offset", h->l1_table_offset, l1_bytes, error) ||
        !table_in_file(image, "refcount_table_offset", h->refcount_table_offset, table_bytes,
                       error) ||
        !table_in_file(image, "snapshots_offset", h->snapshots_offset, h->nb_snapshots, error) ||
        !table_in_file(image, "bitmap_directory_offset", s->bitmap_directory_offset,
                       s->bitmap_directory_size, error)) {
        return false;
    }
    if (l1_bytes != 0 &&
        ranges_overlap(h->l1_table_offset, l1_bytes, h->refcount_table_offset, table_bytes)) {
        return error_set(error, EUCLEAN,
                         "%s: l1_table_offset is %" PRIu64 ": must not overlap the refcount table",
                         image->path, h->l1_table_offset);
    }
    return true;
}

#define FIELDS(first, behind) offsetof(Qcow2HeaderDisk, first), offsetof(Qcow2HeaderDisk, behind)

/* Writes the fields from `first` up to `behind` as next says them, durably. They lie together in one sector, so
 * they are written in one piece. header_lock is held; who calls keeps the state's header in step, field by
 * field: others are read meanwhile. */
static int write_fields(Image *image, const Qcow2Header *next, size_t first, size_t behind)
{
    Qcow2HeaderDisk disk;
    qcow2_header_pack(next, &disk);
    int r = store_write(image->store, (const uint8_t *)&disk + first, behind - first, first);
    return r < 0 ? r : store_sync(image->store);
}

/* The same for fields that say what the disk is: after a failure it is not known which of the two the header
 * has, so nothing is written any more; also for want of space, for to try again would not tell. */
static int write_disk_fields(Image *image, const Qcow2Header *next, size_t first, size_t behind)
{
    Qcow2State *s = image->state;
    int r = write_fields(image, next, first, behind);
    if (r < 0) {
        s->broken = -EIO;
    }
    return r;
}

int qcow2_header_set_features(Image *image, uint64_t incompatible, uint64_t autoclear)
{
    Qcow2State *s = image->state;
    if (s->header.version < 3) {
        return 0;
    }
    with_mutex(&s->header_lock);
    Qcow2Header next = s->header;
    next.incompatible_features = incompatible;
    next.autoclear_features = autoclear;
    int r = write_fields(image, &next, FIELDS(incompatible_features, refcount_order));
    if (r == 0) {
        s->header.incompatible_features = incompatible;
        s->header.autoclear_features = autoclear;
    }
    return r;
}

int qcow2_header_set_refcount_table(Image *image, uint64_t offset, uint32_t clusters)
{
    Qcow2State *s = image->state;
    with_mutex(&s->header_lock);
    Qcow2Header next = s->header;
    next.refcount_table_offset = offset;
    next.refcount_table_clusters = clusters;
    int r = write_fields(image, &next, FIELDS(refcount_table_offset, nb_snapshots));
    if (r == 0) {
        s->header.refcount_table_offset = offset;
        s->header.refcount_table_clusters = clusters;
    }
    return r;
}

int qcow2_header_set_snapshots(Image *image, uint64_t offset, uint32_t count)
{
    Qcow2State *s = image->state;
    with_mutex(&s->header_lock);
    Qcow2Header next = s->header;
    next.nb_snapshots = count;
    next.snapshots_offset = offset;
    int r = write_disk_fields(image, &next, FIELDS(nb_snapshots, incompatible_features));
    if (r == 0) {
        s->header.nb_snapshots = count;
        s->header.snapshots_offset = offset;
    }
    return r;
}

int qcow2_header_set_disk(Image *image, uint64_t size, uint64_t offset, uint32_t entries)
{
    Qcow2State *s = image->state;
    with_mutex(&s->header_lock);
    Qcow2Header next = s->header;
    next.size = size;
    next.l1_size = entries;
    next.l1_table_offset = offset;
    int r = write_disk_fields(image, &next, FIELDS(size, refcount_table_offset));
    if (r == 0) {
        s->header.size = size;
        s->header.l1_size = entries;
        s->header.l1_table_offset = offset;
    }
    return r;
}

int qcow2_header_set_l1(Image *image, uint64_t offset, uint32_t entries)
{
    return qcow2_header_set_disk(image, qcow2_state(image)->header.size, offset, entries);
}

int qcow2_header_set_size(Image *image, uint64_t size)
{
    const Qcow2Header *h = &qcow2_state(image)->header;
    return qcow2_header_set_disk(image, size, h->l1_table_offset, h->l1_size);
}

int qcow2_corrupt(Image *image, const char *format, ...)
{
    Qcow2State *s = image->state;
    if (atomic_exchange(&s->corrupt, true)) {
        return -EIO;
    }
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    bool mark = image->write && !image->repair;
    log_error("%s: the image is damaged: %s%s", image->path, text,
              mark ? "; nothing is written to it any more" : "");
    if (mark) {
        uint64_t bits = s->header.incompatible_features | QCOW2_INCOMPAT_CORRUPT;
        if (qcow2_header_set_features(image, bits, s->header.autoclear_features) < 0) {
            log_error("%s: cannot set the corrupt bit", image->path);
        }
    }
    return -EIO;
}
