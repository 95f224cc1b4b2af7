/* src/fastpath/nbdlink-message.c, and the names of nbdlink-status.c: what the kernel is told */
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <netlink/genl/genl.h>
#include <string.h>

#include "fastpath/nbdlink-message.h"
#include "tests/unit/suite.h"

#define FAMILY 31

static const NbdLinkDevice writable = {
    .flags = NBDLINK_TRIM,
    .size = UINT64_C(3) << 40,
    .request_timeout = 5,
    .dead_timeout = 3600,
    .identifier = "cownbd:/images/disk.qcow2",
};

static void parse(struct nl_msg *message, int command, struct nlattr **attributes)
{
    struct nlmsghdr *header = nlmsg_hdr(message);
    ck_assert_int_eq(header->nlmsg_type, FAMILY);
    ck_assert_int_eq(genlmsg_hdr(header)->cmd, command);
    ck_assert_int_eq(genlmsg_parse(header, 0, attributes, NBD_ATTR_MAX, NULL), 0);
}

START_TEST(connect_says_all_of_a_device)
{
    int sockets[] = {7, 9};
    struct nlattr *a[NBD_ATTR_MAX + 1], *item;
    struct nl_msg *message = nbdlink_message_connect(FAMILY, 12, sockets, 2, &writable);
    parse(message, NBD_CMD_CONNECT, a);
    ck_assert_uint_eq(nla_get_u32(a[NBD_ATTR_INDEX]), 12);
    ck_assert_uint_eq(nla_get_u64(a[NBD_ATTR_SIZE_BYTES]), writable.size);
    ck_assert_uint_eq(nla_get_u64(a[NBD_ATTR_BLOCK_SIZE_BYTES]), 512);
    ck_assert_uint_eq(nla_get_u64(a[NBD_ATTR_TIMEOUT]), 5);
    ck_assert_uint_eq(nla_get_u64(a[NBD_ATTR_DEAD_CONN_TIMEOUT]), 3600);
    ck_assert_str_eq(nla_get_string(a[NBD_ATTR_BACKEND_IDENTIFIER]), writable.identifier);
    uint64_t flags = nla_get_u64(a[NBD_ATTR_SERVER_FLAGS]);
    ck_assert(flags & NBD_FLAG_SEND_FLUSH && flags & NBD_FLAG_SEND_FUA);
    ck_assert(flags & NBD_FLAG_SEND_TRIM && flags & NBD_FLAG_CAN_MULTI_CONN);
    ck_assert(!(flags & NBD_FLAG_READ_ONLY));
    int rest, count = 0;
    nla_for_each_nested(item, a[NBD_ATTR_SOCKETS], rest)
    {
        struct nlattr *socket[NBD_SOCK_MAX + 1];
        ck_assert_int_eq(nla_parse_nested(socket, NBD_SOCK_MAX, item, NULL), 0);
        ck_assert_uint_eq(nla_get_u32(socket[NBD_SOCK_FD]), sockets[count++]);
    }
    ck_assert_int_eq(count, 2);
    nlmsg_free(message);
}
END_TEST

START_TEST(any_free_device_has_no_index)
{
    int socket = 7;
    struct nlattr *a[NBD_ATTR_MAX + 1];
    NbdLinkDevice device = writable;
    device.flags = NBDLINK_READ_ONLY | NBDLINK_TRIM;
    struct nl_msg *message = nbdlink_message_connect(FAMILY, -1, &socket, 1, &device);
    parse(message, NBD_CMD_CONNECT, a);
    ck_assert_ptr_null(a[NBD_ATTR_INDEX]);
    uint64_t flags = nla_get_u64(a[NBD_ATTR_SERVER_FLAGS]);
    ck_assert(flags & NBD_FLAG_READ_ONLY);
    ck_assert(!(flags & NBD_FLAG_SEND_TRIM) && !(flags & NBD_FLAG_CAN_MULTI_CONN));
    nlmsg_free(message);
}
END_TEST

START_TEST(reconfigure_names_whose_device_it_is)
{
    struct nlattr *a[NBD_ATTR_MAX + 1];
    struct nl_msg *message = nbdlink_message_reconfigure(FAMILY, 3, -1, &writable);
    parse(message, NBD_CMD_RECONFIGURE, a);
    ck_assert_uint_eq(nla_get_u32(a[NBD_ATTR_INDEX]), 3);
    ck_assert_str_eq(nla_get_string(a[NBD_ATTR_BACKEND_IDENTIFIER]), writable.identifier);
    ck_assert_ptr_null(a[NBD_ATTR_SOCKETS]);
    nlmsg_free(message);
    message = nbdlink_message_reconfigure(FAMILY, 3, 8, &writable);
    parse(message, NBD_CMD_RECONFIGURE, a);
    ck_assert_ptr_nonnull(a[NBD_ATTR_SOCKETS]);
    nlmsg_free(message);
    message = nbdlink_message_disconnect(FAMILY, 3);
    parse(message, NBD_CMD_DISCONNECT, a);
    ck_assert_uint_eq(nla_get_u32(a[NBD_ATTR_INDEX]), 3);
    nlmsg_free(message);
}
END_TEST

START_TEST(the_longest_identifier_fits)
{
    int sockets[NBDLINK_SOCKETS_MAX] = {0};
    struct nlattr *a[NBD_ATTR_MAX + 1];
    g_autofree char *identifier = g_strnfill(NBDLINK_IDENTIFIER_MAX, 'x');
    NbdLinkDevice device = writable;
    device.identifier = identifier;
    struct nl_msg *message =
        nbdlink_message_connect(FAMILY, 1, sockets, NBDLINK_SOCKETS_MAX, &device);
    parse(message, NBD_CMD_CONNECT, a);
    ck_assert_str_eq(nla_get_string(a[NBD_ATTR_BACKEND_IDENTIFIER]), identifier);
    nlmsg_free(message);
}
END_TEST

START_TEST(index_of_a_name)
{
    ck_assert_int_eq(nbdlink_index("/dev/nbd0"), 0);
    ck_assert_int_eq(nbdlink_index("nbd15"), 15);
    const char *wrong[] = {"/dev/nbd", "nbd0p1",    "nbd-1",          "nbd01",      "/dev/sda",
                           "",         "/nbd/nbd0", "nbd99999999999", "/dev//nbd0", "nbd 1"};
    for (unsigned i = 0; i < G_N_ELEMENTS(wrong); i++) {
        ck_assert_int_eq(nbdlink_index(wrong[i]), -1);
    }
    g_autofree char *node = nbdlink_node(15);
    ck_assert_str_eq(node, "/dev/nbd15");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("nbdlink");
    tcase_add_test(tcase, connect_says_all_of_a_device);
    tcase_add_test(tcase, any_free_device_has_no_index);
    tcase_add_test(tcase, reconfigure_names_whose_device_it_is);
    tcase_add_test(tcase, the_longest_identifier_fits);
    tcase_add_test(tcase, index_of_a_name);
    return suite_run("nbdlink", tcase);
}
