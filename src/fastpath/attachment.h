/*
 * An attachment: one disk that the kernel shows as a block device.
 *
 *      off       /dev/nbdN; every request comes to this process
 *      linear    /dev/mapper/NAME: what the image has allocated goes to its file by the kernel
 *                itself, all else to /dev/nbdN
 *      snapshot  /dev/mapper/NAME: the chain is read by the kernel, what is written goes to a store
 *                of the kernel beside the image until it is folded
 *
 * Under all three lies an nbd device made by netlink with socket pairs of ours. Its identifier,
 * "cownbd:" and the image's real path, and the UUIDs of the device-mapper devices,
 * "COWNBD-<mode>-<hash of that path>", say whose it is: so that attaching twice is attaching once,
 * that nothing of somebody else is taken down, and that a new server finds what a dead one left
 * (adopt).
 *
 * A thread of its own gives the device a new socket whenever one dies, after all requests that came
 * through the dead one have ended: the kernel sends them again, and none may be done late.
 *
 * Functions block, some until requests of the device are served: they are called from main or from
 * a thread of the control socket, never from a worker or a pool. [any]
 */
#ifndef FASTPATH_ATTACHMENT_H
#define FASTPATH_ATTACHMENT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/disk.h"
#include "fastpath/linear.h"
#include "fastpath/snapshot.h"

typedef struct Attachment Attachment;

typedef enum {
    ATTACH_AUTO, /* linear where device-mapper is there and the image has use for it, else off */
    ATTACH_OFF,
    ATTACH_LINEAR,
    ATTACH_SNAPSHOT,
} AttachMode;

#define ATTACHMENT_LINES_DEFAULT           1000
#define ATTACHMENT_DEAD_TIMEOUT_DEFAULT    3600 /* seconds */
#define ATTACHMENT_REQUEST_TIMEOUT_DEFAULT 5    /* seconds */
/* Each is at least 1. */
#define ATTACHMENT_LINES_MAX           (1 << 20)
#define ATTACHMENT_DEAD_TIMEOUT_MAX    (1 << 30)
#define ATTACHMENT_REQUEST_TIMEOUT_MAX 3600

typedef struct AttachmentOptions {
    AttachMode mode;
    const char *path;   /* the image's real path */
    const char *name;   /* of the device in /dev/mapper; NULL: the file's base name made safe */
    const char *device; /* "/dev/nbdN"; NULL: any that is free */
    bool read_only;
    bool adopt; /* goes on with the devices that a dead server left; makes new ones if none are */
    unsigned lines_max;
    unsigned dead_timeout;    /* seconds without a server until the device fails */
    unsigned request_timeout; /* seconds until a request without an answer is sent again */
    unsigned connections;     /* see attachment.c for why it should be 1 */

    /* Serves one end of a socket pair as a connection that is in transmission already, with simple
     * replies. Takes fd. Calls gone(gone_argument) once, on any thread, when the connection is
     * closed and none of its requests is in flight any more. */
    void (*serve_socket)(void *argument, int fd, void (*gone)(void *), void *gone_argument);
    void *argument;
} AttachmentOptions;

/* Strings live as long as the attachment, or until it is detached. */
typedef struct AttachmentStats {
    AttachMode mode; /* never ATTACH_AUTO */
    const char *device;
    const char *nbd_device;
    unsigned connections; /* sockets that the nbd device has */
    uint64_t reconnects;  /* sockets that were given to it in place of dead ones */
    uint64_t resizes;
    LinearStats linear;     /* mode linear */
    SnapshotStats snapshot; /* mode snapshot */
} AttachmentStats;

/* Returns when the device has the right size and can be opened. EEXIST: the image is attached
 * already, by a server that lives or by one that died (then say adopt): see attachment_find. The
 * disk must outlive the attachment. */
Attachment *attachment_new(Disk *disk, const AttachmentOptions *options, GError **error);

const char *attachment_device(const Attachment *attachment); /* "/dev/mapper/disk" */
const char *attachment_path(const Attachment *attachment);   /* the image's */
void attachment_get_stats(Attachment *attachment, AttachmentStats *stats);

/* The disk has another size: tells all devices, from the bottom up. */
bool attachment_resized(Attachment *attachment, GError **error);

/* False: somebody else has disconnected the nbd device. Detach what is left. */
bool attachment_is_alive(const Attachment *attachment);

/* Flushes and takes the devices down, and frees the attachment. Refuses (EBUSY), and changes
 * nothing, while a device is in use. */
bool attachment_detach(Attachment *attachment, GError **error);

/* Frees the attachment and leaves all devices in the kernel: for a server that ends or that hands
 * over. Who opens the device waits for the next server, at most for the dead timeout. */
void attachment_leave(Attachment *attachment);

/* Names (attachment-name.c); char * is to be freed with g_free. */
char *attachment_identifier(const char *path);                  /* of the nbd device */
const char *attachment_identified_path(const char *identifier); /* the path in it; NULL: not ours */
char *attachment_path_hash(const char *path);                   /* 32 hexadecimal digits */
char *attachment_uuid(AttachMode mode, const char *path);       /* of the device-mapper device */
char *attachment_safe_name(const char *path);                   /* default name in /dev/mapper */
const char *attachment_mode_name(AttachMode mode);              /* "linear" */
bool attachment_parse_mode(const char *name, AttachMode *mode); /* false: no such mode */

/* The device of an image that is attached, whoever serves it: "/dev/mapper/disk" or "/dev/nbd0";
 * NULL when it is not attached. g_free. */
char *attachment_find(const char *path);

/* How the kernel shows the image: LINEAR or SNAPSHOT with *name in /dev/mapper (g_free), or OFF, which
 * says nothing about an nbd device. */
AttachMode attachment_find_mode(const char *path, char **name);
/* It is attached, and its nbd device refuses writes. */
bool attachment_is_read_only(const char *path);

/* The real path of the image that a device of ours shows (/dev/nbdN or one in /dev/mapper).
 * ENODEV: there is none of that name; EPERM: cownbd did not make it. g_free. */
char *attachment_image_of(const char *device, GError **error);

#endif
