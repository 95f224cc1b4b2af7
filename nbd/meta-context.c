/*
 * Meta contexts.
 *
 * LIST without queries names all that there is, the query "base:" or "qemu:" all of that name
 * space; SET chooses by exact name only. Queries for what we do not have are no error: they match
 * nothing. All queries are parsed before anything is answered, so that a malformed option gets one
 * error and no half answer.
 */
#include "nbd/meta-context.h"

#include <string.h>

#include "base/bytes.h"
#include "nbd/conn.h"
#include "nbd/handshake.h"

#define EVERY_CONTEXT ((1u << META_CONTEXTS) - 1)

static const char *const NAMES[META_CONTEXTS] = {
    [META_ALLOCATION] = "base:allocation",
    [META_DEPTH] = "qemu:allocation-depth",
};

/* The name, or with wildcard the name space with its colon. */
static bool query_matches(const char *query, uint32_t length, const char *name, bool wildcard)
{
    bool whole = length == strlen(name);
    bool space = wildcard && length == (size_t)(strchr(name, ':') + 1 - name);
    return (whole || space) && memcmp(query, name, length) == 0;
}

/* False when the queries are malformed; else *found is the set that they name. */
static bool match_queries(NbdMetaRequest *asked, bool wildcard, uint8_t *found)
{
    *found = wildcard && asked->query_count == 0 ? EVERY_CONTEXT : 0;
    for (uint32_t i = 0; i < asked->query_count; i++) {
        const char *query;
        uint32_t length;
        if (!nbd_next_meta_query(asked, &query, &length)) {
            return false;
        }
        for (unsigned context = 0; context < META_CONTEXTS; context++) {
            if (query_matches(query, length, NAMES[context], wildcard)) {
                *found |= 1u << context;
            }
        }
    }
    return asked->queries_length == 0;
}

static void put_context(GByteArray *out, uint32_t option, MetaContext context)
{
    uint8_t reply[64];
    size_t length = strlen(NAMES[context]);
    g_assert(4 + length <= sizeof reply);
    /* A listed context has no number yet. */
    store_be32(reply, option == NBD_OPT_SET_META_CONTEXT ? meta_context_number(context) : 0);
    memcpy(reply + 4, NAMES[context], length);
    handshake_put_reply(out, option, NBD_REP_META_CONTEXT, reply, 4 + length);
}

void meta_context_answer(Conn *conn, uint32_t option, const uint8_t *data, size_t length,
                         GByteArray *out)
{
    bool set = option == NBD_OPT_SET_META_CONTEXT;
    NbdMetaRequest asked;
    uint8_t found;
    if (set) {
        conn_set_meta_export(conn, NULL);
    }
    if (!conn->structured) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID,
                            "meta contexts need structured replies: negotiate them first");
        return;
    }
    if (!nbd_unpack_meta_request(data, length, &asked) || !match_queries(&asked, !set, &found)) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID,
                            "the lengths inside the option do not add up");
        return;
    }
    g_autoptr(Export) export =
        export_table_get(conn->local->server->exports, asked.name, asked.name_length);
    if (export == NULL) {
        handshake_put_error(out, option, NBD_REP_ERR_UNKNOWN, "no export is called '%.*s'",
                            (int)asked.name_length, asked.name);
        return;
    }
    for (unsigned context = 0; context < META_CONTEXTS; context++) {
        if (found & 1u << context) {
            put_context(out, option, context);
        }
    }
    if (set && found != 0) {
        conn_set_meta_export(conn, g_steal_pointer(&export));
        conn->contexts = found;
    }
    handshake_put_reply(out, option, NBD_REP_ACK, NULL, 0);
}

uint8_t meta_context_unpack(const uint8_t *numbers, unsigned count, uint8_t allowed)
{
    uint8_t found = 0;
    for (unsigned i = 0; i < count; i++) {
        uint32_t number = load_be32(numbers + (size_t)4 * i);
        if (number == 0 || number > META_CONTEXTS) {
            return 0;
        }
        uint8_t bit = 1u << (number - 1);
        if (!(allowed & bit) || (found & bit)) {
            return 0;
        }
        found |= bit;
    }
    return found;
}
