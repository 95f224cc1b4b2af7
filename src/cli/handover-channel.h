/*
 * What two processes say to each other while one hands its work over to the other: JSON objects with
 * descriptors, over a pair of sockets that only they have.
 */
#ifndef CLI_HANDOVER_CHANNEL_H
#define CLI_HANDOVER_CHANNEL_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

#define CHANNEL_FDS_MAX 2

typedef struct ChannelMessage {
    JsonObject *object;
    int fds[CHANNEL_FDS_MAX]; /* -1: none; taken by setting -1 */
} ChannelMessage;

void channel_message_clear(ChannelMessage *message);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(ChannelMessage, channel_message_clear)

/* {"what": what} */
JsonObject *channel_object(const char *what);

/* The path of a file as a member, whatever bytes it has; NULL: none. The second: g_free. */
void channel_put_path(JsonObject *object, const char *key, const char *path);
char *channel_take_path(const ChannelMessage *message, const char *key);

/* Sends the object, which is taken, with descriptors, which are not; those of -1 are left out. */
bool channel_send(int channel, JsonObject *object, int fd0, int fd1, GError **error);

/* Waits for a message. EPIPE: the other side has gone; ETIMEDOUT: it said nothing in time. */
bool channel_receive(int channel, unsigned seconds, ChannelMessage *message, GError **error);

/* The word in "what". */
const char *channel_what(const ChannelMessage *message);

#endif
