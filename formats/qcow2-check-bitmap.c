/*
 * qcow2 check: persistent dirty bitmaps refer to clusters, too.
 *
 *     directory entry: 0 table offset  8 table entries  12 flags  16 type  17 granularity  18 name size
 *                      20 extra size  24 extra, name, padding to 8
 *     table entry:     55..9 offset of a cluster of bits; 0: none, and bit 0 says all ones or all zeroes
 *
 * The server does not use bitmaps; the check must know their clusters, or it would call them leaked.
 */
#include "formats/qcow2-check.h"

#define DIRECTORY_ENTRY_HEAD 24
#define TABLE_PIECE          (1u << 16)
#define ENTRY_RESERVED       UINT64_C(0xff000000000001fe)
#define ENTRY_ALL_ONES       UINT64_C(1)

static void scan_table_entry(Qcow2Check *check, unsigned bitmap, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    bool bad = (entry & ENTRY_RESERVED) || offset % check->cluster_size != 0 ||
               (offset != 0 && (entry & ENTRY_ALL_ONES));
    if (bad) {
        check_corruption(check, 1, "ERROR bitmap %u: table entry 0x%" PRIx64 " is not possible",
                         bitmap, entry);
    } else if (offset != 0) {
        check_refer(check, offset, check->cluster_size, 1, "a bitmap table entry");
    }
}

static void scan_table(Qcow2Check *check, unsigned bitmap, uint64_t offset, uint64_t length)
{
    g_autofree uint8_t *piece = g_malloc(min_u64(length, TABLE_PIECE));
    for (uint64_t done = 0; done < length; done += TABLE_PIECE) {
        uint64_t n = min_u64(length - done, TABLE_PIECE);
        int result = store_read(check->store, piece, n, offset + done);
        if (result < 0) {
            check_error(check, "ERROR bitmap %u: table at %" PRIu64 ": %s", bitmap, offset,
                        g_strerror(-result));
            return;
        }
        for (uint64_t i = 0; i < n; i += 8) {
            uint64_t entry = load_be64(piece + i);
            if (entry != 0) {
                scan_table_entry(check, bitmap, entry);
            }
        }
    }
}

/* One directory entry of at most `room` bytes; its length, or 0: it cannot be true. */
static uint64_t scan_entry(Qcow2Check *check, unsigned bitmap, const uint8_t *entry, uint64_t room)
{
    if (room < DIRECTORY_ENTRY_HEAD) {
        return 0;
    }
    uint64_t table_offset = load_be64(entry);
    uint64_t table_length = (uint64_t)load_be32(entry + 8) * 8;
    uint64_t length =
        align_up(DIRECTORY_ENTRY_HEAD + (uint64_t)load_be32(entry + 20) + load_be16(entry + 18), 8);
    if (length > room || table_length == 0 || table_offset == 0 ||
        table_offset % check->cluster_size != 0) {
        return 0;
    }
    check->table_bytes += table_length;
    if (check->table_bytes > check->counts.limit) { /* tables that lie on top of each other */
        check_error(check, "ERROR bitmap %u: the bitmap tables are too large for the file", bitmap);
    } else if (check_refer(check, table_offset, table_length, 1, "a bitmap table")) {
        scan_table(check, bitmap, table_offset, table_length);
    }
    return length;
}

void check_scan_bitmaps(Qcow2Check *check)
{
    const Qcow2State *s = check->s;
    uint64_t length = s->bitmap_directory_size;
    if (s->bitmap_count == 0 ||
        !check_refer(check, s->bitmap_directory_offset, length, 1, "the bitmap directory")) {
        return;
    }
    g_autofree uint8_t *directory = g_try_malloc(length);
    int result = directory ? store_read(check->store, directory, length, s->bitmap_directory_offset)
                           : -ENOMEM;
    if (result < 0) {
        check_error(check, "ERROR bitmap directory: %s", g_strerror(-result));
        return;
    }
    uint64_t at = 0;
    for (unsigned i = 0; i < s->bitmap_count; i++) {
        uint64_t used = scan_entry(check, i, directory + at, length - at);
        if (used == 0) {
            check_corruption(check, 1, "ERROR bitmap %u: its directory entry is damaged", i);
            return;
        }
        at += used;
    }
}
