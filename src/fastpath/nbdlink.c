/*
 * The kernel's nbd driver by generic netlink: one message, one answer, on a socket made for it.
 *
 * The kernel's own error numbers are kept (libnl's are coarser). Why a message can be refused is
 * known here alone, so the texts that say what would be right are here too.
 */
#include "fastpath/nbdlink.h"

#include <linux/nbd-netlink.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>

#include "base/errors.h"
#include "fastpath/nbdlink-message.h"

#define POLL_US 5000

typedef struct Link {
    struct nl_sock *socket;
    int family;
    int result; /* 0 or a negative errno, from the kernel's acknowledgement */
    int index;  /* the device that the answer is about, or -1 */
} Link;

static void link_close(Link *link)
{
    nl_socket_free(link->socket);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Link, link_close)

static int take_error(struct sockaddr_nl *from, struct nlmsgerr *answer, void *argument)
{
    Link *link = argument;
    link->result = answer->error;
    return NL_STOP;
}

static int take_answer(struct nl_msg *message, void *argument)
{
    Link *link = argument;
    struct nlattr *attributes[NBD_ATTR_MAX + 1];
    if (genlmsg_parse(nlmsg_hdr(message), 0, attributes, NBD_ATTR_MAX, NULL) == 0 &&
        attributes[NBD_ATTR_INDEX] != NULL) {
        link->index = nla_get_u32(attributes[NBD_ATTR_INDEX]);
    }
    return NL_OK;
}

/* The driver's family; false when the kernel has none (yet). */
static bool link_open(Link *link)
{
    *link = (Link){.socket = nl_socket_alloc(), .index = -1, .family = -1};
    if (link->socket == NULL || genl_connect(link->socket) < 0) {
        return false;
    }
    link->family = genl_ctrl_resolve(link->socket, NBD_GENL_FAMILY_NAME);
    nl_socket_modify_cb(link->socket, NL_CB_VALID, NL_CB_CUSTOM, take_answer, link);
    nl_socket_modify_err_cb(link->socket, NL_CB_CUSTOM, take_error, link);
    return link->family >= 0;
}

/* Sends message (and frees it), waits for what the kernel says: 0 or a negative errno. */
static int link_call(Link *link, struct nl_msg *message)
{
    link->result = 0;
    int r = nl_send_auto(link->socket, message); /* asks for an acknowledgement */
    nlmsg_free(message);
    if (r >= 0) {
        r = nl_wait_for_ack(link->socket);
    }
    return link->result != 0 || r >= 0 ? link->result : -EIO;
}

static bool driver_is_there(void)
{
    g_auto(Link) link;
    return link_open(&link);
}

/* modprobe's own words are of no use to who asked for a block device. */
static void load_driver(void)
{
    char *argv[] = {(char *)"modprobe", (char *)"nbd", NULL};
    g_auto(GStrv) environment =
        g_environ_setenv(g_get_environ(), "PATH",
                         "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin", true);
    g_spawn_sync("/", argv, environment,
                 G_SPAWN_SEARCH_PATH_FROM_ENVP | G_SPAWN_STDOUT_TO_DEV_NULL |
                     G_SPAWN_STDERR_TO_DEV_NULL,
                 NULL, NULL, NULL, NULL, NULL, NULL);
}

bool nbdlink_available(GError **error)
{
    if (driver_is_there()) {
        return true;
    }
    load_driver();
    return driver_is_there() ||
           error_set(error, ENOTSUP,
                     "this kernel has no nbd (CONFIG_BLK_DEV_NBD; modprobe nbd): load it, or use "
                     "cownbd serve with a client in user space (qemu, nbdcopy, nbdfuse)");
}

/* What the kernel refused, and why it may have. */
static bool refused(GError **error, int r, const char *what, int index)
{
    g_autofree char *node = index >= 0 ? nbdlink_node(index) : g_strdup("nbd");
    switch (-r) {
    case EPERM:
    case EACCES:
        return error_set(error, EPERM, "%s: %s: needs the rights of root (CAP_SYS_ADMIN)", node,
                         what);
    case EBUSY:
        return error_set(error, EBUSY,
                         "%s: %s: the device is in use: name another one, or none for any that is "
                         "free",
                         node, what);
    default:
        return error_set_errno(error, -r, "%s: %s: the kernel refused", node, what);
    }
}

int nbdlink_connect(int index, const int *sockets, unsigned count, const NbdLinkDevice *device,
                    GError **error)
{
    if (!nbdlink_available(error)) {
        return -1;
    }
    g_auto(Link) link;
    if (!link_open(&link)) {
        return refused(error, -EIO, "connect", index), -1;
    }
    int r = link_call(&link, nbdlink_message_connect(link.family, index, sockets, count, device));
    if (r != 0 || link.index < 0) {
        return refused(error, r != 0 ? r : -EIO, "connect", index), -1;
    }
    return link.index;
}

static bool reconfigure(int index, int socket, const NbdLinkDevice *device, const char *what,
                        GError **error)
{
    g_auto(Link) link;
    int r = -ENODEV;
    if (link_open(&link)) {
        r = link_call(&link, nbdlink_message_reconfigure(link.family, index, socket, device));
    }
    return r == 0 || refused(error, r, what, index);
}

bool nbdlink_reconnect(int index, const NbdLinkDevice *device, int socket, GError **error)
{
    return reconfigure(index, socket, device, "reconnect", error);
}

bool nbdlink_resize(int index, const NbdLinkDevice *device, GError **error)
{
    return reconfigure(index, -1, device, "resize", error);
}

bool nbdlink_disconnect(int index, unsigned seconds, GError **error)
{
    g_auto(Link) link;
    int r = -ENODEV;
    if (link_open(&link)) {
        r = link_call(&link, nbdlink_message_disconnect(link.family, index));
    }
    if (r != 0) {
        return refused(error, r, "disconnect", index);
    }
    gint64 deadline = g_get_monotonic_time() + (gint64)seconds * G_USEC_PER_SEC;
    while (seconds > 0 && nbdlink_is_connected(index)) {
        if (g_get_monotonic_time() > deadline) {
            return error_set(error, ETIMEDOUT,
                             "nbd%d: disconnected, but still open somewhere: close it", index);
        }
        g_usleep(POLL_US);
    }
    return true;
}
