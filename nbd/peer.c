/*
 * The client's identity, put together from its socket and its TLS session when it is asked for: that
 * is a few times in a handshake, and never after.
 */
#include "nbd/peer.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "nbd/conn.h"
#include "nbd/tls.h"

static void set_address(AccessPeer *peer, const void *bytes, unsigned length)
{
    memcpy(peer->address, bytes, length);
    peer->address_length = length;
}

/* An IPv4 client of an IPv6 socket is an IPv4 client. */
static void set_address6(AccessPeer *peer, const struct in6_addr *address)
{
    if (IN6_IS_ADDR_V4MAPPED(address)) {
        set_address(peer, address->s6_addr + 12, 4);
    } else {
        set_address(peer, address->s6_addr, 16);
    }
}

static void ask_socket(int fd, AccessPeer *peer)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    struct ucred credentials;
    socklen_t credentials_length = sizeof credentials;
    if (getpeername(fd, (struct sockaddr *)&address, &length) != 0) {
        return;
    }
    switch (address.ss_family) {
    case AF_INET:
        set_address(peer, &((const struct sockaddr_in *)&address)->sin_addr, 4);
        break;
    case AF_INET6:
        set_address6(peer, &((const struct sockaddr_in6 *)&address)->sin6_addr);
        break;
    case AF_UNIX:
        peer->has_uid =
            getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &credentials_length) == 0;
        peer->uid = peer->has_uid ? credentials.uid : 0;
        break;
    default:
        break;
    }
}

void peer_describe(const Conn *conn, AccessPeer *peer)
{
    *peer = (AccessPeer){0};
    ask_socket(conn->fd, peer);
    if (conn->tls != NULL) {
        tls_get_peer(conn->tls, peer);
    }
}

unsigned peer_rights(const Conn *conn, const Export *export)
{
    AccessPeer peer;
    peer_describe(conn, &peer);
    return export_rights(export, &peer);
}
