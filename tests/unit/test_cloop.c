/* formats/cloop.c: what is refused by which name, blocks that cannot be unpacked */
#include <errno.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "tests/unit/images.h"
#include "tests/unit/suite.h"

#define BLOCK   512u
#define BLOCKS  3u
#define OFFSETS 136u
#define DATA    (OFFSETS + (BLOCKS + 1) * 8)
#define ROOM    1024u

/* Blocks of 'a', 'b', 'c'; returns the size. */
static uint64_t make_image(uint8_t *bytes)
{
    uint64_t at = DATA;
    memset(bytes, 0, ROOM);
    strcpy((char *)bytes, "#!/bin/sh\n#V2.0 Format\n");
    store_be32(bytes + 128, BLOCK);
    store_be32(bytes + 132, BLOCKS);
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint8_t block[BLOCK];
        uLongf length = ROOM - at;
        memset(block, 'a' + (int)i, BLOCK);
        ck_assert_int_eq(compress(bytes + at, &length, block, BLOCK), Z_OK);
        store_be64(bytes + OFFSETS + 8 * i, at);
        at += length;
    }
    store_be64(bytes + OFFSETS + 8 * BLOCKS, at);
    return at;
}

START_TEST(cloop_refuses_fields_by_name)
{
    uint8_t bytes[ROOM];
    uint64_t size = make_image(bytes);
    images_assert_refused(&format_cloop, bytes, size, true, "can only be read");
    images_assert_refused(&format_cloop, bytes, DATA - 1, false, "number of blocks is 3");
    images_assert_refused(&format_cloop, bytes, size - 1, false, "offset 3 is");
    bytes[20] = 'x';
    images_assert_refused(&format_cloop, bytes, size, false, "first lines: must be those of cloop");
    static const uint32_t sizes[] = {0, 100, UINT32_MAX, 128 << 20};
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        make_image(bytes);
        store_be32(bytes + 128, sizes[i]);
        images_assert_refused(&format_cloop, bytes, size, false, "block size is");
    }
    make_image(bytes);
    store_be32(bytes + 132, UINT32_MAX);
    images_assert_refused(&format_cloop, bytes, size, false, "number of blocks is 4294967295");
    static const uint64_t offsets[] = {0, DATA - 1, UINT64_MAX, ROOM * 8};
    for (unsigned at = 0; at <= BLOCKS; at++) {
        g_autofree char *words = g_strdup_printf("offset %u is", at);
        for (unsigned i = 0; i < G_N_ELEMENTS(offsets); i++) {
            make_image(bytes);
            store_be64(bytes + OFFSETS + 8 * at, offsets[i]);
            images_assert_refused(&format_cloop, bytes, size, false, words);
        }
    }
}
END_TEST

START_TEST(cloop_reads_blocks_and_refuses_damaged_ones)
{
    uint8_t bytes[ROOM];
    uint64_t size = make_image(bytes);
    bytes[load_be64(bytes + OFFSETS + 8) + 3] ^= 0xff;
    g_autoptr(Store) store = store_memory_new("test.cloop", bytes, size);
    g_autoptr(Image) image = images_open(&format_cloop, store, NULL, false);
    ck_assert_uint_eq(image->size, BLOCKS * BLOCK);
    ck_assert_uint_eq(images_byte(image, 100), 'a');
    ck_assert_int_eq(images_read_error(image, BLOCK), -EIO);
    ck_assert_uint_eq(images_byte(image, BLOCKS * BLOCK - 1), 'c');
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("cloop");
    tcase_add_test(tcase, cloop_refuses_fields_by_name);
    tcase_add_test(tcase, cloop_reads_blocks_and_refuses_damaged_ones);
    return suite_run("cloop", tcase);
}
