/*
 * vhdx: the headers and the region tables.
 *
 *     offset    what lies there                header: offset size meaning
 *          0    "vhdxfile", name of creator            0     4  "head"
 *     64 KiB    header 1                               4     4  CRC-32C of the 4096 bytes
 *    128 KiB    header 2                               8     8  sequence number
 *    192 KiB    region table 1                        16    16  GUID: changes with each opening for writing
 *    256 KiB    region table 2                        32    16  GUID: and this one with what a guest sees
 *      1 MiB    log, regions, blocks                  48    16  GUID of the log; null: it is empty
 *                                                     64     2  version of the log, 0
 *     region table: "regi", CRC-32C of 64 KiB,        66     2  version, 1
 *     entries; at 16, for each, 32 bytes:             68     4  length of the log
 *     GUID, offset 8, length 4, required 4            72     8  offset of the log
 *
 * The header that counts is the sound one with the higher sequence number. A new one is written over the other, so that
 * a power cut leaves one of them sound. The region tables are two of the same.
 */
#include "formats/vhdx.h"

#include <stdio.h>
#include <sys/random.h>

#include "base/crc32c.h"
#include "base/errors.h"

#define REGION_ENTRY 32u
#define CHECKSUM_AT  4u

const uint8_t vhdx_guid_table[VHDX_GUID_SIZE] = {0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42,
                                                 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08};
const uint8_t vhdx_guid_metadata[VHDX_GUID_SIZE] = {0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b,
                                                    0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e};

uint32_t vhdx_checksum(const uint8_t *bytes, size_t n)
{
    static const uint8_t zeroes[4];
    uint32_t crc = crc32c(0, bytes, CHECKSUM_AT);
    crc = crc32c(crc, zeroes, sizeof zeroes);
    return crc32c(crc, bytes + CHECKSUM_AT + 4, n - CHECKSUM_AT - 4);
}

/* ---- GUIDs ---- */

bool vhdx_guid_make(uint8_t *guid, GError **error)
{
    if (getrandom(guid, VHDX_GUID_SIZE, 0) != (ssize_t)VHDX_GUID_SIZE) {
        return error_set_errno(error, errno, "cannot make a GUID");
    }
    guid[7] = (guid[7] & 0x0f) | 0x40; /* made of random numbers, RFC 4122 */
    guid[8] = (guid[8] & 0x3f) | 0x80;
    return true;
}

char *vhdx_guid_text(const uint8_t *g)
{
    return g_strdup_printf("{%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x}", load_le32(g),
                           load_le16(g + 4), load_le16(g + 6), g[8], g[9], g[10], g[11], g[12],
                           g[13], g[14], g[15]);
}

bool vhdx_guid_parse(const char *text, uint8_t *guid)
{
    unsigned a, b, c, d[8];
    int end = 0;
    int fields = sscanf(text, "{%8x-%4x-%4x-%2x%2x-%2x%2x%2x%2x%2x%2x}%n", &a, &b, &c, &d[0], &d[1],
                        &d[2], &d[3], &d[4], &d[5], &d[6], &d[7], &end);
    if (fields != 11 || end == 0 || text[end] != '\0') {
        return false;
    }
    store_le32(guid, a);
    store_le16(guid + 4, b);
    store_le16(guid + 6, c);
    for (unsigned i = 0; i < 8; i++) {
        guid[8 + i] = d[i];
    }
    return true;
}

/* ---- headers ---- */

static bool read_slot(const Image *image, unsigned slot, uint8_t *bytes, GError **error)
{
    int r = store_read(image->store, bytes, VHDX_HEADER_SIZE, VHDX_HEADER_1 * (slot + UINT64_C(1)));
    return r == 0 || error_set_errno(error, -r, "%s: cannot read header %u", image->path, slot + 1);
}

static bool is_sound(const uint8_t *bytes, size_t n, const char *signature)
{
    return memcmp(bytes, signature, 4) == 0 &&
           load_le32(bytes + CHECKSUM_AT) == vhdx_checksum(bytes, n);
}

static bool refuse_headers(const Image *image, const uint8_t *first, GError **error)
{
    if (memcmp(first, "head", 4) != 0) {
        return error_set(error, EUCLEAN,
                         "%s: no header: neither of the two has the signature 'head'", image->path);
    }
    return error_set(error, EUCLEAN, "%s: checksum of the header is %08x: must be %08x",
                     image->path, load_le32(first + CHECKSUM_AT),
                     vhdx_checksum(first, VHDX_HEADER_SIZE));
}

static bool unpack_header(const Image *image, const uint8_t *bytes, VhdxHeader *header,
                          GError **error)
{
    unsigned version = load_le16(bytes + VHDX_H_VERSION);
    unsigned log_version = load_le16(bytes + VHDX_H_LOG_VERSION);
    header->sequence = load_le64(bytes + VHDX_H_SEQUENCE);
    memcpy(header->file_guid, bytes + VHDX_H_FILE_GUID, VHDX_GUID_SIZE);
    memcpy(header->data_guid, bytes + VHDX_H_DATA_GUID, VHDX_GUID_SIZE);
    memcpy(header->log_guid, bytes + VHDX_H_LOG_GUID, VHDX_GUID_SIZE);
    header->log =
        (VhdxRange){load_le64(bytes + VHDX_H_LOG_OFFSET), load_le32(bytes + VHDX_H_LOG_LENGTH)};
    if (version != 1) {
        return error_set(error, ENOTSUP, "%s: version is %u: must be 1", image->path, version);
    }
    if (log_version != 0) {
        return error_set(error, ENOTSUP, "%s: version of the log is %u: must be 0", image->path,
                         log_version);
    }
    if (header->log.length == 0 || header->log.length % VHDX_MIB != 0 ||
        header->log.length > VHDX_LOG_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: length of the log is %" PRIu64
                         ": must be a multiple of 1048576 up to %" PRIu64,
                         image->path, header->log.length, VHDX_LOG_MAX);
    }
    return true;
}

bool vhdx_header_read(const Image *image, VhdxState *s, GError **error)
{
    uint8_t bytes[2][VHDX_HEADER_SIZE];
    if (!read_slot(image, 0, bytes[0], error) || !read_slot(image, 1, bytes[1], error)) {
        return false;
    }
    bool first = is_sound(bytes[0], VHDX_HEADER_SIZE, "head");
    bool second = is_sound(bytes[1], VHDX_HEADER_SIZE, "head");
    if (!first && !second) {
        return refuse_headers(image, bytes[0], error);
    }
    s->header.slot = second && (!first || load_le64(bytes[1] + VHDX_H_SEQUENCE) >
                                              load_le64(bytes[0] + VHDX_H_SEQUENCE));
    return unpack_header(image, bytes[s->header.slot], &s->header, error);
}

int vhdx_header_write(Store *store, VhdxHeader *header)
{
    uint8_t bytes[VHDX_HEADER_SIZE] = "head";
    unsigned slot = 1 - header->slot;
    store_le64(bytes + VHDX_H_SEQUENCE, header->sequence + 1);
    memcpy(bytes + VHDX_H_FILE_GUID, header->file_guid, VHDX_GUID_SIZE);
    memcpy(bytes + VHDX_H_DATA_GUID, header->data_guid, VHDX_GUID_SIZE);
    memcpy(bytes + VHDX_H_LOG_GUID, header->log_guid, VHDX_GUID_SIZE);
    store_le16(bytes + VHDX_H_VERSION, 1);
    store_le32(bytes + VHDX_H_LOG_LENGTH, header->log.length);
    store_le64(bytes + VHDX_H_LOG_OFFSET, header->log.offset);
    store_le32(bytes + VHDX_H_CHECKSUM, vhdx_checksum(bytes, sizeof bytes));
    int r = store_write(store, bytes, sizeof bytes, VHDX_HEADER_1 * (slot + UINT64_C(1)));
    r = r < 0 ? r : store_sync(store);
    if (r == 0) {
        header->sequence++;
        header->slot = slot;
    }
    return r;
}

/* ---- regions ---- */

static bool add_region(const Image *image, VhdxState *s, const char *what, VhdxRange range,
                       GError **error)
{
    uint64_t size = vhdx_file_size(image, s);
    if (range.offset < VHDX_MIB || range.offset % VHDX_MIB != 0 || range.length == 0 ||
        range.length % VHDX_MIB != 0 || !range_within(range.offset, range.length, size)) {
        return error_set(error, EUCLEAN,
                         "%s: offset of the %s is %" PRIu64 ", with %" PRIu64
                         " bytes: both must be multiples of 1048576, within the file, which has "
                         "%" PRIu64 " bytes",
                         image->path, what, range.offset, range.length, size);
    }
    for (guint i = 0; i < s->regions->len; i++) {
        const VhdxRange *other = &g_array_index(s->regions, VhdxRange, i);
        if (ranges_overlap(range.offset, range.length, other->offset, other->length)) {
            return error_set(error, EUCLEAN,
                             "%s: offset of the %s is %" PRIu64 ", with %" PRIu64
                             " bytes: lies on what is at %" PRIu64,
                             image->path, what, range.offset, range.length, other->offset);
        }
    }
    g_array_append_val(s->regions, range);
    return true;
}

static bool read_region(const Image *image, VhdxState *s, const uint8_t *entry, GError **error)
{
    VhdxRange range = {load_le64(entry + 16), load_le32(entry + 24)};
    if (memcmp(entry, vhdx_guid_table, VHDX_GUID_SIZE) == 0) {
        s->table = range;
        return add_region(image, s, "block allocation table", range, error);
    }
    if (memcmp(entry, vhdx_guid_metadata, VHDX_GUID_SIZE) == 0) {
        s->metadata = range;
        return add_region(image, s, "metadata region", range, error);
    }
    if (load_le32(entry + 28) & 1) {
        g_autofree char *guid = vhdx_guid_text(entry);
        return error_set(error, ENOTSUP, "%s: needs a region %s that is not known here",
                         image->path, guid);
    }
    return add_region(image, s, "unknown region", range, error);
}

static int read_region_table(const Image *image, const VhdxState *s, unsigned number,
                             uint8_t *bytes)
{
    return vhdx_read(image, s, bytes, VHDX_TABLE_SIZE, VHDX_REGIONS_1 + number * UINT64_C(65536));
}

static bool refuse_region_tables(const Image *image, GError **error)
{
    return error_set(error, EUCLEAN,
                     "%s: neither of the two region tables has the signature 'regi' and the right "
                     "checksum",
                     image->path);
}

bool vhdx_regions_read(const Image *image, VhdxState *s, GError **error)
{
    g_autofree uint8_t *tables = g_malloc(2 * VHDX_TABLE_SIZE);
    for (unsigned i = 0; i < 2; i++) {
        int r = read_region_table(image, s, i, tables + i * VHDX_TABLE_SIZE);
        if (r < 0) {
            return error_set_errno(error, -r, "%s: cannot read the region table", image->path);
        }
        bool sound = is_sound(tables + i * VHDX_TABLE_SIZE, VHDX_TABLE_SIZE, "regi");
        s->regions_bad |= sound ? 0 : 1u << i;
    }
    if (s->regions_bad == 3) {
        return refuse_region_tables(image, error);
    }
    const uint8_t *table = tables + (s->regions_bad & 1 ? VHDX_TABLE_SIZE : 0);
    uint32_t count = load_le32(table + 8);
    if (count > VHDX_ENTRIES_MAX) {
        return error_set(error, EUCLEAN, "%s: entry count of the region table is %u: at most %u",
                         image->path, count, VHDX_ENTRIES_MAX);
    }
    if (!add_region(image, s, "log", s->header.log, error)) {
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!read_region(image, s, table + 16 + i * REGION_ENTRY, error)) {
            return false;
        }
    }
    if (s->table.length == 0 || s->metadata.length == 0) {
        return error_set(error, EUCLEAN, "%s: the region table has no %s", image->path,
                         s->table.length == 0 ? "block allocation table" : "metadata region");
    }
    return true;
}

static void make_region(uint8_t *entry, const uint8_t *guid, VhdxRange range)
{
    memcpy(entry, guid, VHDX_GUID_SIZE);
    store_le64(entry + 16, range.offset);
    store_le32(entry + 24, range.length);
    store_le32(entry + 28, 1);
}

void vhdx_regions_make(uint8_t *bytes, VhdxRange table, VhdxRange metadata)
{
    memcpy(bytes, "regi", 4);
    store_le32(bytes + 8, 2);
    make_region(bytes + 16, vhdx_guid_table, table);
    make_region(bytes + 16 + REGION_ENTRY, vhdx_guid_metadata, metadata);
    store_le32(bytes + CHECKSUM_AT, vhdx_checksum(bytes, VHDX_TABLE_SIZE));
}

int vhdx_regions_move_table(const Image *image, VhdxRange table, uint8_t *bytes)
{
    const VhdxState *s = image->state;
    int r = read_region_table(image, s, s->regions_bad & 1 ? 1 : 0, bytes);
    uint32_t count = r < 0 ? 0 : load_le32(bytes + 8);
    for (uint32_t i = 0; i < count && i < VHDX_ENTRIES_MAX; i++) {
        uint8_t *entry = bytes + 16 + i * REGION_ENTRY;
        if (memcmp(entry, vhdx_guid_table, VHDX_GUID_SIZE) == 0) {
            store_le64(entry + 16, table.offset);
            store_le32(entry + 24, table.length);
        }
    }
    store_le32(bytes + CHECKSUM_AT, vhdx_checksum(bytes, VHDX_TABLE_SIZE));
    return r;
}
