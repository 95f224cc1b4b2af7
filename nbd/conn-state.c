/*
 * The state of a connection, taken and applied.
 *
 * A WRITE whose payload is still arriving is turned back into the bytes that it came as: its header
 * and what is there of the payload. So there is one way into a request, which checks it, also for
 * the process that takes over.
 */
#include "nbd/conn-state.h"

#include "nbd/conn.h"
#include "nbd/peer.h"

ConnState *conn_state_new(void)
{
    ConnState *state = g_new0(ConnState, 1);
    state->input = g_byte_array_new();
    state->output = g_byte_array_new();
    return state;
}

void conn_state_free(ConnState *state)
{
    g_byte_array_unref(state->input);
    g_byte_array_unref(state->output);
    g_clear_pointer(&state->skipped, g_byte_array_unref);
    g_clear_pointer(&state->meta_export, export_put);
    g_clear_pointer(&state->export, export_put);
    g_free(state);
}

static void append_reply(GByteArray *out, const NbdRequest *request)
{
    for (unsigned i = 0; i < request->iov_count; i++) {
        g_byte_array_append(out, request->iov[i].iov_base, request->iov[i].iov_len);
    }
}

static void take_input(const Conn *conn, ConnState *state)
{
    const NbdRequest *write = conn->payload;
    if (write != NULL) {
        uint8_t header[NBD_EXTENDED_REQUEST_SIZE];
        NbdRequestHeader request = {.flags = write->flags,
                                    .command = write->command,
                                    .cookie = write->head.cookie,
                                    .offset = write->request.offset,
                                    .length = write->length};
        g_byte_array_append(state->input, header,
                            nbd_pack_request(header, &request, conn->extended));
        g_byte_array_append(state->input, write->buffer, conn->payload_got);
    }
    g_byte_array_append(state->input, stash_bytes(&conn->stash), conn->stash.length);
    state->skip = conn->skip;
    if (conn->skipped != NULL) {
        state->skipped = g_byte_array_new();
        append_reply(state->skipped, conn->skipped);
    }
}

ConnState *conn_state_take(const Conn *conn)
{
    ConnState *state = conn_state_new();
    state->phase = conn->phase;
    state->fixed_newstyle = conn->fixed_newstyle;
    state->no_zeroes = conn->no_zeroes;
    state->structured = conn->structured;
    state->extended = conn->extended;
    state->contexts = conn->contexts;
    state->draining = conn->draining;
    state->meta_export = conn->meta_export != NULL ? export_get(conn->meta_export) : NULL;
    state->export = conn->phase == CONN_TRANSMISSION ? export_get(conn->export) : NULL;
    take_input(conn, state);
    for (const NbdRequest *request = conn->queue; request != NULL; request = request->next) {
        append_reply(state->output, request);
    }
    return state;
}

void conn_state_apply(Conn *conn, ConnState *state)
{
    conn->fixed_newstyle = state->fixed_newstyle;
    conn->no_zeroes = state->no_zeroes;
    conn->structured = state->structured;
    conn->extended = state->extended;
    conn->contexts = state->contexts;
    conn_set_meta_export(conn, g_steal_pointer(&state->meta_export));
    conn->phase = state->phase;
    if (state->phase == CONN_TRANSMISSION) {
        bool read_only = !(peer_rights(conn, state->export) & ACCESS_WRITE);
        conn_start_transmission(conn, g_steal_pointer(&state->export), read_only);
    } else {
        conn_restart_timer(conn);
    }
    conn_send_bytes(conn, state->output->data, state->output->len);
    if (state->draining) {
        conn_drain(conn);
        return;
    }
    if (state->skip > 0) {
        NbdRequest *reply = state->skipped != NULL ? conn_reply_of_bytes(conn, state->skipped->data,
                                                                         state->skipped->len)
                                                   : NULL;
        conn_skip(conn, state->skip, reply);
    }
    stash_keep(&conn->stash, state->input->data, state->input->len);
    conn->paused = state->input->len > 0; /* goes on with the input at the end of the callback */
    conn->resume_charge = 0;
}
