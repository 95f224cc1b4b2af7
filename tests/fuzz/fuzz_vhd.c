/*
 * Fuzz target: a vhd made of any bytes (fuzz-image.h). Checksums are made right first, or hardly
 * anything would get past them.
 */
#include "formats/vhd.h"
#include "fuzz-image.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_image_init();
    return 0;
}

static void sign(uint8_t *bytes, size_t size, uint64_t offset, size_t length, size_t checksum)
{
    if (range_within(offset, length, size)) {
        store_be32(bytes + offset + checksum, vhd_checksum(bytes + offset, length, checksum));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_image(&format_vhd, data, size);
    g_autofree uint8_t *signed_data = g_memdup2(data, size);
    sign(signed_data, size, 0, VHD_FOOTER_SIZE, VHD_F_CHECKSUM);
    sign(signed_data, size, VHD_FOOTER_SIZE, VHD_HEADER_SIZE, VHD_H_CHECKSUM);
    if (size > 0) {
        sign(signed_data, size, (size - 1) / VHD_SECTOR * VHD_SECTOR, VHD_FOOTER_SIZE,
             VHD_F_CHECKSUM);
        fuzz_image(&format_vhd, signed_data, size);
    }
    return 0;
}
