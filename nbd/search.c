/*
 * A search for an export that is not in the table.
 *
 * What must stay true: a connection has one search at most, and is there until it has ended, closed
 * perhaps.
 */
#include "nbd/search.h"

#include "nbd/conn.h"

static void search_ended(WorkerMessage *message)
{
    NbdSearch *search =
        (NbdSearch *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(NbdSearch, message));
    Conn *conn = search->conn;
    conn->search = NULL;
    conn->searched = true;
    conn->found = search->export;
    conn->listing = search->listing;
    conn_schedule(conn);
    conn_unref(conn);
    g_free(search->name);
    g_free(search);
}

bool conn_search(Conn *conn, const char *name, size_t length)
{
    const NbdServer *server = conn->local->server;
    NbdSearch *search = g_new(NbdSearch, 1);
    *search = (NbdSearch){.name = name != NULL ? g_strndup(name, length) : NULL,
                          .conn = conn,
                          .worker = conn->local->worker,
                          .message.run = search_ended};
    if (server->finder == NULL || !server->finder(search, server->finder_context)) {
        g_free(search->name);
        g_free(search);
        return false;
    }
    conn->refs++;
    conn->search = search;
    conn->paused = true;
    return true;
}

void nbd_search_done(NbdSearch *search, Export *export)
{
    search->export = export;
    worker_post(search->worker, &search->message);
}

void nbd_search_listed(NbdSearch *search, GPtrArray *listing)
{
    search->listing = listing;
    worker_post(search->worker, &search->message);
}

void conn_forget_search(Conn *conn)
{
    conn->searched = false;
    g_clear_pointer(&conn->found, export_put);
    g_clear_pointer(&conn->listing, g_ptr_array_unref);
}
