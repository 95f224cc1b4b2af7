/*
 * Meta contexts.
 *
 * LIST without queries names all that there is, the query "base:" or "qemu:" all of that name
 * space, "qemu:dirty-bitmap:" all of that kind; SET chooses by exact name only. Queries for what we do not have are no error: they match
 * nothing. All queries are parsed before anything is answered, so that a malformed option gets one
 * error and no half answer.
 */
#include "nbd/meta-context.h"

#include <string.h>

#include "base/bytes.h"
#include "nbd/conn.h"
#include "nbd/handshake.h"

G_STATIC_ASSERT(META_CONTEXTS_MAX <= 8 * sizeof(MetaContexts));

unsigned meta_context_count(const Export *export)
{
    return META_EXPORT + export->context_count;
}

const char *meta_context_name(const Export *export, unsigned context)
{
    switch (context) {
    case META_ALLOCATION:
        return "base:allocation";
    case META_DEPTH:
        return "qemu:allocation-depth";
    default:
        return export->contexts[context - META_EXPORT].name;
    }
}

bool meta_context_find(const Export *export, const char *name, unsigned *context)
{
    for (*context = 0; *context < meta_context_count(export); ++*context) {
        if (name != NULL && strcmp(meta_context_name(export, *context), name) == 0) {
            return true;
        }
    }
    return false;
}

/* The name begins with the query, which is its name space, or that and its kind. */
static bool is_wildcard(uint32_t length, const char *name)
{
    const char *space = strchr(name, ':') + 1;
    const char *kind = strchr(space, ':');
    return length == (size_t)(space - name) ||
           (kind != NULL && length == (size_t)(kind + 1 - name));
}

static bool query_matches(const char *query, uint32_t length, const char *name, bool wildcard)
{
    size_t whole = strlen(name);
    return (length == whole || (wildcard && length < whole && is_wildcard(length, name))) &&
           memcmp(query, name, length) == 0;
}

/* On a copy: the queries are taken again when it is known what they are asked of. */
static bool queries_add_up(NbdMetaRequest asked)
{
    const char *query;
    uint32_t length;
    for (uint32_t i = 0; i < asked.query_count; i++) {
        if (!nbd_next_meta_query(&asked, &query, &length)) {
            return false;
        }
    }
    return asked.queries_length == 0;
}

/* The set that the queries name. */
static MetaContexts match_queries(NbdMetaRequest *asked, const Export *export, bool wildcard)
{
    unsigned count = meta_context_count(export);
    MetaContexts found = wildcard && asked->query_count == 0 ? UINT32_MAX >> (32 - count) : 0;
    const char *query;
    uint32_t length;
    while (nbd_next_meta_query(asked, &query, &length)) {
        for (unsigned context = 0; context < count; context++) {
            if (query_matches(query, length, meta_context_name(export, context), wildcard)) {
                found |= 1u << context;
            }
        }
    }
    return found;
}

static void put_context(GByteArray *out, uint32_t option, const Export *export, unsigned context)
{
    uint8_t reply[4 + EXPORT_NAME_MAX];
    const char *name = meta_context_name(export, context);
    size_t length = strlen(name);
    /* A listed context has no number yet. */
    store_be32(reply, option == NBD_OPT_SET_META_CONTEXT ? meta_context_number(context) : 0);
    memcpy(reply + 4, name, length);
    handshake_put_reply(out, option, NBD_REP_META_CONTEXT, reply, 4 + length);
}

void meta_context_answer(Conn *conn, uint32_t option, const uint8_t *data, size_t length,
                         GByteArray *out)
{
    bool set = option == NBD_OPT_SET_META_CONTEXT;
    NbdMetaRequest asked;
    if (set) {
        conn_set_meta_export(conn, NULL);
    }
    if (!conn->structured) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID,
                            "meta contexts need structured replies: negotiate them first");
        return;
    }
    if (!nbd_unpack_meta_request(data, length, &asked) || !queries_add_up(asked)) {
        handshake_put_error(out, option, NBD_REP_ERR_INVALID,
                            "the lengths inside the option do not add up");
        return;
    }
    g_autoptr(Export) export =
        handshake_find_export(conn, option, asked.name, asked.name_length, out);
    if (export == NULL) {
        return;
    }
    MetaContexts found = match_queries(&asked, export, !set);
    for (unsigned context = 0; context < meta_context_count(export); context++) {
        if (found & 1u << context) {
            put_context(out, option, export, context);
        }
    }
    if (set && found != 0) {
        conn_set_meta_export(conn, g_steal_pointer(&export));
        conn->contexts = found;
    }
    handshake_put_reply(out, option, NBD_REP_ACK, NULL, 0);
}

MetaContexts meta_context_unpack(const uint8_t *numbers, unsigned count, MetaContexts allowed)
{
    MetaContexts found = 0;
    for (unsigned i = 0; i < count; i++) {
        uint32_t number = load_be32(numbers + (size_t)4 * i);
        if (number == 0 || number > META_CONTEXTS_MAX) {
            return 0;
        }
        MetaContexts bit = 1u << (number - 1);
        if (!(allowed & bit) || (found & bit)) {
            return 0;
        }
        found |= bit;
    }
    return found;
}
