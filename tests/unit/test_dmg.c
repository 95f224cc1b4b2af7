/* formats/dmg.c, formats/dmg-unpack.c: what is refused by which name, chunks that cannot be unpacked */
#include <errno.h>
#include <string.h>
#include <zlib.h>

#include "base/bytes.h"
#include "base/log.h"
#include "formats/dmg.h"
#include "formats/format.h"
#include "tests/lib/store-memory.h"
#include "tests/unit/suite.h"

#define SECTOR 512u
#define DATA   4096u /* bytes of the data fork */
#define TABLE  204u
#define CHUNK  40u

/* One table with a raw chunk of 2 sectors, of 'r', and one of zlib. */
typedef struct Model {
    uint8_t data[DATA];
    uint8_t table[TABLE + 3 * CHUNK];
    uint8_t trailer[512];
    const char *list; /* in place of the property list */
} Model;

static void put_chunk(Model *model, unsigned n, DmgType type, uint64_t sector, uint64_t sectors,
                      uint64_t offset, uint64_t length)
{
    uint8_t *chunk = model->table + TABLE + n * CHUNK;
    store_be32(chunk, type);
    store_be64(chunk + 8, sector);
    store_be64(chunk + 16, sectors);
    store_be64(chunk + 24, offset);
    store_be64(chunk + 32, length);
}

static Model model_new(void)
{
    Model model = {0};
    memset(model.data, 'r', DATA);
    memcpy(model.table, "mish", 4);
    store_be32(model.table + 4, 1);
    store_be32(model.table + 200, 3);
    put_chunk(&model, 0, DMG_RAW, 0, 2, 0, 2 * SECTOR);
    put_chunk(&model, 1, DMG_ZLIB, 2, 4, 1024, 100);
    put_chunk(&model, 2, DMG_END, 6, 0, 0, 0);
    memcpy(model.trailer, "koly", 4);
    store_be32(model.trailer + 4, 4);
    store_be32(model.trailer + 8, 512);
    store_be64(model.trailer + 32, DATA);
    store_be64(model.trailer + 216, DATA);
    store_be64(model.trailer + 492, 8);
    return model;
}

/* trailer_wins: its length of the list is what it says. */
static Image *model_open(const Model *model, bool trailer_wins, bool write, GError **error)
{
    g_autofree char *encoded = g_base64_encode(model->table, sizeof model->table);
    g_autofree char *list = g_strdup_printf("<plist><dict><key>resource-fork</key><dict>"
                                            "<key>blkx</key><array><dict><key>Data</key>"
                                            "<data>%s</data></dict></array></dict></dict></plist>",
                                            encoded);
    const char *text = model->list ? model->list : list;
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_append(bytes, model->data, DATA);
    g_byte_array_append(bytes, (const uint8_t *)text, strlen(text));
    g_byte_array_append(bytes, model->trailer, sizeof model->trailer);
    if (!trailer_wins) {
        store_be64(bytes->data + bytes->len - 512 + 224, strlen(text));
    }
    ImageOpen how = {.format = &format_dmg, .write = write};
    g_autoptr(Store) store = store_memory_new("test.dmg", bytes->data, bytes->len);
    return image_open_store(store, &how, NULL, error);
}

static void assert_refused(const Model *model, bool trailer_wins, bool write, const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = model_open(model, trailer_wins, write, &error);
    ck_assert_msg(image == NULL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error->message, words) != NULL, "'%s' is not in: %s", words,
                  error->message);
    ck_assert_msg(!strchr(error->message, '\n'), "more than one line: %s", error->message);
}

START_TEST(dmg_refuses_fields_of_the_trailer_by_name)
{
    Model model = model_new();
    assert_refused(&model, true, true, "can only be read");
    assert_refused(&model, true, false, "the property list has 0 bytes");
    store_be64(model.trailer + 224, UINT64_MAX);
    assert_refused(&model, true, false, "the property list has 18446744073709551615 bytes");
    store_be64(model.trailer + 224, 1 << 20);
    assert_refused(&model, true, false, "the property list has 1048576 bytes at 4096");
    store_be64(model.trailer + 216, UINT64_MAX);
    assert_refused(&model, false, false, "bytes at 18446744073709551615");
    model = model_new();
    store_be32(model.trailer + 56, 2);
    store_be32(model.trailer + 60, 3);
    assert_refused(&model, false, false, "is segment 2 of 3");
    model = model_new();
    store_be64(model.trailer + 492, UINT64_C(1) << 54);
    assert_refused(&model, false, false, "the disk has 18014398509481984 sectors");
    store_be32(model.trailer + 8, 511);
    assert_refused(&model, false, false, "header size is 511: must be 512");
    store_be32(model.trailer + 4, 5);
    assert_refused(&model, false, false, "version is 5: must be 4");
    model.trailer[0] = 'K';
    assert_refused(&model, false, false, "no trailer with the magic koly");
}
END_TEST

START_TEST(dmg_refuses_lists_that_are_none)
{
    static const struct {
        const char *list, *words;
    } wrong[] = {
        {"<plist>", "is no XML"},
        {"<plist></dict>", "is no XML"},
        {"no tags", "is no XML"},
        {"<a>\n&what;\n</a>", "is no XML"},
        {"<plist></plist>", "has no tables"},
        {"<plist><array><key>Data</key><data>bWlzaA==</data></array></plist>", "has no tables"},
        {"<p><key>blkx</key><array><key>Data</key><data>!!</data></array></p>", "table 0 does not"},
        {"<p><key>blkx</key><array><key>Data</key><data>bWlzaA==</data></array></p>",
         "table 0 does not begin with mish"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        Model model = model_new();
        model.list = wrong[i].list;
        assert_refused(&model, false, false, wrong[i].words);
    }
}
END_TEST

START_TEST(dmg_refuses_fields_of_tables_by_name)
{
    static const struct {
        unsigned offset, size;
        uint64_t value;
        const char *words;
    } wrong[] = {
        {0, 4, 0, "does not begin with mish"},
        {4, 4, 2, "does not begin with mish and version 1"},
        {8, 8, UINT64_MAX, "lies beyond 2^63"},
        {24, 8, 1 << 20, "must end before the trailer"},
        {200, 4, 4, "has 4 chunks: its 324 bytes have room for 3"},
        {200, 4, UINT32_MAX, "has 4294967295 chunks"},
        {TABLE, 4, 3, "type 0x00000003, which is not known"},
        {TABLE, 4, 0x80000009, "type 0x80000009, which is not known"},
        {TABLE + 8, 8, 1, "two chunks overlap: those at 512 and 1024"},
        {TABLE + 8, 8, UINT64_MAX, "lies beyond 2^63"},
        {TABLE + 16, 8, 3, "a raw chunk of 1536 bytes has 1024 stored ones"},
        {TABLE + 16, 8, UINT64_MAX, "lies beyond 2^63"},
        {TABLE + 24, 8, 1 << 20, "1024 bytes at 1048576: must end before the trailer"},
        {TABLE + 24, 8, UINT64_MAX, "must end before the trailer"},
        {TABLE + 32, 8, UINT64_MAX, "must end before the trailer"},
        {TABLE + CHUNK + 16, 8, (64 << 11) + 1, "a compressed chunk has 67109376 bytes"},
        {TABLE + CHUNK + 32, 8, 0, "0 stored: must be 1 to"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        Model model = model_new();
        uint8_t value[8];
        store_be64(value, wrong[i].size == 4 ? wrong[i].value << 32 : wrong[i].value);
        memcpy(model.table + wrong[i].offset, value, wrong[i].size);
        assert_refused(&model, false, false, wrong[i].words);
    }
}
END_TEST

static void put_checksum(uint8_t *at, uint32_t crc)
{
    store_be32(at, 2);
    store_be32(at + 4, 32);
    store_be32(at + 8, crc);
}

/* Two sectors of data, one of zeroes, two of zlib, three that no chunk speaks of. */
static Model model_with_checksums(void)
{
    Model model = model_new();
    uint8_t disk[8 * SECTOR] = {0}, bytes[4];
    memset(disk, 'r', 2 * SECTOR);
    memset(disk + 3 * SECTOR, 'z', 2 * SECTOR);
    uLongf packed = DATA - 1024;
    ck_assert_int_eq(compress(model.data + 1024, &packed, disk + 3 * SECTOR, 2 * SECTOR), Z_OK);
    put_chunk(&model, 1, DMG_ZERO, 2, 1, 0, 0);
    put_chunk(&model, 2, DMG_ZLIB, 3, 2, 1024, packed);
    store_be64(model.table + 16, 8);
    uint32_t crc = crc32(0, disk, sizeof disk);
    put_checksum(model.table + 64, crc);
    put_checksum(model.trailer + 80, crc32(0, model.data, DATA));
    store_be32(bytes, crc);
    put_checksum(model.trailer + 352, crc32(0, bytes, sizeof bytes));
    return model;
}

static unsigned corruptions_of(const Model *model)
{
    CheckResult result = {0};
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = model_open(model, false, false, &error);
    ck_assert_msg(image != NULL, "%s", image ? "" : error->message);
    ck_assert(image->format->check(image, CHECK_REPORT_ONLY, &result, &error));
    return result.corruptions;
}

START_TEST(dmg_check_compares_three_checksums)
{
    Model model = model_with_checksums();
    ck_assert_uint_eq(corruptions_of(&model), 0);
    model.trailer[80 + 8] ^= 1;
    ck_assert_uint_eq(corruptions_of(&model), 1);
    model.trailer[80 + 3] = 4; /* of another kind */
    ck_assert_uint_eq(corruptions_of(&model), 0);
    model.data[0] = 's';
    ck_assert_uint_eq(corruptions_of(&model), 1);
    model.table[64 + 8] ^= 1; /* now the master is wrong, too */
    ck_assert_uint_eq(corruptions_of(&model), 2);
    model = model_with_checksums();
    model.trailer[80 + 3] = 0;
    model.data[1024 + 4] ^= 0xff;
    ck_assert_uint_eq(corruptions_of(&model), 1);
    put_chunk(&model, 1, DMG_IGNORE, 2, 1, 0, 0);
    ck_assert_uint_eq(corruptions_of(&model), 0);
}
END_TEST

/* Ranges that are none, and one that is zeroes without end. */
START_TEST(dmg_check_takes_ranges_as_they_are)
{
    Model model = model_with_checksums();
    store_be64(model.table + 16, UINT64_MAX);
    ck_assert_uint_eq(corruptions_of(&model), 0);
    store_be64(model.table + 16, 1000);
    ck_assert_uint_eq(corruptions_of(&model), 0);
    store_be64(model.trailer + 492, (UINT64_C(1) << 54) - 1);
    store_be64(model.table + 16, (UINT64_C(1) << 54) - 1);
    ck_assert_uint_eq(corruptions_of(&model), 1);
    store_be64(model.trailer + 32, UINT64_MAX);
    ck_assert_uint_eq(corruptions_of(&model), 2);
}
END_TEST

START_TEST(dmg_chunks_that_cannot_be_unpacked_are_errors)
{
    static const DmgType types[] = {DMG_ADC, DMG_ZLIB, DMG_BZIP2, DMG_LZFSE, DMG_XZ};
    for (unsigned i = 0; i < G_N_ELEMENTS(types); i++) {
        Model model = model_new();
        put_chunk(&model, 1, types[i], 2, 4, 1024, 100);
        g_autoptr(Image) image = model_open(&model, false, false, NULL);
        ck_assert_ptr_nonnull(image);
        ck_assert_uint_eq(image->size, 8 * SECTOR);
        uint8_t byte;
        ck_assert_int_eq(chain_read(image, &byte, 1, 2 * SECTOR - 1), 0);
        ck_assert_int_eq(byte, 'r');
        ck_assert_int_eq(chain_read(image, &byte, 1, 2 * SECTOR), -EIO);
        ck_assert_int_eq(chain_read(image, &byte, 1, 6 * SECTOR), 0);
        ck_assert_int_eq(byte, 0);
    }
}
END_TEST

/* Literals, copies that overlap what they make, far ones; and whatever reaches outside. */
START_TEST(adc_keeps_to_its_buffers)
{
    static const struct {
        const char *stored;
        size_t n;
        const char *made; /* NULL: refused */
    } cases[] = {
        {"\x82"
         "abc",
         4, "abc"},
        {"\x80"
         "a\x04\x00",
         4, "aaaaa"},
        {"\x81"
         "ab\x40\x00\x01",
         6, "ababab"},
        {"\x82"
         "ab",
         3, NULL},
        {"\x80", 1, NULL},
        {"\x00\x00", 2, NULL},
        {"\x80"
         "a\x00\x01",
         4, NULL},
        {"\x80"
         "a\x00",
         3, NULL},
        {"\x80"
         "a\x40\x00",
         4, NULL},
        {"\x80"
         "a\x43\x00\x01",
         5, NULL},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        size_t length = cases[i].made ? strlen(cases[i].made) : 7;
        g_autofree uint8_t *stored = g_memdup2(cases[i].stored, cases[i].n);
        g_autofree uint8_t *out = g_malloc(length);
        int r = dmg_unpack(DMG_ADC, stored, cases[i].n, out, length);
        ck_assert_msg(r == (cases[i].made ? 0 : -EIO), "case %u: %d", i, r);
        ck_assert_msg(!cases[i].made || memcmp(out, cases[i].made, length) == 0, "case %u", i);
    }
}
END_TEST

int main(void)
{
    log_set_level(LOG_LEVEL_ERROR);
    TCase *tcase = tcase_create("dmg");
    tcase_add_test(tcase, dmg_refuses_fields_of_the_trailer_by_name);
    tcase_add_test(tcase, dmg_refuses_lists_that_are_none);
    tcase_add_test(tcase, dmg_refuses_fields_of_tables_by_name);
    tcase_add_test(tcase, dmg_check_compares_three_checksums);
    tcase_add_test(tcase, dmg_check_takes_ranges_as_they_are);
    tcase_add_test(tcase, dmg_chunks_that_cannot_be_unpacked_are_errors);
    tcase_add_test(tcase, adc_keeps_to_its_buffers);
    return suite_run("dmg", tcase);
}
