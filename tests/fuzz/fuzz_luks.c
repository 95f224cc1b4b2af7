/*
 * Fuzz target: a luks image made of any bytes (fuzz-image.h), versions 1 and 2. No secret is tried, for
 * that takes as long as the header says; whether one may be tried is asked.
 *
 * Both headers of version 2 have a checksum over their text, which is made right first, or hardly
 * anything would get past it. So that small inputs do, the second one and the end of the image need
 * not be there: the image is as long as a header and a little data.
 */
#include "formats/luks-header.h"
#include "fuzz-image.h"

#define VERSION_AT    6
#define SIZE_AT       8
#define OFFSET_AT     256
#define CHECKSUM_AT   448
#define CHECKSUM_SIZE 64
#define HEADER_MIN    4096u
#define HEADER_MAX    (256u << 10) /* that are signed */
#define PAYLOAD_AT    104
#define SECTOR        512u
#define DATA          8192u
#define IMAGE_MAX     (4u << 20)

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_image_init();
    return 0;
}

/* SHA-256 of the header and its text, with zeroes in the place of the checksum. */
static void sign(uint8_t *bytes, size_t size, size_t offset)
{
    if (!range_within(offset, HEADER_MIN, size)) {
        return;
    }
    uint8_t *header = bytes + offset;
    uint64_t length = load_be64(header + SIZE_AT);
    if (length > HEADER_MAX || !range_within(offset, length, size) || length < HEADER_MIN) {
        return;
    }
    gsize digest_size = CHECKSUM_SIZE;
    memset(header + CHECKSUM_AT, 0, CHECKSUM_SIZE);
    g_autoptr(GChecksum) sum = g_checksum_new(G_CHECKSUM_SHA256);
    g_checksum_update(sum, header, length);
    g_checksum_get_digest(sum, header + CHECKSUM_AT, &digest_size);
}

/* How long the image is that the bytes begin. */
static size_t image_size(const uint8_t *data, size_t size)
{
    uint64_t begins = size >= PAYLOAD_AT + 4 && load_be16(data + VERSION_AT) == 1
                          ? (uint64_t)load_be32(data + PAYLOAD_AT) * SECTOR
                          : size;
    return min_u64(max_u64(begins + DATA, size), max_u64(IMAGE_MAX, size));
}

static void ask_for_cost(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    g_autoptr(LuksHeader) header = luks_header_open(store, 0, size, "fuzz", &error);
    g_assert((header != NULL) == (error == NULL));
    if (header) {
        g_assert(luks_header_check_cost(header, &error) == (error == NULL));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t whole = image_size(data, size);
    g_autofree uint8_t *image = g_malloc0(whole + 1);
    memcpy(image, data, size);
    fuzz_image(&format_luks, image, whole);
    if (size > VERSION_AT + 1 && load_be16(data + VERSION_AT) == 2) {
        sign(image, whole, 0);
        sign(image, whole, load_be64(image + SIZE_AT) <= whole ? load_be64(image + SIZE_AT) : 0);
        fuzz_image(&format_luks, image, whole);
    }
    ask_for_cost(image, whole);
    return 0;
}
