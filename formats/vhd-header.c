/*
 * vhd: the footer and the dynamic header.
 *
 *     footer, 512 bytes, at the end of the file; a copy of it at offset 0 unless the disk is fixed
 *     offset size  meaning (big endian)                offset size  meaning
 *          0    8  "conectix"                              48    8  current size, bytes
 *          8    4  features, 2 is always set               56    4  cylinders (2), heads, sectors
 *         12    4  version, 1.0                            60    4  type
 *         16    8  offset of the dynamic header            64    4  checksum
 *         24    4  seconds since 2000-01-01                68   16  UUID
 *         28    4  creator, 32 4 its version               84    1  saved state
 *         36    4  its host, 40 8 original size            85       zeroes
 *
 *     dynamic header, 1024 bytes
 *          0    8  "cxsparse"                              40   16  the parent's UUID
 *          8    8  all ones                                56    4  the parent's time
 *         16    8  offset of the table                     64  512  its name, UTF-16, big endian
 *         24    4  version, 1.0                           576  192  8 locators: platform, space,
 *         28    4  entries in the table                             length, 0, offset
 *         32    4  block size, 36 4 checksum              768       zeroes
 *
 * The footer at the end is the authority, the one at the start the spare: a power cut may have left
 * a file that grew and has no footer at its new end. Footers of 511 bytes were written by early
 * versions of Virtual PC.
 *
 * A file made by Xen has a "batmap" behind the table, which tells which blocks are full. It is kept
 * as it is: we set sector bits and never clear one, so what it says stays true.
 */
#include "formats/vhd.h"

#include <string.h>

#include "base/errors.h"

#define HEADS_MAX      16
#define BLOCK_SIZE_MIN 512u
#define BLOCK_SIZE_MAX (256u << 20)
#define BATMAP_MAX     (4u << 20)

uint32_t vhd_checksum(const uint8_t *bytes, size_t n, size_t checksum_offset)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        if (i < checksum_offset || i >= checksum_offset + 4) {
            sum += bytes[i];
        }
    }
    return ~sum;
}

static bool has_footer_cookie(const uint8_t *bytes)
{
    return memcmp(bytes, "conectix", 8) == 0;
}

static bool is_footer(const uint8_t *bytes)
{
    return has_footer_cookie(bytes) && load_be32(bytes + VHD_F_CHECKSUM) ==
                                           vhd_checksum(bytes, VHD_FOOTER_SIZE, VHD_F_CHECKSUM);
}

/* Reads what may be a footer; a store gives zeroes behind its end. */
static bool read_at(const Image *image, uint64_t offset, uint8_t *bytes, GError **error)
{
    int r = store_read(image->store, bytes, VHD_FOOTER_SIZE, offset);
    return r == 0 || error_set_errno(error, -r, "%s: cannot read the footer", image->path);
}

/* Where the footer at the end would be, or 0. */
static uint64_t end_of_file_footer(const Image *image)
{
    uint64_t size = store_size(image->store);
    if (size % VHD_SECTOR == VHD_FOOTER_SIZE - 1) {
        return align_down(size, VHD_SECTOR);
    }
    return size >= VHD_FOOTER_SIZE ? size - VHD_FOOTER_SIZE : 0;
}

static bool refuse_footer(const Image *image, const uint8_t *bytes, GError **error)
{
    if (!has_footer_cookie(bytes)) {
        return error_set(error, EUCLEAN,
                         "%s: no footer: neither the end of the file nor its start has the cookie "
                         "'conectix'",
                         image->path);
    }
    return error_set(error, EUCLEAN, "%s: checksum of the footer is %08x: must be %08x",
                     image->path, load_be32(bytes + VHD_F_CHECKSUM),
                     vhd_checksum(bytes, VHD_FOOTER_SIZE, VHD_F_CHECKSUM));
}

/* Which of the two counts; copies it to footer.bytes. */
static bool choose_footer(const Image *image, VhdState *s, GError **error)
{
    uint8_t copy[VHD_FOOTER_SIZE], *bytes = s->footer.bytes;
    s->footer_offset = end_of_file_footer(image);
    if (!read_at(image, s->footer_offset, bytes, error) || !read_at(image, 0, copy, error)) {
        return false;
    }
    bool end_good = is_footer(bytes), copy_good = is_footer(copy);
    if (!end_good && !copy_good) {
        return refuse_footer(image, has_footer_cookie(bytes) ? bytes : copy, error);
    }
    if (!end_good) {
        memcpy(bytes, copy, sizeof copy);
        s->footer_state = VHD_FOOTER_AT_END_BAD;
        if (load_be32(bytes + VHD_F_TYPE) == VHD_FIXED) {
            return error_set(error, EUCLEAN,
                             "%s: image is truncated: the footer at its end is missing",
                             image->path);
        }
    } else if (!copy_good) {
        s->footer_state = VHD_FOOTER_COPY_BAD;
    } else if (memcmp(bytes, copy, sizeof copy) != 0) {
        s->footer_state = VHD_FOOTER_COPY_DIFFERS;
    }
    return true;
}

/* Programs that round the size of the disk down to what the geometry says: what lies behind is none
 * of the guest's. The largest geometry means that the disk is larger. */
static bool geometry_counts(const uint8_t *bytes)
{
    return memcmp(bytes + VHD_F_CREATOR, "vpc ", 4) == 0 ||
           memcmp(bytes + VHD_F_CREATOR, "qemu", 4) == 0;
}

static uint64_t disk_size(const uint8_t *bytes, VhdSize asked)
{
    uint64_t current = load_be64(bytes + VHD_F_CURRENT);
    uint64_t chs = (uint64_t)load_be16(bytes + VHD_F_CYLINDERS) * bytes[VHD_F_HEADS] *
                   bytes[VHD_F_SECTORS] * VHD_SECTOR;
    bool counts = asked == VHD_SIZE_OF_CREATOR ? geometry_counts(bytes) && chs != VHD_MAX_GEOMETRY
                                               : asked == VHD_SIZE_CHS;
    return counts ? chs : current;
}

static bool unpack_footer(const Image *image, VhdFooter *footer, GError **error)
{
    const uint8_t *bytes = footer->bytes;
    uint32_t version = load_be32(bytes + VHD_F_VERSION), type = load_be32(bytes + VHD_F_TYPE);
    if (version >> 16 != 1) {
        return error_set(error, ENOTSUP, "%s: version of the footer is %u.%u: must be 1.0",
                         image->path, version >> 16, version & 0xffff);
    }
    if (type < VHD_FIXED || type > VHD_DIFFERENCING) {
        return error_set(error, ENOTSUP,
                         "%s: type is %u: must be 2 (fixed), 3 (dynamic) or 4 (differencing)",
                         image->path, type);
    }
    footer->type = type;
    footer->data_offset = load_be64(bytes + VHD_F_DATA_OFFSET);
    footer->timestamp = load_be32(bytes + VHD_F_TIMESTAMP);
    footer->size = disk_size(bytes, image->vhd_size);
    memcpy(footer->uuid, bytes + VHD_F_UUID, VHD_UUID_SIZE);
    if (footer->size % VHD_SECTOR != 0 || footer->size > INT64_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: current size is %" PRIu64 ": must be a multiple of 512 below 2^63",
                         image->path, footer->size);
    }
    return true;
}

bool vhd_footer_read(const Image *image, VhdState *s, GError **error)
{
    if (!choose_footer(image, s, error) || !unpack_footer(image, &s->footer, error)) {
        return false;
    }
    if (s->footer.type != VHD_FIXED) {
        return true;
    }
    s->footer_state = VHD_FOOTER_GOOD; /* it has no copy */
    if (s->footer.size > s->footer_offset) {
        return error_set(error, EUCLEAN,
                         "%s: image is truncated: current size is %" PRIu64 ", but only %" PRIu64
                         " bytes are before the footer",
                         image->path, s->footer.size, s->footer_offset);
    }
    return true;
}

static bool add_structure(const Image *image, VhdState *s, const char *field, VhdRange range,
                          GError **error)
{
    if (!range_within(range.offset, range.length, store_size(image->store))) {
        return error_set(error, EUCLEAN,
                         "%s: %s is %" PRIu64 ", with %" PRIu64
                         " bytes: must end within the file, which has %" PRIu64 " bytes",
                         image->path, field, range.offset, range.length, store_size(image->store));
    }
    for (guint i = 0; i < s->structures->len; i++) {
        const VhdRange *other = &g_array_index(s->structures, VhdRange, i);
        if (ranges_overlap(range.offset, range.length, other->offset, other->length)) {
            return error_set(error, EUCLEAN,
                             "%s: %s is %" PRIu64 ", with %" PRIu64
                             " bytes: lies on what is at %" PRIu64,
                             image->path, field, range.offset, range.length, other->offset);
        }
    }
    g_array_append_val(s->structures, range);
    return true;
}

static bool check_header(const Image *image, const VhdHeader *header, uint64_t size, GError **error)
{
    const uint8_t *bytes = header->bytes;
    uint32_t version = load_be32(bytes + VHD_H_VERSION);
    uint32_t sum = vhd_checksum(bytes, VHD_HEADER_SIZE, VHD_H_CHECKSUM);
    if (memcmp(bytes, "cxsparse", 8) != 0) {
        return error_set(error, EUCLEAN, "%s: cookie of the dynamic header: must be 'cxsparse'",
                         image->path);
    }
    if (load_be32(bytes + VHD_H_CHECKSUM) != sum) {
        return error_set(error, EUCLEAN, "%s: checksum of the dynamic header is %08x: must be %08x",
                         image->path, load_be32(bytes + VHD_H_CHECKSUM), sum);
    }
    if (version >> 16 != 1) {
        return error_set(error, ENOTSUP, "%s: version of the dynamic header is %u.%u: must be 1.0",
                         image->path, version >> 16, version & 0xffff);
    }
    if (!is_power_of_two(header->block_size) || header->block_size < BLOCK_SIZE_MIN ||
        header->block_size > BLOCK_SIZE_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: block size is %u: must be a power of two from %u to %u", image->path,
                         header->block_size, BLOCK_SIZE_MIN, BLOCK_SIZE_MAX);
    }
    uint64_t needed = div_round_up(size, header->block_size);
    if (header->entries < needed || header->entries > BLOCK_TABLE_MAX) {
        return error_set(error, EUCLEAN, "%s: max_table_entries is %u: must be %" PRIu64 " to %u",
                         image->path, header->entries, needed, BLOCK_TABLE_MAX);
    }
    return true;
}

uint64_t vhd_batmap_place(const VhdState *s)
{
    return align_up(s->header.table_offset + s->header.entries * UINT64_C(4), VHD_SECTOR);
}

/* Xen's map of full blocks, which lies behind the table, if there is one. */
static bool find_batmap(const Image *image, VhdState *s, uint64_t table_end, GError **error)
{
    uint8_t bytes[VHD_BATMAP_HEADER];
    uint64_t size = store_size(image->store);
    if (!range_within(table_end, sizeof bytes, size)) {
        return true;
    }
    int r = store_read(image->store, bytes, sizeof bytes, table_end);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read behind the table", image->path);
    }
    if (memcmp(bytes, VHD_BATMAP_MAGIC, 8) != 0) {
        return true;
    }
    s->has_batmap = true;
    VhdRange map = {load_be64(bytes + VHD_BATMAP_OFFSET),
                    (uint64_t)load_be32(bytes + VHD_BATMAP_SIZE) * VHD_SECTOR};
    if (map.length > BATMAP_MAX) {
        return error_set(error, EUCLEAN, "%s: size of the batmap is %" PRIu64 ": at most %u",
                         image->path, map.length, BATMAP_MAX);
    }
    return add_structure(image, s, "header of the batmap", (VhdRange){table_end, sizeof bytes},
                         error) &&
           (map.length == 0 || add_structure(image, s, "offset of the batmap", map, error));
}

/* The parent's names are not in the way of blocks. A locator that points nowhere is nobody's. */
static void add_locators(const Image *image, VhdState *s)
{
    for (unsigned i = 0; i < VHD_LOCATORS; i++) {
        const uint8_t *locator = s->header.bytes + VHD_H_LOCATORS + i * VHD_LOCATOR_SIZE;
        VhdRange range = {load_be64(locator + 16),
                          vhd_locator_space(load_be32(locator + 4), load_be32(locator + 8))};
        if (load_be32(locator) != 0 && range.length > 0 && range.length <= VHD_LOCATOR_LIMIT) {
            (void)add_structure(image, s, "locator", range, NULL);
        }
    }
}

bool vhd_header_read(const Image *image, VhdState *s, GError **error)
{
    VhdHeader *header = &s->header;
    uint64_t offset = s->footer.data_offset;
    VhdRange copy = {0, VHD_FOOTER_SIZE}, place = {offset, VHD_HEADER_SIZE};
    if (!add_structure(image, s, "copy of the footer", copy, error) ||
        !add_structure(image, s, "data offset of the footer", place, error)) {
        return false;
    }
    int r = store_read(image->store, header->bytes, VHD_HEADER_SIZE, offset);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the dynamic header", image->path);
    }
    header->table_offset = load_be64(header->bytes + VHD_H_TABLE_OFFSET);
    header->entries = load_be32(header->bytes + VHD_H_ENTRIES);
    header->block_size = load_be32(header->bytes + VHD_H_BLOCK_SIZE);
    memcpy(header->parent_uuid, header->bytes + VHD_H_PARENT_UUID, VHD_UUID_SIZE);
    if (!check_header(image, header, s->footer.size, error)) {
        return false;
    }
    VhdRange table = {header->table_offset, header->entries * 4ull};
    if (table.offset % VHD_SECTOR != 0) {
        return error_set(error, EUCLEAN,
                         "%s: table offset is %" PRIu64 ": must be a multiple of 512", image->path,
                         table.offset);
    }
    if (!add_structure(image, s, "table offset", table, error) ||
        !find_batmap(image, s, vhd_batmap_place(s), error)) {
        return false;
    }
    add_locators(image, s);
    return true;
}

uint32_t vhd_time(int64_t seconds)
{
    int64_t since = seconds - (int64_t)VHD_EPOCH;
    return since < 0 || since > UINT32_MAX ? 0 : (uint32_t)since;
}

void vhd_geometry(uint64_t size, uint16_t *cylinders, uint8_t *heads, uint8_t *sectors)
{
    uint64_t total = min_u64(size / VHD_SECTOR, VHD_MAX_GEOMETRY / VHD_SECTOR), per_head;
    if (total >= UINT64_C(65535) * HEADS_MAX * 63) {
        *sectors = 255;
        *heads = HEADS_MAX;
        per_head = total / *sectors;
    } else {
        uint64_t h;
        *sectors = 17;
        per_head = total / *sectors;
        h = max_u64(div_round_up(per_head, 1024), 4);
        if (per_head >= h * 1024 || h > HEADS_MAX) {
            *sectors = 31;
            h = HEADS_MAX;
            per_head = total / *sectors;
        }
        if (per_head >= h * 1024) {
            *sectors = 63;
            h = HEADS_MAX;
            per_head = total / *sectors;
        }
        *heads = h;
    }
    *cylinders = per_head / *heads;
}

void vhd_checksum_set(uint8_t *bytes, size_t n, size_t checksum_offset)
{
    store_be32(bytes + checksum_offset, vhd_checksum(bytes, n, checksum_offset));
}

uint64_t vhd_size_by_geometry(uint64_t size)
{
    uint64_t sectors = size / VHD_SECTOR, said;
    uint64_t asked = sectors;
    do {
        uint16_t cylinders;
        uint8_t heads, track;
        vhd_geometry(asked++ * VHD_SECTOR, &cylinders, &heads, &track);
        said = (uint64_t)cylinders * heads * track;
    } while (said < sectors && said * VHD_SECTOR != VHD_MAX_GEOMETRY);
    return said < sectors ? size : said * VHD_SECTOR;
}

void vhd_footer_set_size(uint8_t *bytes, uint64_t size)
{
    uint16_t cylinders;
    if (geometry_counts(bytes)) {
        memcpy(bytes + VHD_F_CREATOR, "win ", 4);
    }
    store_be64(bytes + VHD_F_CURRENT, size);
    vhd_geometry(size, &cylinders, bytes + VHD_F_HEADS, bytes + VHD_F_SECTORS);
    store_be16(bytes + VHD_F_CYLINDERS, cylinders);
    vhd_checksum_set(bytes, VHD_FOOTER_SIZE, VHD_F_CHECKSUM);
}
