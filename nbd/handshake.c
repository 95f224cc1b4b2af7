/*
 * The handshake.
 *
 *      S: greeting   C: flags   { C: option   S: replies }...   C: GO | EXPORT_NAME -> ...
 *
 * An option is worked on when all of its data is here; data beyond HANDSHAKE_OPTION_MAX is read
 * past. All replies of an option are put together and queued as one run of bytes. What must stay
 * true: every option gets a final reply (ACK or an error) and the connection is kept, but for what
 * the protocol ends it for: client flags or a magic that we do not know, and EXPORT_NAME, which has
 * no way to say no.
 */
#include "nbd/handshake.h"

#include "base/bytes.h"
#include "base/log.h"
#include "nbd/conn.h"
#include "nbd/meta-context.h"
#include "nbd/peer.h"
#include "nbd/tls.h"
#include "nbd/transmission.h"

void handshake_put_reply(GByteArray *out, uint32_t option, uint32_t type, const void *data,
                         size_t length)
{
    uint8_t header[NBD_OPTION_REPLY_SIZE];
    g_byte_array_append(out, header, nbd_pack_option_reply(header, option, type, length));
    if (length > 0) {
        g_byte_array_append(out, data, length);
    }
}

void handshake_put_error(GByteArray *out, uint32_t option, uint32_t type, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    handshake_put_reply(out, option, type, text, MIN(strlen(text), NBD_STRING_MAX));
}

void handshake_start(Conn *conn)
{
    uint8_t greeting[NBD_GREETING_SIZE];
    conn_send_bytes(conn, greeting, nbd_pack_greeting(greeting));
}

Export *handshake_find_export(Conn *conn, uint32_t option, const char *name, size_t length,
                              GByteArray *out)
{
    g_autoptr(Export) export = export_table_get(conn->local->server->exports, name, length);
    unsigned rights = export != NULL ? peer_rights(conn, export) : ACCESS_NONE;
    if (rights & ACCESS_READ) {
        return g_steal_pointer(&export);
    }
    if (out != NULL && (rights & ACCESS_LIST)) {
        handshake_put_error(out, option, NBD_REP_ERR_POLICY, "you may not read export '%.*s'",
                            (int)length, name);
    } else if (out != NULL) {
        handshake_put_error(out, option, NBD_REP_ERR_UNKNOWN, "no export is called '%.*s'",
                            (int)length, name);
    }
    return NULL;
}

/* What a client may not say before it has begun TLS. */
static bool needs_tls(const Conn *conn, uint32_t option)
{
    return conn->local->server->tls_required && conn->tls == NULL && option != NBD_OPT_STARTTLS &&
           option != NBD_OPT_ABORT;
}

static size_t take_client_flags(Conn *conn, const uint8_t *bytes, size_t length)
{
    if (length < NBD_CLIENT_FLAGS_SIZE) {
        return 0;
    }
    uint32_t flags = load_be32(bytes);
    if (flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) {
        log_limited(LOG_LEVEL_WARNING, "client dropped: unknown handshake flags 0x%x", flags);
        conn_break(conn);
        return 0;
    }
    conn->fixed_newstyle = flags & NBD_FLAG_C_FIXED_NEWSTYLE;
    conn->no_zeroes = flags & NBD_FLAG_C_NO_ZEROES;
    conn->phase = CONN_OPTIONS;
    return NBD_CLIENT_FLAGS_SIZE;
}

/* Takes the pin of export. */
static void begin_transmission(Conn *conn, Export *export)
{
    if (conn->meta_export != export) {
        conn->contexts = 0;
        conn_set_meta_export(conn, NULL);
    }
    conn_start_transmission(conn, export, !(peer_rights(conn, export) & ACCESS_WRITE));
    log_debug("client %d uses '%s'", conn->fd, export->name);
}

/* EXPORT_NAME: the reply is not an option reply; the only error is to hang up. */
static void answer_export_name(Conn *conn, const uint8_t *data, size_t length)
{
    if (needs_tls(conn, NBD_OPT_EXPORT_NAME)) {
        log_limited(LOG_LEVEL_INFO, "client dropped: it asked for an export without TLS");
        conn_break(conn);
        return;
    }
    if (conn->extended) {
        log_limited(LOG_LEVEL_INFO, "client dropped: it sent EXPORT_NAME after extended headers");
        conn_break(conn);
        return;
    }
    Export *export =
        handshake_find_export(conn, NBD_OPT_EXPORT_NAME, (const char *)data, length, NULL);
    if (export == NULL) {
        log_limited(LOG_LEVEL_INFO, "client dropped: it asked for an export that is not here");
        conn_break(conn);
        return;
    }
    uint8_t reply[NBD_EXPORT_REPLY_SIZE + NBD_EXPORT_REPLY_ZEROES] = {0};
    size_t reply_length =
        nbd_pack_export_reply(reply, export->node->size, transmission_flags(conn, export));
    conn_send_bytes(conn, reply,
                    conn->no_zeroes ? reply_length : reply_length + NBD_EXPORT_REPLY_ZEROES);
    begin_transmission(conn, export);
}

static void put_info_export(GByteArray *out, uint32_t option, const Conn *conn,
                            const Export *export)
{
    uint8_t info[12];
    store_be16(info, NBD_INFO_EXPORT);
    store_be64(info + 2, export->node->size);
    store_be16(info + 10, transmission_flags(conn, export));
    handshake_put_reply(out, option, NBD_REP_INFO, info, sizeof info);
}

static void put_info_block_size(GByteArray *out, uint32_t option, const Node *node)
{
    uint8_t info[14];
    store_be16(info, NBD_INFO_BLOCK_SIZE);
    store_be32(info + 2, node->block_minimum);
    store_be32(info + 6, node->block_preferred);
    store_be32(info + 10, MIN(node->block_maximum, TRANSMISSION_LENGTH_MAX));
    handshake_put_reply(out, option, NBD_REP_INFO, info, sizeof info);
}

static void put_info_text(GByteArray *out, uint32_t option, uint16_t info, const char *text)
{
    size_t length = MIN(strlen(text), NBD_STRING_MAX);
    g_autofree uint8_t *data = g_malloc(2 + length);
    store_be16(data, info);
    memcpy(data + 2, text, length);
    handshake_put_reply(out, option, NBD_REP_INFO, data, 2 + length);
}

/* What the client asked for beyond INFO_EXPORT; each at most once, what we do not know is passed
 * over. */
static void put_wanted_infos(GByteArray *out, uint32_t option, const Export *export,
                             const NbdInfoRequest *asked)
{
    bool wanted[NBD_INFO_BLOCK_SIZE + 1] = {false};
    for (unsigned i = 0; i < asked->info_count; i++) {
        uint16_t info = load_be16(asked->infos + 2 * i);
        if (info <= NBD_INFO_BLOCK_SIZE) {
            wanted[info] = true;
        }
    }
    if (wanted[NBD_INFO_NAME]) {
        put_info_text(out, option, NBD_INFO_NAME, export->name);
    }
    if (wanted[NBD_INFO_DESCRIPTION] && export->description != NULL) {
        put_info_text(out, option, NBD_INFO_DESCRIPTION, export->description);
    }
    if (wanted[NBD_INFO_BLOCK_SIZE]) {
        put_info_block_size(out, option, export->node);
    }
}

/* INFO and GO. Returns the export to begin transmission with, pinned; NULL to go on with options. */
static Export *answer_info(Conn *conn, uint32_t option, const uint8_t *data, size_t length,
                           GByteArray *out)
{
    NbdInfoRequest asked;
    if (!nbd_unpack_info_request(data, length, &asked)) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID,
                            "the lengths inside the option do not add up");
        return NULL;
    }
    g_autoptr(Export) export =
        handshake_find_export(conn, option, asked.name, asked.name_length, out);
    if (export == NULL) {
        return NULL;
    }
    put_info_export(out, option, conn, export);
    put_wanted_infos(out, option, export, &asked);
    handshake_put_reply(out, option, NBD_REP_ACK, NULL, 0);
    return option == NBD_OPT_GO ? g_steal_pointer(&export) : NULL;
}

static void put_listed(GByteArray *out, const char *name, const char *description)
{
    uint32_t name_length = strlen(name);
    g_autoptr(GByteArray) item = g_byte_array_new();
    uint8_t number[4];
    store_be32(number, name_length);
    g_byte_array_append(item, number, sizeof number);
    g_byte_array_append(item, (const uint8_t *)name, name_length);
    if (description != NULL) {
        g_byte_array_append(item, (const uint8_t *)description,
                            MIN(strlen(description), NBD_STRING_MAX));
    }
    handshake_put_reply(out, NBD_OPT_LIST, NBD_REP_SERVER, item->data, item->len);
}

static void answer_list(Conn *conn, size_t length, GByteArray *out)
{
    if (length > 0) {
        handshake_put_error(out, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "LIST has no data");
        return;
    }
    AccessPeer peer;
    peer_describe(conn, &peer);
    g_autoptr(GPtrArray) exports = export_table_get_all(conn->local->server->exports);
    g_autoptr(GHashTable) open = g_hash_table_new(g_str_hash, g_str_equal);
    for (unsigned i = 0; i < exports->len; i++) {
        const Export *export = g_ptr_array_index(exports, i);
        g_hash_table_add(open, export->name);
        if (export_rights(export, &peer) & ACCESS_LIST) {
            put_listed(out, export->name, export->description);
        }
    }
    for (unsigned i = 0; conn->listing != NULL && i < conn->listing->len; i++) {
        const NbdListed *listed = g_ptr_array_index(conn->listing, i);
        if (!g_hash_table_contains(open, listed->name) &&
            (access_rights(listed->access, &peer) & ACCESS_LIST)) {
            put_listed(out, listed->name, NULL);
        }
    }
    handshake_put_reply(out, NBD_OPT_LIST, NBD_REP_ACK, NULL, 0);
}

/* STRUCTURED_REPLY and EXTENDED_HEADERS. What is negotiated stays; there is no way back. */
static void answer_reply_form(Conn *conn, uint32_t option, size_t length, GByteArray *out)
{
    bool extended = option == NBD_OPT_EXTENDED_HEADERS;
    if (length > 0) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID, "this option has no data");
    } else if (!extended && conn->extended) {
        handshake_put_error(out, option, NBD_REP_ERR_EXT_HEADER_REQD,
                            "extended headers are negotiated already");
    } else if (extended ? conn->extended : conn->structured) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID, "this is negotiated already");
    } else {
        conn->structured = true;
        conn->extended = extended;
        handshake_put_reply(out, option, NBD_REP_ACK, NULL, 0);
    }
}

/* The session that the client asks for; NULL: there is none, and out has the error. What was
 * negotiated in plain is forgotten: who sits in between may have said it. */
static TlsSession *answer_starttls(Conn *conn, size_t length, GByteArray *out)
{
    uint32_t option = NBD_OPT_STARTTLS;
    TlsCredentials *credentials = conn->local->server->tls;
    if (length > 0) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID, "STARTTLS has no data");
        return NULL;
    }
    if (conn->tls != NULL) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID, "TLS has begun already");
        return NULL;
    }
    if (credentials == NULL) {
        handshake_put_error(out, option, NBD_REP_ERR_POLICY, "TLS is off on this server");
        return NULL;
    }
    TlsSession *session =
        tls_session_new(conn->fd, &conn->local->buffers, tls_credentials_get(credentials));
    if (session == NULL) {
        handshake_put_error(out, option, NBD_REP_ERR_POLICY, "no memory for TLS now");
        return NULL;
    }
    conn->structured = conn->extended = false;
    conn->contexts = 0;
    conn_set_meta_export(conn, NULL);
    handshake_put_reply(out, option, NBD_REP_ACK, NULL, 0);
    return session;
}

/* All options but EXPORT_NAME, whole. */
static void answer(Conn *conn, uint32_t option, const uint8_t *data, size_t length)
{
    g_autoptr(GByteArray) out = g_byte_array_new();
    Export *chosen = NULL;
    TlsSession *session = NULL;
    if (needs_tls(conn, option)) {
        handshake_put_error(out, option, NBD_REP_ERR_TLS_REQD, "begin TLS first (STARTTLS)");
        conn_send_bytes(conn, out->data, out->len);
        return;
    }
    switch (option) {
    case NBD_OPT_ABORT:
        handshake_put_reply(out, option, NBD_REP_ACK, NULL, 0);
        break;
    case NBD_OPT_LIST:
        answer_list(conn, length, out);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        chosen = answer_info(conn, option, data, length, out);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS:
        answer_reply_form(conn, option, length, out);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        meta_context_answer(conn, option, data, length, out);
        break;
    case NBD_OPT_STARTTLS:
        session = answer_starttls(conn, length, out);
        break;
    default:
        handshake_put_error(out, option, NBD_REP_ERR_UNSUP, "option %u is not known here", option);
        break;
    }
    conn_send_bytes(conn, out->data, out->len);
    if (option == NBD_OPT_ABORT) {
        conn_drain(conn);
    } else if (chosen != NULL) {
        begin_transmission(conn, chosen);
    } else if (session != NULL) {
        conn_start_tls(conn, session);
    }
}

/* A header that ends the connection, or whose data is not looked at. Returns true when that is so.
 * */
static bool refuse_header(Conn *conn, const NbdOptionHeader *header)
{
    if (!conn->fixed_newstyle && header->option != NBD_OPT_EXPORT_NAME) {
        log_limited(LOG_LEVEL_INFO, "client dropped: not fixed newstyle, but sends option %u",
                    header->option);
        conn_break(conn);
        return true;
    }
    if (header->length <= HANDSHAKE_OPTION_MAX) {
        return false;
    }
    if (header->option == NBD_OPT_EXPORT_NAME) {
        log_limited(LOG_LEVEL_WARNING, "client dropped: an export name of %u bytes",
                    header->length);
        conn_break(conn);
        return true;
    }
    g_autoptr(GByteArray) out = g_byte_array_new();
    handshake_put_error(out, header->option, NBD_REP_ERR_TOO_BIG,
                        "an option may have at most %u bytes of data", HANDSHAKE_OPTION_MAX);
    conn_send_bytes(conn, out->data, out->len);
    conn_skip(conn, header->length, NULL);
    return true;
}

static void refuse_for_shutdown(Conn *conn, uint32_t option)
{
    if (option == NBD_OPT_EXPORT_NAME) {
        conn_break(conn);
        return;
    }
    g_autoptr(GByteArray) out = g_byte_array_new();
    handshake_put_error(out, option, NBD_REP_ERR_SHUTDOWN, "the server is shutting down");
    conn_send_bytes(conn, out->data, out->len);
}

/* The export that the option names; false: it names none, or is not in order. */
static bool names_export(uint32_t option, const uint8_t *data, size_t length, const char **name,
                         size_t *name_length)
{
    NbdInfoRequest info = {0};
    NbdMetaRequest meta = {0};
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        *name = (const char *)data;
        *name_length = length;
        return true;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        if (!nbd_unpack_info_request(data, length, &info)) {
            return false;
        }
        *name = info.name;
        *name_length = info.name_length;
        return true;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        if (!nbd_unpack_meta_request(data, length, &meta)) {
            return false;
        }
        *name = meta.name;
        *name_length = meta.name_length;
        return true;
    default:
        return false;
    }
}

/* True: the option waits for a search for its export. */
static bool starts_search(Conn *conn, uint32_t option, const uint8_t *data, size_t length)
{
    const char *name;
    size_t name_length;
    if (conn->searched || conn->stopping || needs_tls(conn, option) ||
        conn->local->server->finder == NULL) {
        return false;
    }
    if (option == NBD_OPT_LIST) {
        return length == 0 && conn_search(conn, NULL, 0);
    }
    if (!names_export(option, data, length, &name, &name_length)) {
        return false;
    }
    g_autoptr(Export) known = export_table_get(conn->local->server->exports, name, name_length);
    return known == NULL && conn_search(conn, name, name_length);
}

static size_t take_option(Conn *conn, const uint8_t *bytes, size_t length)
{
    NbdOptionHeader header;
    if (length < NBD_OPTION_SIZE) {
        return 0;
    }
    if (!nbd_unpack_option(bytes, &header)) {
        log_limited(LOG_LEVEL_WARNING, "client dropped: an option without its magic");
        conn_break(conn);
        return 0;
    }
    if (refuse_header(conn, &header)) {
        return NBD_OPTION_SIZE;
    }
    if (length - NBD_OPTION_SIZE < header.length) {
        return 0;
    }
    conn_restart_timer(conn);
    const uint8_t *data = bytes + NBD_OPTION_SIZE;
    if (starts_search(conn, header.option, data, header.length)) {
        return 0;
    }
    if (conn->stopping && header.option != NBD_OPT_ABORT) {
        refuse_for_shutdown(conn, header.option);
    } else if (header.option == NBD_OPT_EXPORT_NAME) {
        answer_export_name(conn, data, header.length);
    } else {
        answer(conn, header.option, data, header.length);
    }
    conn_forget_search(conn);
    size_t used = NBD_OPTION_SIZE + header.length;
    if (conn->starting != NULL && length > used) {
        /* Nobody can know yet that we say yes: these came from somebody else (CVE-2021-3716). */
        log_limited(LOG_LEVEL_WARNING, "client dropped: plain bytes came behind STARTTLS");
        conn_break(conn);
    }
    return used;
}

size_t handshake_consume(Conn *conn, const uint8_t *bytes, size_t length)
{
    if (conn->phase == CONN_FLAGS) {
        return take_client_flags(conn, bytes, length);
    }
    return take_option(conn, bytes, length);
}
