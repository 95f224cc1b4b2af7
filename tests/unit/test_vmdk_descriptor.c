/* formats/vmdk-descriptor.c */
#include <string.h>

#include "formats/vmdk.h"
#include "tests/unit/suite.h"

#define HEAD "# Disk DescriptorFile\nversion=1\nCID=1\ncreateType=\"custom\"\n"

static void assert_refused(const char *text, const char *words)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(VmdkDescriptor) got = vmdk_descriptor_parse(text, strlen(text), "test", &error);
    ck_assert_msg(got == NULL, "'%s' was not refused", words);
    ck_assert_msg(strstr(error->message, words) != NULL, "'%s' is not in: %s", words,
                  error->message);
    ck_assert_msg(!strchr(error->message, '\n'), "more than one line: %s", error->message);
}

START_TEST(descriptor_is_read_as_others_write_it)
{
    static const char text[] = "# disk descriptorfile\r\n"
                               "\tversion = 1\r\n"
                               "encoding=\"windows-1252\"\r\n"
                               "cid = 0000abcd \r\n"
                               "PARENTCID\t=\tffffffff\r\n"
                               "isNativeSnapshot=\"no\"\r\n"
                               "createtype = \"TWOGBMAXEXTENTFLAT\"\r\n"
                               "\r\n"
                               "rw\t8   ZERO\r\n"
                               "  RDONLY 16 zero \"\" \r\n"
                               "NOACCESS 1 Flat \"a = b.vmdk\"\t7\r\n"
                               "ddb.adapterType = \"lsilogic\"\r\n\0garbage after the end";
    g_autoptr(GError) error = NULL;
    g_autoptr(VmdkDescriptor) got = vmdk_descriptor_parse(text, sizeof text, "test", &error);
    ck_assert_msg(got != NULL, "%s", got ? "" : error->message);
    ck_assert_uint_eq(got->cid, 0xabcd);
    ck_assert_uint_eq(got->parent_cid, VMDK_NO_PARENT);
    ck_assert_str_eq(got->create_type, "twoGbMaxExtentFlat");
    ck_assert_uint_eq(got->lines->len, 3);
    ck_assert_uint_eq(got->size, 25 * VMDK_SECTOR);
    const VmdkLine *lines = (const VmdkLine *)got->lines->data;
    ck_assert_int_eq(lines[0].type, VMDK_TYPE_ZERO);
    ck_assert_int_eq(lines[1].access, VMDK_ACCESS_RDONLY);
    ck_assert_str_eq(lines[2].name, "a = b.vmdk");
    ck_assert_uint_eq(lines[2].offset, 7 * VMDK_SECTOR);
}
END_TEST

START_TEST(descriptor_lines_are_refused_by_name)
{
    static const char title[] = "# Disk DescriptorFile\n";
    static const struct {
        const char *text, *words;
    } wrong[] = {
        {"", "has no version"},
        {"version=4\n", "descriptor version is '4'"},
        {"version=1\ncreateType=custom\n", "has no CID"},
        {"version=1\nCID=xyz\n", "CID is 'xyz'"},
        {"version=1\nCID=123456789\n", "CID is '123456789'"},
        {"version=1\nCID=1\n", "has no createType"},
        {"createType=\"fullDevice\"\n", "createType 'fullDevice'"},
        {"createType=\"vmfsRaw\"\n", "createType 'vmfsRaw'"},
        {"version=1\nCID=1\ncreateType=custom\nparentCID=5\n", "no parentFileNameHint"},
        {"version=1\nCID=1\ncreateType=custom\nparentFileNameHint=\"x\"\n", "no parent"},
        {"nonsense\n", "line 2: 'nonsense'"},
        {"RW\n", "size of the extent is ''"},
        {"RW x FLAT \"a\" 0\n", "size of the extent is 'x'"},
        {"RW -1 FLAT \"a\" 0\n", "size of the extent is '-1'"},
        {"RW 0 FLAT \"a\" 0\n", "0 sectors"},
        {"RW 18446744073709551615 ZERO\n", "below 2^54"},
        {"RW 18014398509481983 ZERO\nRW 1 ZERO\n", "sum of the extents"},
        {"RW 1\n", "type ''"},
        {"RW 1 PMEM \"a\"\n", "type 'PMEM'"},
        {"RW 1 VMFSRDM \"a\"\n", "type 'VMFSRDM'"},
        {"RW 1 FLAT\n", "names no file"},
        {"RW 1 FLAT \"\" 0\n", "names no file"},
        {"RW 1 FLAT \"a\" x\n", "offset of the extent is 'x'"},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_autofree char *text = g_strconcat(title, wrong[i].text, NULL);
        assert_refused(text, wrong[i].words);
    }
}
END_TEST

START_TEST(descriptor_is_limited)
{
    g_autoptr(GString) text = g_string_new(HEAD);
    for (unsigned i = 0; i <= VMDK_EXTENTS_MAX; i++) {
        g_string_append(text, "RW 1 ZERO\n");
    }
    assert_refused(text->str, "more than 4096 extents");
}
END_TEST

START_TEST(descriptor_is_known_by_its_first_line)
{
    static const struct {
        const char *text;
        bool known;
    } heads[] = {
        {"# Disk DescriptorFile", true},   {"\n \t# disk descriptorFILE\r\n", true},
        {"# Disk DescriptorFil", false},   {"version=1\n# Disk DescriptorFile", false},
        {"## Disk DescriptorFile", false}, {"", false},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(heads); i++) {
        const uint8_t *head = (const uint8_t *)heads[i].text;
        ck_assert(vmdk_descriptor_probe(head, strlen(heads[i].text)) == heads[i].known);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("vmdk_descriptor");
    tcase_add_test(tcase, descriptor_is_read_as_others_write_it);
    tcase_add_test(tcase, descriptor_lines_are_refused_by_name);
    tcase_add_test(tcase, descriptor_is_limited);
    tcase_add_test(tcase, descriptor_is_known_by_its_first_line);
    return suite_run("vmdk_descriptor", tcase);
}
