/*
 * Fuzz target: a vhdx made of any bytes (fuzz-image.h).
 *
 * The smallest vhdx has 4 MiB, nearly all of them zeroes; and whatever is changed in it, a checksum is wrong. So the
 * input is a list of pieces, and the checksums are made right unless its first bit says no:
 *
 *     flags 1, MiB of the file 1; for each piece: page of the file 2 (little endian), length 2, bytes
 */
#include "formats/vhdx.h"
#include "fuzz-image.h"

#define FILE_MAX 8u /* MiB */

static void put_pieces(uint8_t *image, size_t image_size, const uint8_t *data, size_t size)
{
    while (size >= 4) {
        uint64_t offset = load_le16(data) * (uint64_t)VHDX_PAGE;
        size_t length = min_u64(load_le16(data + 2), size - 4);
        if (range_within(offset, length, image_size)) {
            memcpy(image + offset, data + 4, length);
        }
        data += 4 + length;
        size -= 4 + length;
    }
}

static void mend(uint8_t *image, size_t image_size, uint64_t offset, uint64_t length)
{
    if (length >= 8 && range_within(offset, length, image_size)) {
        store_le32(image + offset + 4, vhdx_checksum(image + offset, length));
    }
}

/* Headers, region tables, and whatever looks like an entry of a log. */
static void mend_checksums(uint8_t *image, size_t image_size)
{
    for (unsigned i = 0; i < 2; i++) {
        mend(image, image_size, VHDX_HEADER_1 * (i + 1), VHDX_HEADER_SIZE);
        mend(image, image_size, VHDX_REGIONS_1 + i * VHDX_TABLE_SIZE, VHDX_TABLE_SIZE);
    }
    for (uint64_t at = VHDX_MIB; at < image_size; at += VHDX_PAGE) {
        if (memcmp(image + at, "loge", 4) == 0) {
            mend(image, image_size, at, load_le32(image + at + VHDX_L_LENGTH));
        }
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_image_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t image_size = size < 2 ? 0 : data[1] % (FILE_MAX + 1) * VHDX_MIB;
    g_autofree uint8_t *image = g_malloc0(image_size + 1);
    if (size >= 2) {
        put_pieces(image, image_size, data + 2, size - 2);
    }
    if (size >= 2 && !(data[0] & 1)) {
        mend_checksums(image, image_size);
    }
    fuzz_image(&format_vhdx, image, image_size);
    return 0;
}
