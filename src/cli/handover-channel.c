/*
 * Messages of a handover: one packet each, so that descriptors arrive with the message that they
 * belong to.
 */
#include "cli/handover-channel.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/errors.h"

#define PACKET_MAX (128u << 10) /* two names of 4 KiB, each byte written as \u00xx, and the rest */

void channel_message_clear(ChannelMessage *message)
{
    g_clear_pointer(&message->object, json_object_unref);
    for (unsigned i = 0; i < CHANNEL_FDS_MAX; i++) {
        if (message->fds[i] >= 0) {
            close(message->fds[i]);
        }
        message->fds[i] = -1;
    }
}

JsonObject *channel_object(const char *what)
{
    JsonObject *object = json_object_new();
    json_object_set_string_member(object, "what", what);
    return object;
}

const char *channel_what(const ChannelMessage *message)
{
    return json_object_get_string_member_with_default(message->object, "what", "");
}

void channel_put_path(JsonObject *object, const char *key, const char *path)
{
    if (path != NULL) {
        g_autofree char *escaped = g_uri_escape_string(path, "/", FALSE);
        json_object_set_string_member(object, key, escaped);
    }
}

char *channel_take_path(const ChannelMessage *message, const char *key)
{
    const char *escaped = json_object_get_string_member_with_default(message->object, key, NULL);
    return escaped != NULL ? g_uri_unescape_string(escaped, NULL) : NULL;
}

bool channel_send(int channel, JsonObject *object, int fd0, int fd1, GError **error)
{
    g_autoptr(JsonNode) node = json_node_init_object(json_node_alloc(), object);
    json_object_unref(object);
    g_autofree char *text = json_to_string(node, FALSE);
    struct iovec iov = {text, strlen(text)};
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(CHANNEL_FDS_MAX * sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    int fds[CHANNEL_FDS_MAX] = {fd0, fd1};
    unsigned count = (fd0 >= 0) + (fd0 >= 0 && fd1 >= 0);
    if (count > 0) {
        message.msg_control = room;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
                                 .cmsg_type = SCM_RIGHTS,
                                 .cmsg_len = CMSG_LEN(count * sizeof(int))};
        memcpy(CMSG_DATA(head), fds, count * sizeof(int));
    }
    while (sendmsg(channel, &message, MSG_NOSIGNAL) < 0) {
        if (errno != EINTR) {
            return error_set_errno(error, errno, "handover: cannot send");
        }
    }
    return true;
}

static void take_descriptors(struct msghdr *header, ChannelMessage *message)
{
    for (struct cmsghdr *head = CMSG_FIRSTHDR(header); head != NULL;
         head = CMSG_NXTHDR(header, head)) {
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
            memcpy(message->fds, CMSG_DATA(head), head->cmsg_len - CMSG_LEN(0));
        }
    }
}

static bool wait_readable(int channel, unsigned seconds, GError **error)
{
    struct pollfd look = {.fd = channel, .events = POLLIN};
    int r;
    while ((r = poll(&look, 1, seconds * 1000)) < 0 && errno == EINTR) {
    }
    return r > 0 || error_set(error, ETIMEDOUT,
                              "handover: the other process said nothing for %u seconds", seconds);
}

bool channel_receive(int channel, unsigned seconds, ChannelMessage *message, GError **error)
{
    g_autofree char *text = g_malloc(PACKET_MAX);
    struct iovec iov = {text, PACKET_MAX};
    _Alignas(struct cmsghdr) char room[CMSG_SPACE(CHANNEL_FDS_MAX * sizeof(int))];
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    *message = (ChannelMessage){.fds = {-1, -1}};
    if (!wait_readable(channel, seconds, error)) {
        return false;
    }
    ssize_t got = recvmsg(channel, &header, MSG_CMSG_CLOEXEC);
    if (got <= 0) {
        return error_set(error, EPIPE, "handover: the other process has gone");
    }
    take_descriptors(&header, message);
    g_autoptr(JsonParser) parser = json_parser_new_immutable();
    if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
        !json_parser_load_from_data(parser, text, got, NULL) ||
        !JSON_NODE_HOLDS_OBJECT(json_parser_get_root(parser))) {
        channel_message_clear(message);
        return error_set(error, EPROTO, "handover: the other process does not make sense");
    }
    message->object = json_node_dup_object(json_parser_get_root(parser));
    return true;
}
