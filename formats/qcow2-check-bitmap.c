/*
 * qcow2 check: persistent dirty bitmaps refer to clusters, too.
 *
 *     directory entry (qcow2-bitmap.c) -> table -> clusters of bits
 *     table entry: 55..9 offset of a cluster; 0: none, and bit 0 says all ones or all zeroes
 */
#include "formats/qcow2-bitmap.h"
#include "formats/qcow2-check.h"

#define TABLE_PIECE (1u << 16)

static void scan_table_entry(Qcow2Check *check, unsigned bitmap, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    bool bad = (entry & QCOW2_BITMAP_ENTRY_RESERVED) || offset % check->cluster_size != 0 ||
               (offset != 0 && (entry & QCOW2_BITMAP_ENTRY_ALL_ONES));
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

static void scan_bitmap(Qcow2Check *check, unsigned index, const Qcow2Bitmap *bitmap)
{
    uint64_t length = (uint64_t)bitmap->table_entries * 8;
    check->table_bytes += length;
    if (check->table_bytes > check->counts.limit) { /* tables that lie on top of each other */
        check_error(check, "ERROR bitmap %u: the bitmap tables are too large for the file", index);
    } else if (check_refer(check, bitmap->table_offset, length, 1, "a bitmap table")) {
        scan_table(check, index, bitmap->table_offset, length);
    }
}

void check_scan_bitmaps(Qcow2Check *check)
{
    const Qcow2State *s = check->s;
    g_autofree uint8_t *directory = NULL;
    if (s->bitmap_count == 0 || !check_refer(check, s->bitmap_directory_offset,
                                             s->bitmap_directory_size, 1, "the bitmap directory")) {
        return;
    }
    int result = qcow2_bitmap_directory_read(check->image, &directory);
    if (result < 0) {
        check_error(check, "ERROR bitmap directory: %s", g_strerror(-result));
        return;
    }
    uint64_t at = 0;
    for (unsigned i = 0; i < s->bitmap_count; i++) {
        Qcow2Bitmap bitmap;
        if (!qcow2_bitmap_unpack(s, directory + at, s->bitmap_directory_size - at, &bitmap)) {
            check_corruption(check, 1, "ERROR bitmap %u: its directory entry is damaged", i);
            return;
        }
        scan_bitmap(check, i, &bitmap);
        at += bitmap.length;
    }
}
