/*
 * Messages for the kernel's nbd driver (linux/nbd-netlink.h). Pure: memory only. [any]
 */
#ifndef FASTPATH_NBDLINK_MESSAGE_H
#define FASTPATH_NBDLINK_MESSAGE_H

#include <netlink/msg.h>

#include "fastpath/nbdlink.h"

/* Each is to be freed with nlmsg_free. family: as resolved; index: -1 for any that is free. */
struct nl_msg *nbdlink_message_connect(int family, int index, const int *sockets, unsigned count,
                                       const NbdLinkDevice *device);
/* socket: -1 for none. */
struct nl_msg *nbdlink_message_reconfigure(int family, int index, int socket,
                                           const NbdLinkDevice *device);
struct nl_msg *nbdlink_message_disconnect(int family, int index);

#endif
