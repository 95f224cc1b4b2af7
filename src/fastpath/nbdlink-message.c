/*
 * Messages for the kernel's nbd driver.
 *
 * What must stay true: the flags say no more than what a connection in transmission with simple
 * replies does; every message about a device that exists names its identifier, so that the kernel
 * itself refuses one that was made by somebody else meanwhile. (NBD_CMD_DISCONNECT has no check of
 * that kind: its caller looks before.)
 */
#include "fastpath/nbdlink-message.h"

#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <netlink/genl/genl.h>

#define MESSAGE_SIZE           8192 /* an identifier of the greatest length and the rest */
#define BLOCK_SIZE             512  /* a larger one would force every line of a dm table onto it */
#define FLAG_SEND_WRITE_ZEROES (1 << 6) /* kernels that know no such flag ignore it */

static struct nl_msg *message_new(int family, int command)
{
    struct nl_msg *message = nlmsg_alloc_size(MESSAGE_SIZE);
    if (message == NULL || genlmsg_put(message, NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, NLM_F_REQUEST,
                                       command, NBD_GENL_VERSION) == NULL) {
        g_error("no memory for a netlink message");
    }
    return message;
}

static void must_fit(int result)
{
    g_assert(result >= 0);
}

static uint64_t server_flags(const NbdLinkDevice *device, unsigned connections)
{
    uint64_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
    if (connections > 1) {
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    }
    if (device->flags & NBDLINK_READ_ONLY) {
        flags |= NBD_FLAG_READ_ONLY;
    } else if (device->flags & NBDLINK_TRIM) {
        flags |= NBD_FLAG_SEND_TRIM | FLAG_SEND_WRITE_ZEROES;
    }
    return flags;
}

static void put_sockets(struct nl_msg *message, const int *sockets, unsigned count)
{
    struct nlattr *list = nla_nest_start(message, NBD_ATTR_SOCKETS);
    must_fit(list != NULL ? 0 : -1);
    for (unsigned i = 0; i < count; i++) {
        struct nlattr *item = nla_nest_start(message, NBD_SOCK_ITEM);
        must_fit(item != NULL ? nla_put_u32(message, NBD_SOCK_FD, sockets[i]) : -1);
        nla_nest_end(message, item);
    }
    nla_nest_end(message, list);
}

/* What may be told of a new device and of one that exists. */
static void put_device(struct nl_msg *message, int index, const NbdLinkDevice *device)
{
    if (index >= 0) {
        must_fit(nla_put_u32(message, NBD_ATTR_INDEX, index));
    }
    must_fit(nla_put_u64(message, NBD_ATTR_SIZE_BYTES, device->size));
    must_fit(nla_put_u64(message, NBD_ATTR_BLOCK_SIZE_BYTES, BLOCK_SIZE));
    must_fit(nla_put_u64(message, NBD_ATTR_TIMEOUT, device->request_timeout));
    must_fit(nla_put_u64(message, NBD_ATTR_DEAD_CONN_TIMEOUT, device->dead_timeout));
    must_fit(nla_put_string(message, NBD_ATTR_BACKEND_IDENTIFIER, device->identifier));
}

struct nl_msg *nbdlink_message_connect(int family, int index, const int *sockets, unsigned count,
                                       const NbdLinkDevice *device)
{
    struct nl_msg *message = message_new(family, NBD_CMD_CONNECT);
    put_device(message, index, device);
    must_fit(nla_put_u64(message, NBD_ATTR_SERVER_FLAGS, server_flags(device, count)));
    put_sockets(message, sockets, count);
    return message;
}

struct nl_msg *nbdlink_message_reconfigure(int family, int index, int socket,
                                           const NbdLinkDevice *device)
{
    struct nl_msg *message = message_new(family, NBD_CMD_RECONFIGURE);
    put_device(message, index, device);
    if (socket >= 0) {
        put_sockets(message, &socket, 1);
    }
    return message;
}

struct nl_msg *nbdlink_message_disconnect(int family, int index)
{
    struct nl_msg *message = message_new(family, NBD_CMD_DISCONNECT);
    must_fit(nla_put_u32(message, NBD_ATTR_INDEX, index));
    return message;
}
