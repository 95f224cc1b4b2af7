/*
 * A connection's state as a message.
 *
 * Bytes (input, output, the reply that waits for a skip) may be many and are none of JSON's: they
 * travel one after the other in a memory file.
 */
#include "cli/handover-conn.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"

static bool append(int fd, const GByteArray *bytes)
{
    size_t done = 0;
    while (bytes != NULL && done < bytes->len) {
        ssize_t written = write(fd, bytes->data + done, bytes->len - done);
        if (written < 0 && errno != EINTR) {
            return false;
        }
        done += written > 0 ? written : 0;
    }
    return true;
}

/* A memory file of all of the state's bytes; -1 with *ok when there are none. */
static int put_bytes(const ConnState *state, bool *ok)
{
    *ok = true;
    if (state->input->len == 0 && state->output->len == 0 && state->skipped == NULL) {
        return -1;
    }
    autofd int fd = memfd_create("cownbd-connection", MFD_CLOEXEC);
    *ok = fd >= 0 && append(fd, state->input) && append(fd, state->output) &&
          append(fd, state->skipped);
    return fd_steal(&fd);
}

static void put_export(JsonObject *object, const char *key, const Export *export)
{
    if (export != NULL) {
        json_object_set_int_member(object, key, export->number);
    }
}

/* By name: a number is the export's, and that of another process may count otherwise. */
static void put_contexts(JsonObject *object, const ConnState *state)
{
    JsonArray *names = json_array_new();
    for (unsigned i = 0; state->meta_export != NULL && state->contexts >> i != 0; i++) {
        if (state->contexts & 1u << i) {
            json_array_add_string_element(names, meta_context_name(state->meta_export, i));
        }
    }
    json_object_set_array_member(object, "contexts", names);
}

bool handover_send_conn(int channel, int fd, const ConnState *state, GError **error)
{
    bool ok;
    autofd int bytes = put_bytes(state, &ok);
    if (!ok) {
        return error_set_errno(error, errno, "handover: no memory for a connection's bytes");
    }
    JsonObject *object = channel_object("connection");
    json_object_set_int_member(object, "phase", state->phase);
    json_object_set_boolean_member(object, "fixed-newstyle", state->fixed_newstyle);
    json_object_set_boolean_member(object, "no-zeroes", state->no_zeroes);
    json_object_set_boolean_member(object, "structured", state->structured);
    json_object_set_boolean_member(object, "extended", state->extended);
    put_contexts(object, state);
    json_object_set_boolean_member(object, "draining", state->draining);
    put_export(object, "meta-export", state->meta_export);
    put_export(object, "export", state->export);
    json_object_set_int_member(object, "skip", state->skip);
    json_object_set_int_member(object, "input", state->input->len);
    json_object_set_int_member(object, "output", state->output->len);
    if (state->skipped != NULL) {
        json_object_set_int_member(object, "skipped", state->skipped->len);
    }
    return channel_send(channel, object, fd, bytes, error);
}

/* Reads length bytes at *offset, which moves on. */
static bool take_bytes(int fd, off_t *offset, int64_t length, GByteArray *bytes)
{
    struct stat st;
    if (length == 0) {
        return true;
    }
    if (fd < 0 || fstat(fd, &st) != 0 || length < 0 || length > st.st_size - *offset) {
        return false;
    }
    g_byte_array_set_size(bytes, length);
    if (pread(fd, bytes->data, length, *offset) != length) {
        return false;
    }
    *offset += length;
    return true;
}

static int64_t number(const ChannelMessage *message, const char *key)
{
    return json_object_get_int_member_with_default(message->object, key, 0);
}

static bool flag(const ChannelMessage *message, const char *key)
{
    return json_object_get_boolean_member_with_default(message->object, key, FALSE);
}

/* The export whose number a member is, pinned; false when there is none of that number. */
static bool take_export(const ChannelMessage *message, const char *key, GHashTable *exports,
                        Export **export)
{
    uint64_t old = number(message, key);
    Export *found = g_hash_table_lookup(exports, &old);
    *export = found != NULL ? export_get(found) : NULL;
    return found != NULL || !json_object_has_member(message->object, key);
}

static bool take_contexts(const ChannelMessage *message, ConnState *state)
{
    JsonNode *member = json_object_get_member(message->object, "contexts");
    JsonArray *names =
        member != NULL && JSON_NODE_HOLDS_ARRAY(member) ? json_node_get_array(member) : NULL;
    for (unsigned i = 0; names != NULL && i < json_array_get_length(names); i++) {
        unsigned context;
        if (state->meta_export == NULL ||
            !meta_context_find(state->meta_export, json_array_get_string_element(names, i),
                               &context)) {
            return false;
        }
        state->contexts |= 1u << context;
    }
    return true;
}

static bool take_all_bytes(const ChannelMessage *message, ConnState *state)
{
    off_t offset = 0;
    int fd = message->fds[1];
    if (!take_bytes(fd, &offset, number(message, "input"), state->input) ||
        !take_bytes(fd, &offset, number(message, "output"), state->output)) {
        return false;
    }
    if (json_object_has_member(message->object, "skipped")) {
        state->skipped = g_byte_array_new();
        return take_bytes(fd, &offset, number(message, "skipped"), state->skipped);
    }
    return true;
}

ConnState *handover_take_conn(const ChannelMessage *message, GHashTable *exports, GError **error)
{
    g_autoptr(ConnState) state = conn_state_new();
    int64_t phase = number(message, "phase");
    state->phase = phase;
    state->fixed_newstyle = flag(message, "fixed-newstyle");
    state->no_zeroes = flag(message, "no-zeroes");
    state->structured = flag(message, "structured");
    state->extended = flag(message, "extended");
    state->draining = flag(message, "draining");
    state->skip = number(message, "skip");
    if (!take_export(message, "meta-export", exports, &state->meta_export) ||
        !take_export(message, "export", exports, &state->export)) {
        error_set(error, ENOENT, "handover: a client uses an export that is not served any more");
        return NULL;
    }
    if (!take_contexts(message, state)) {
        error_set(error, ENOENT,
                  "handover: a client uses a meta context that is not there any more");
        return NULL;
    }
    if (phase < CONN_FLAGS || phase > CONN_TRANSMISSION || message->fds[0] < 0 ||
        (phase == CONN_TRANSMISSION) != (state->export != NULL) ||
        !take_all_bytes(message, state)) {
        error_set(error, EPROTO, "handover: a connection's state does not make sense");
        return NULL;
    }
    return g_steal_pointer(&state);
}
