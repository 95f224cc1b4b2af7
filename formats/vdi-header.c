/*
 * vdi: the header, version 1.1.
 *
 *     offset size  meaning (little endian)           offset size  meaning
 *       0x00   64  a text, of no meaning              0x178    4  size of a block
 *       0x40    4  signature                          0x17c    4  extra bytes before each block
 *       0x44    4  version                            0x180    4  blocks of the disk
 *       0x48    4  size of what follows               0x184    4  blocks in the file
 *       0x4c    4  type, 0x50 4 flags                 0x188   16  UUID
 *       0x54  256  comment                            0x198   16  UUID of the last change
 *      0x154    4  offset of the table                0x1a8   16  UUID of the parent
 *      0x158    4  offset of the first block          0x1b8   16  and of its last change
 *      0x168    4  512, 0x170 8 size of the disk
 *
 * The first block may lie anywhere behind the table: old versions of VirtualBox put it right
 * behind, at 0x220 for a disk of 8 blocks. Blocks need not have 1 MiB.
 */
#include "formats/vdi.h"

#include <string.h>
#include <sys/random.h>

#include "base/errors.h"

static bool check_version(const uint8_t *bytes, const char *name, GError **error)
{
    uint32_t version = load_le32(bytes + VDI_H_VERSION);
    uint32_t type = load_le32(bytes + VDI_H_TYPE);
    uint32_t sector = load_le32(bytes + VDI_H_SECTOR_SIZE);
    if (load_le32(bytes + VDI_H_SIGNATURE) != VDI_SIGNATURE) {
        return error_set(error, EUCLEAN, "%s: signature is %08x: must be %08x", name,
                         load_le32(bytes + VDI_H_SIGNATURE), VDI_SIGNATURE);
    }
    if (version != VDI_VERSION) {
        return error_set(error, ENOTSUP, "%s: version is %u.%u: must be 1.1", name, version >> 16,
                         version & 0xffff);
    }
    if (load_le32(bytes + VDI_H_HEADER_SIZE) < VDI_HEADER_SIZE) {
        return error_set(error, EUCLEAN, "%s: header size is %u: must be at least %u", name,
                         load_le32(bytes + VDI_H_HEADER_SIZE), VDI_HEADER_SIZE);
    }
    if (type < VDI_DYNAMIC || type > VDI_DIFFERENCING) {
        return error_set(error, ENOTSUP,
                         "%s: type is %u: must be 1 (dynamic), 2 (fixed), 3 (undo) or 4 "
                         "(differencing)",
                         name, type);
    }
    if (sector != VDI_SECTOR && sector != 0) {
        return error_set(error, ENOTSUP, "%s: sector size is %u: must be %u", name, sector,
                         VDI_SECTOR);
    }
    return true;
}

static bool check_sizes(const VdiHeader *header, const char *name, GError **error)
{
    uint64_t capacity = (uint64_t)header->blocks * header->block_size;
    if (header->block_size % VDI_SECTOR != 0 || header->block_size < VDI_SECTOR ||
        header->block_size > VDI_BLOCK_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: block size is %u: must be a multiple of 512, at most %u", name,
                         header->block_size, VDI_BLOCK_MAX);
    }
    if (header->extra > header->block_size) {
        return error_set(error, EUCLEAN, "%s: block extra is %u: must be at most the block size",
                         name, header->extra);
    }
    if (header->blocks > BLOCK_TABLE_MAX) {
        return error_set(error, EUCLEAN, "%s: blocks in image is %u: must be at most %u", name,
                         header->blocks, BLOCK_TABLE_MAX);
    }
    if (header->size > capacity || header->size > INT64_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: disk size is %" PRIu64 ": must be at most %" PRIu64
                         ", which its %u blocks hold",
                         name, header->size, capacity, header->blocks);
    }
    return true;
}

static bool check_places(const VdiHeader *header, Store *store, const char *name, GError **error)
{
    uint64_t table_length = header->blocks * UINT64_C(4);
    if (header->table_offset < VDI_HEADER_END || header->table_offset % 4 != 0 ||
        !range_within(header->table_offset, table_length, store_size(store))) {
        return error_set(error, EUCLEAN,
                         "%s: offset of the table is %" PRIu64
                         ": must be a multiple of 4 behind the header, and the table's %" PRIu64
                         " bytes must end within the file, which has %" PRIu64,
                         name, header->table_offset, table_length, store_size(store));
    }
    if (header->data_offset < header->table_offset + table_length) {
        return error_set(error, EUCLEAN,
                         "%s: offset of the data is %" PRIu64
                         ": must be behind the table, which ends at %" PRIu64,
                         name, header->data_offset, header->table_offset + table_length);
    }
    return true;
}

bool vdi_header_read(Store *store, const char *name, VdiHeader *header, GError **error)
{
    uint8_t bytes[VDI_HEADER_END];
    if (store_size(store) < sizeof bytes) {
        return error_set(error, EUCLEAN, "%s: image is truncated: it ends inside the header", name);
    }
    int r = store_read(store, bytes, sizeof bytes, 0);
    if (r < 0) {
        return error_set_errno(error, -r, "%s: cannot read the header", name);
    }
    if (!check_version(bytes, name, error)) {
        return false;
    }
    *header = (VdiHeader){
        .type = load_le32(bytes + VDI_H_TYPE),
        .table_offset = load_le32(bytes + VDI_H_TABLE),
        .data_offset = load_le32(bytes + VDI_H_DATA),
        .size = load_le64(bytes + VDI_H_DISK_SIZE),
        .block_size = load_le32(bytes + VDI_H_BLOCK_SIZE),
        .extra = load_le32(bytes + VDI_H_EXTRA),
        .blocks = load_le32(bytes + VDI_H_BLOCKS),
        .allocated = load_le32(bytes + VDI_H_ALLOCATED),
    };
    memcpy(header->uuid, bytes + VDI_H_UUID, VDI_UUID_SIZE);
    memcpy(header->modified, bytes + VDI_H_MODIFIED, VDI_UUID_SIZE);
    memcpy(header->link, bytes + VDI_H_LINK, VDI_UUID_SIZE);
    memcpy(header->parent, bytes + VDI_H_PARENT, VDI_UUID_SIZE);
    return check_sizes(header, name, error) && check_places(header, store, name, error);
}

char *vdi_uuid_text(const uint8_t *uuid)
{
    GString *text = g_string_new(NULL);
    g_string_printf(text, "%08x-%04x-%04x-", load_le32(uuid), load_le16(uuid + 4),
                    load_le16(uuid + 6));
    for (unsigned i = 8; i < VDI_UUID_SIZE; i++) {
        g_string_append_printf(text, "%02x%s", uuid[i], i == 9 ? "-" : "");
    }
    return g_string_free(text, FALSE);
}

bool vdi_uuid_make(uint8_t *uuid, GError **error)
{
    if (getrandom(uuid, VDI_UUID_SIZE, 0) != (ssize_t)VDI_UUID_SIZE) {
        return error_set_errno(error, errno, "cannot make a UUID");
    }
    uuid[7] = (uuid[7] & 0x0f) | 0x40; /* made of random numbers, RFC 4122; little endian */
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    return true;
}
