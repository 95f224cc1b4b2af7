/* Meta contexts of an export's own: which ones queries name, and what BLOCK_STATUS says of them. */
#include <string.h>

#include "base/bytes.h"
#include "nbd/conn.h"
#include "tests/unit/suite.h"

#define DISK_SIZE 100000u

/* A bitmap of granules of 1000 bytes: every data-th one is set. */
static uint32_t every(void *data, uint64_t offset, uint64_t length, uint64_t *run)
{
    unsigned n = *(unsigned *)data;
    *run = MIN(1000 - offset % 1000, length);
    return offset / 1000 % n == 0;
}

static Node node = {.size = DISK_SIZE};
static unsigned second = 2, third = 3;

typedef struct Probe {
    ExportTable *exports;
    Export *disk;
    NbdServer server;
    NbdLocal local;
    Conn conn;
} Probe;

static void probe_init(Probe *probe)
{
    *probe = (Probe){.exports = export_table_new()};
    probe->disk = export_table_add(probe->exports, "disk", NULL, &node, false, NULL);
    ck_assert_ptr_nonnull(probe->disk);
    ck_assert(export_table_add(probe->exports, "plain", NULL, &node, false, NULL));
    ck_assert(export_add_context(probe->disk, "qemu:dirty-bitmap:two", every, &second, NULL));
    ck_assert(export_add_context(probe->disk, "qemu:dirty-bitmap:three:", every, &third, NULL));
    probe->server.exports = probe->exports;
    probe->local.server = &probe->server;
    probe->conn.local = &probe->local;
    probe->conn.structured = true;
    probe->conn.queue_last = &probe->conn.queue;
    probe->conn.refs = 1;
}

static void probe_clear(Probe *probe)
{
    conn_set_meta_export(&probe->conn, NULL);
    nbd_request_free_spare(&probe->local);
    buffers_clear(&probe->local.buffers);
    export_table_free(probe->exports);
}

static void put_text(GByteArray *out, const char *text)
{
    uint8_t length[4];
    store_be32(length, strlen(text));
    g_byte_array_append(out, length, sizeof length);
    g_byte_array_append(out, (const uint8_t *)text, strlen(text));
}

/* The names that LIST or SET answers to one query (NULL: to none), joined by spaces; those of SET with
 * their numbers. */
static char *ask(Probe *probe, uint32_t option, const char *export, const char *query)
{
    g_autoptr(GByteArray) data = g_byte_array_new(), out = g_byte_array_new();
    GString *names = g_string_new(NULL);
    uint8_t count[4];
    put_text(data, export);
    store_be32(count, query != NULL);
    g_byte_array_append(data, count, sizeof count);
    if (query != NULL) {
        put_text(data, query);
    }
    meta_context_answer(&probe->conn, option, data->data, data->len, out);
    for (size_t at = 0; at < out->len;
         at += NBD_OPTION_REPLY_SIZE + load_be32(out->data + at + 16)) {
        const uint8_t *reply = out->data + at + NBD_OPTION_REPLY_SIZE;
        if (load_be32(out->data + at + 12) != NBD_REP_META_CONTEXT) {
            continue;
        }
        uint32_t number = load_be32(reply);
        g_string_append(names, names->len > 0 ? " " : "");
        g_string_append_len(names, (const char *)reply + 4, load_be32(out->data + at + 16) - 4);
        if (number != 0) {
            g_string_append_printf(names, "=%u", number);
        }
    }
    return g_string_free(names, FALSE);
}

static void check_ask(uint32_t option, const char *export, const char *query, const char *wanted)
{
    Probe probe;
    probe_init(&probe);
    g_autofree char *names = ask(&probe, option, export, query);
    ck_assert_str_eq(names, wanted);
    probe_clear(&probe);
}

START_TEST(meta_context_list_knows_name_spaces_and_kinds)
{
    const char *both = "qemu:dirty-bitmap:two qemu:dirty-bitmap:three:";
    const char *all = "base:allocation qemu:allocation-depth qemu:dirty-bitmap:two "
                      "qemu:dirty-bitmap:three:";
    uint32_t list = NBD_OPT_LIST_META_CONTEXT;
    check_ask(list, "disk", NULL, all);
    check_ask(list, "plain", NULL, "base:allocation qemu:allocation-depth");
    check_ask(list, "disk", "qemu:", strchr(all, ' ') + 1);
    check_ask(list, "disk", "qemu:dirty-bitmap:", both);
    check_ask(list, "plain", "qemu:dirty-bitmap:", "");
    check_ask(list, "disk", "qemu:dirty-bitmap:two", "qemu:dirty-bitmap:two");
    check_ask(list, "disk", "qemu:dirty-bitmap:three:", "qemu:dirty-bitmap:three:");
    check_ask(list, "disk", "qemu:dirty-bitmap:tw", "");
    check_ask(list, "disk", "qemu:dirty-bitmap", "");
    check_ask(list, "disk", "", "");
}
END_TEST

START_TEST(meta_context_set_takes_whole_names_only)
{
    uint32_t set = NBD_OPT_SET_META_CONTEXT;
    check_ask(set, "disk", NULL, "");
    check_ask(set, "disk", "qemu:dirty-bitmap:", "");
    check_ask(set, "disk", "qemu:dirty-bitmap:two", "qemu:dirty-bitmap:two=3");
    check_ask(set, "disk", "qemu:dirty-bitmap:three:", "qemu:dirty-bitmap:three:=4");
    check_ask(set, "plain", "qemu:dirty-bitmap:two", "");
}
END_TEST

/* The descriptors of a BLOCK_STATUS of these contexts, as "NUMBER: LENGTH/STATE ...; NUMBER: ...". */
static char *status_text(Probe *probe, MetaContexts contexts, uint64_t offset, uint64_t length,
                         uint16_t flags)
{
    GString *text = g_string_new(NULL);
    NbdRequest *request = nbd_request_new(&probe->conn, 0);
    probe->conn.export = probe->disk;
    request->head = (NbdChunkHead){.extended = probe->conn.extended, .offset = offset};
    request->command = NBD_CMD_BLOCK_STATUS;
    request->flags = flags;
    request->length = length;
    request->contexts = contexts;
    request->request.result = 0;
    request->request.offset = offset;
    if (contexts & META_OF_MAP) {
        extent_list_add_zero(&request->request.extents, offset, length, NULL);
    }
    reply_make(request);
    ck_assert_uint_eq(request->iov_count % 2, 0);
    for (unsigned i = 0; i < request->iov_count; i += 2) {
        const uint8_t *head = request->iov[i].iov_base, *items = request->iov[i + 1].iov_base;
        unsigned size =
            probe->conn.extended ? NBD_EXTENDED_DESCRIPTOR_SIZE : NBD_STATUS_DESCRIPTOR_SIZE;
        bool last = i + 2 == request->iov_count;
        ck_assert_uint_eq(load_be16(head + 4), last ? NBD_REPLY_FLAG_DONE : 0);
        g_string_append_printf(text, "%s%u:", i > 0 ? "; " : "",
                               load_be32(head + (probe->conn.extended ? 32 : 20)));
        for (size_t at = 0; at < request->iov[i + 1].iov_len; at += size) {
            if (probe->conn.extended) {
                g_string_append_printf(text, " %u/%u", (unsigned)load_be64(items + at),
                                       (unsigned)load_be64(items + at + 8));
            } else {
                g_string_append_printf(text, " %u/%u", load_be32(items + at),
                                       load_be32(items + at + 4));
            }
        }
    }
    nbd_request_free(request);
    return g_string_free(text, FALSE);
}

START_TEST(meta_context_status_of_own_contexts)
{
    Probe probe;
    probe_init(&probe);
    for (int extended = 0; extended < 2; extended++) {
        probe.conn.extended = extended;
        g_autofree char *one = status_text(&probe, 1u << 2, 500, 3000, 0);
        ck_assert_str_eq(one, "3: 500/1 1000/0 1000/1 500/0");
        g_autofree char *both = status_text(&probe, 3u << 2, 0, 4500, 0);
        ck_assert_str_eq(both,
                         "3: 1000/1 1000/0 1000/1 1000/0 500/1; 4: 1000/1 2000/0 1000/1 500/0");
        g_autofree char *map = status_text(&probe, 1u << META_ALLOCATION | 1u << 3, 1000, 2000, 0);
        ck_assert_str_eq(map, "1: 2000/3; 4: 2000/0");
        g_autofree char *first = status_text(&probe, 3u << 2, 1000, 9000, NBD_CMD_FLAG_REQ_ONE);
        ck_assert_str_eq(first, "3: 1000/0; 4: 2000/0");
    }
    probe_clear(&probe);
}
END_TEST

/* Granules of one byte over a huge range: an answer has as many descriptors as any other. */
static uint32_t alternating(void *data, uint64_t offset, uint64_t length, uint64_t *run)
{
    ++*(unsigned *)data;
    *run = 1;
    return offset % 2;
}

START_TEST(meta_context_status_is_bounded)
{
    Probe probe;
    unsigned calls = 0;
    probe_init(&probe);
    ck_assert(export_add_context(probe.disk, "x:y", alternating, &calls, NULL));
    g_autofree char *text = status_text(&probe, 1u << 4, 0, UINT32_MAX, 0);
    ck_assert_uint_eq(calls, REPLY_STATUS_MAX + 1);
    ck_assert(g_str_has_prefix(text, "5: 1/0 1/1 1/0"));
    probe_clear(&probe);
}
END_TEST

START_TEST(meta_context_payload_names_own_contexts_too)
{
    uint8_t numbers[8];
    store_be32(numbers, 3);
    store_be32(numbers + 4, 1);
    ck_assert_uint_eq(meta_context_unpack(numbers, 2, 7), 5);
    ck_assert_uint_eq(meta_context_unpack(numbers, 2, 3), 0);
    store_be32(numbers, META_CONTEXTS_MAX + 1);
    ck_assert_uint_eq(meta_context_unpack(numbers, 1, UINT32_MAX), 0);
    store_be32(numbers, META_CONTEXTS_MAX);
    ck_assert_uint_eq(meta_context_unpack(numbers, 1, UINT32_MAX), 1u << 31);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("meta_context");
    tcase_add_test(tcase, meta_context_list_knows_name_spaces_and_kinds);
    tcase_add_test(tcase, meta_context_set_takes_whole_names_only);
    tcase_add_test(tcase, meta_context_status_of_own_contexts);
    tcase_add_test(tcase, meta_context_status_is_bounded);
    tcase_add_test(tcase, meta_context_payload_names_own_contexts_too);
    return suite_run("meta_context", tcase);
}
