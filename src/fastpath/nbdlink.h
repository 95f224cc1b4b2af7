/*
 * The kernel's nbd driver, through its generic netlink family "nbd" (linux/nbd-netlink.h) and sysfs.
 *
 * A device's *identifier* is a string that the maker of the device leaves in the kernel
 * (/sys/block/nbdN/backend). The kernel refuses a reconfiguration that does not name the same one,
 * so a device of somebody else is never touched by mistake.
 *
 * All functions block for as long as the kernel does and may be called from any thread, but never
 * from a thread that serves the device. [any]
 */
#ifndef FASTPATH_NBDLINK_H
#define FASTPATH_NBDLINK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define NBDLINK_SOCKETS_MAX    16
#define NBDLINK_IDENTIFIER_MAX 4000 /* bytes: what sysfs can show again */

typedef enum {
    NBDLINK_READ_ONLY = 1 << 0,
    NBDLINK_TRIM = 1 << 1,
} NbdLinkFlags;

typedef struct NbdLinkDevice {
    unsigned flags; /* NbdLinkFlags */
    uint64_t size;  /* bytes, a multiple of 512 */
    /* Seconds until a request that was not answered is sent again, on a new socket when its own is
     * dead. */
    unsigned request_timeout;
    unsigned dead_timeout;  /* seconds without any living socket until requests fail with EIO */
    const char *identifier; /* at most NBDLINK_IDENTIFIER_MAX bytes */
} NbdLinkDevice;

/* True when the kernel can make nbd devices; loads its module where that is possible. The error
 * names what to do without. */
bool nbdlink_available(GError **error);

/* Makes a device that sends its requests to sockets (connected unix stream sockets, of which the
 * kernel keeps its own reference). index: which one, or -1 for any that is free; a given one that is
 * in use is EBUSY. The number of the device, or -1. */
int nbdlink_connect(int index, const int *sockets, unsigned count, const NbdLinkDevice *device,
                    GError **error);

/* Gives the device one more socket in place of one that is dead. The kernel takes none, and says
 * nothing, when none is dead yet: the caller sees that at the other end, which hangs up when socket
 * is closed here. */
bool nbdlink_reconnect(int index, const NbdLinkDevice *device, int socket, GError **error);

/* The device has another size now. */
bool nbdlink_resize(int index, const NbdLinkDevice *device, GError **error);

/* Ends the device: what waits in it fails with EIO. Waits until the device can be used again, but no
 * longer than so many seconds (0: does not wait): ETIMEDOUT, it is still open somewhere. */
bool nbdlink_disconnect(int index, unsigned seconds, GError **error);

/* Waits until the node of the device can be opened and has this size; makes nothing up: ETIMEDOUT
 * after seconds. */
bool nbdlink_wait_ready(int index, uint64_t size, unsigned seconds, GError **error);

/* What the kernel tells of a device in sysfs. */
bool nbdlink_is_connected(int index);
char *nbdlink_identifier(int index);     /* NULL when there is none; g_free */
unsigned nbdlink_connections(int index); /* sockets that it was made with */
uint64_t nbdlink_size(int index);        /* bytes */
bool nbdlink_is_read_only(int index);

/* The connected device with this identifier; -1 when there is none. */
int nbdlink_find(const char *identifier);

/* 3 for "/dev/nbd3" or "nbd3"; -1 for what is no such name. */
int nbdlink_index(const char *name);

/* "/dev/nbd3"; g_free. */
char *nbdlink_node(int index);

#endif
