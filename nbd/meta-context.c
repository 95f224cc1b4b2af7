/*
 * Meta contexts.
 *
 * LIST without queries, or with the query "base:", names all that there is; SET chooses by exact
 * name only. Queries for namespaces that we do not have are no error: they match nothing. All
 * queries are parsed before anything is answered, so that a malformed option gets one error and no
 * half answer.
 */
#include "nbd/meta-context.h"

#include <string.h>

#include "base/bytes.h"
#include "nbd/conn.h"
#include "nbd/handshake.h"

#define ALLOCATION "base:allocation"

static bool query_is(const char *query, uint32_t length, const char *text)
{
    return length == strlen(text) && memcmp(query, text, length) == 0;
}

/* False when the queries are malformed; else *matched says whether one of them names
 * base:allocation. */
static bool match_queries(NbdMetaRequest *asked, bool wildcard, bool *matched)
{
    *matched = wildcard && asked->query_count == 0;
    for (uint32_t i = 0; i < asked->query_count; i++) {
        const char *query;
        uint32_t length;
        if (!nbd_next_meta_query(asked, &query, &length)) {
            return false;
        }
        *matched |=
            query_is(query, length, ALLOCATION) || (wildcard && query_is(query, length, "base:"));
    }
    return asked->queries_length == 0;
}

static void put_context(GByteArray *out, uint32_t option)
{
    uint8_t reply[4 + sizeof ALLOCATION - 1];
    /* A listed context has no number yet. */
    store_be32(reply, option == NBD_OPT_SET_META_CONTEXT ? REPLY_CONTEXT_ALLOCATION : 0);
    memcpy(reply + 4, ALLOCATION, sizeof ALLOCATION - 1);
    handshake_put_reply(out, option, NBD_REP_META_CONTEXT, reply, sizeof reply);
}

void meta_context_answer(Conn *conn, uint32_t option, const uint8_t *data, size_t length,
                         GByteArray *out)
{
    bool set = option == NBD_OPT_SET_META_CONTEXT;
    NbdMetaRequest asked;
    bool matched;
    if (set) {
        conn->meta_export = NULL;
    }
    if (!conn->structured) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID,
                            "meta contexts need structured replies: negotiate them first");
        return;
    }
    if (!nbd_unpack_meta_request(data, length, &asked) || !match_queries(&asked, !set, &matched)) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID,
                            "the lengths inside the option do not add up");
        return;
    }
    const Export *export =
        export_table_find(conn->local->server->exports, asked.name, asked.name_length);
    if (export == NULL) {
        handshake_put_error(out, option, NBD_REP_ERR_UNKNOWN, "no export is called '%.*s'",
                            (int)asked.name_length, asked.name);
        return;
    }
    if (matched) {
        put_context(out, option);
    }
    if (set && matched) {
        conn->meta_export = export;
    }
    handshake_put_reply(out, option, NBD_REP_ACK, NULL, 0);
}
