/*
 * What the files of the attachment share:
 *
 *     attachment.c          its life
 *     attachment-sockets.c  what keeps the nbd device connected
 *     attachment-mapped.c   the device-mapper device above it
 *     attachment-find.c     what is in the kernel
 *     attachment-name.c     names
 *     attachment-use.c      who uses a device
 */
#ifndef FASTPATH_ATTACHMENT_IMPL_H
#define FASTPATH_ATTACHMENT_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "fastpath/attachment.h"
#include "fastpath/nbdlink.h"

#define ATTACHMENT_UUID_PREFIX "COWNBD-"

/* The nbd device's connections. */
typedef struct AttachmentSockets {
    int index;            /* of the nbd device; -1: none yet */
    NbdLinkDevice device; /* its size: under the lock */
    unsigned count;       /* sockets that the device has */
    void (*serve_socket)(void *argument, int fd, void (*gone)(void *), void *gone_argument);
    void *argument;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned dead; /* connections to be replaced */
    bool stopping; /* none is replaced any more */
    uint64_t reconnects;
    bool running; /* the thread is; not under the lock */
    pthread_t thread;
    atomic_uint refs; /* the attachment, and each connection that has not gone */
} AttachmentSockets;

/* Keeps the strings of device: they must stay until attachment_sockets_stop. */
AttachmentSockets *attachment_sockets_new(const AttachmentOptions *options,
                                          const NbdLinkDevice *device);
/* A new nbd device; wanted: its number, or -1 for any that is free. */
bool attachment_sockets_connect(AttachmentSockets *sockets, int wanted, GError **error);
/* One that is there, whose server has died. */
bool attachment_sockets_adopt(AttachmentSockets *sockets, int index, GError **error);
/* The device answers for our identifier still. */
bool attachment_sockets_is_ours(const AttachmentSockets *sockets);
bool attachment_sockets_resize(AttachmentSockets *sockets, uint64_t size, GError **error);
uint64_t attachment_sockets_reconnects(AttachmentSockets *sockets);
/* From now on connections that die stay dead. */
void attachment_sockets_stop(AttachmentSockets *sockets);
/* After stop. What connections still need of it lives until the last of them has gone. */
void attachment_sockets_unref(AttachmentSockets *sockets);

struct Attachment {
    Disk *disk;
    AttachMode mode; /* never ATTACH_AUTO once the device is there */
    bool read_only;
    unsigned lines_max;
    char *path, *identifier;
    char *name; /* in /dev/mapper */
    char *uuid; /* of the device-mapper device; NULL in mode off */
    char *nbd_node;
    AttachmentSockets *sockets;
    Linear *linear;     /* mode linear */
    Snapshot *snapshot; /* mode snapshot */
    uint64_t resizes;
};

/* attachment-mapped.c: the device above the nbd device; does nothing in mode off. start makes or
 * adopts it; stop removes it (EBUSY: it is open, and works on); leave lets it be. */
bool attachment_mapped_available(GError **error);
bool attachment_mapped_start(Attachment *attachment, bool adopt, GError **error);
bool attachment_mapped_resized(Attachment *attachment, GError **error);
bool attachment_mapped_stop(Attachment *attachment, GError **error);
void attachment_mapped_leave(Attachment *attachment);
const char *attachment_mapped_device(const Attachment *attachment); /* NULL in mode off */
void attachment_mapped_get_stats(Attachment *attachment, AttachmentStats *stats);

/* attachment-use.c: flushes the device and opens it so that nobody can mount it or build on it until
 * the descriptor is closed. -1 with EBUSY and who it is when somebody uses it. */
int attachment_claim(const char *device, GError **error);

/* attachment-find.c: the name of the device-mapper device with this UUID, or NULL; g_free. */
char *attachment_mapped_name(const char *uuid);
/* /sys/block/BLOCK/ATTRIBUTE without its newline; NULL: there is none. g_free. */
char *attachment_block_attribute(const char *block, const char *attribute);
/* The UUID of a device-mapper device; NULL when it is none. g_free. */
char *attachment_device_uuid(const char *device);

#endif
