/* formats/cloop.c: what is refused by which name, blocks that cannot be unpacked */
#include <errno.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/format.h"
#include "tests/lib/store-memory.h"
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

static Image *open_bytes(const uint8_t *bytes, uint64_t size, bool write, GError **error)
{
    ImageOpen how = {.format = &format_cloop, .write = write};
    g_autoptr(Store) store = store_memory_new("test.cloop", bytes, size);
    return image_open_store(store, &how, NULL, error);
}

static void assert_refused(const uint8_t *bytes, uint64_t size, bool write, const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_bytes(bytes, size, write, &error);
    ck_assert_msg(image == NULL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error->message, words) != NULL, "'%s' is not in: %s", words,
                  error->message);
}

START_TEST(cloop_refuses_fields_by_name)
{
    uint8_t bytes[ROOM];
    uint64_t size = make_image(bytes);
    assert_refused(bytes, size, true, "can only be read");
    assert_refused(bytes, DATA - 1, false, "number of blocks is 3");
    assert_refused(bytes, size - 1, false, "offset 3 is");
    bytes[20] = 'x';
    assert_refused(bytes, size, false, "first lines: must be those of cloop");
    static const uint32_t sizes[] = {0, 100, UINT32_MAX, 128 << 20};
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        make_image(bytes);
        store_be32(bytes + 128, sizes[i]);
        assert_refused(bytes, size, false, "block size is");
    }
    make_image(bytes);
    store_be32(bytes + 132, UINT32_MAX);
    assert_refused(bytes, size, false, "number of blocks is 4294967295");
    static const uint64_t offsets[] = {0, DATA - 1, UINT64_MAX, ROOM * 8};
    for (unsigned at = 0; at <= BLOCKS; at++) {
        g_autofree char *words = g_strdup_printf("offset %u is", at);
        for (unsigned i = 0; i < G_N_ELEMENTS(offsets); i++) {
            make_image(bytes);
            store_be64(bytes + OFFSETS + 8 * at, offsets[i]);
            assert_refused(bytes, size, false, words);
        }
    }
}
END_TEST

START_TEST(cloop_reads_blocks_and_refuses_damaged_ones)
{
    uint8_t bytes[ROOM], byte;
    uint64_t size = make_image(bytes);
    bytes[load_be64(bytes + OFFSETS + 8) + 3] ^= 0xff;
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = open_bytes(bytes, size, false, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    ck_assert_uint_eq(image->size, BLOCKS * BLOCK);
    ck_assert_int_eq(chain_read(image, &byte, 1, 100), 0);
    ck_assert_uint_eq(byte, 'a');
    ck_assert_int_eq(chain_read(image, &byte, 1, BLOCK), -EIO);
    ck_assert_int_eq(chain_read(image, &byte, 1, BLOCKS * BLOCK - 1), 0);
    ck_assert_uint_eq(byte, 'c');
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
