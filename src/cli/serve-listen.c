/*
 * Where the clients of `cownbd serve` come from: addresses, sockets that whoever started us has made,
 * one client on standard input.
 */
#include <grp.h>
#include <pwd.h>
#include <string.h>
#include <unistd.h>

#include "base/errors.h"
#include "cli/serve-impl.h"
#include "nbd/inherit.h"
#include "nbd/listen.h"
#include "nbd/nbd-wire.h"

#define DEFAULT_LISTEN "127.0.0.1:" NBD_DEFAULT_PORT
#define MODE_MAX       0777

static bool check_none(ServeOptions *o, GError **error)
{
    if (o->listen == NULL || !g_strv_contains((const char *const *)o->listen, "none")) {
        return true;
    }
    o->listen_none = true;
    return g_strv_length(o->listen) == 1 ||
           error_set(error, EINVAL,
                     "serve: --listen=none beside other addresses: leave one of them out");
}

static bool check_addresses(const ServeOptions *o, GError **error)
{
    for (char **address = o->listen; !o->listen_none && address != NULL && *address != NULL;
         address++) {
        const char *problem = listener_problem(*address);
        if (problem != NULL) {
            return error_set(error, EINVAL, "serve: --listen is '%s': %s", *address, problem);
        }
    }
    return true;
}

static bool parse_mode(const char *text, ListenerAccess *access, GError **error)
{
    guint64 mode;
    if (text == NULL) {
        return true;
    }
    if (!g_ascii_string_to_unsigned(text, 8, 0, MODE_MAX, &mode, NULL)) {
        return error_set(error, EINVAL,
                         "serve: --socket-mode is '%s': must be an octal number, as 0660", text);
    }
    access->has_mode = true;
    access->mode = mode;
    return true;
}

/* A name, or a number of somebody without one. */
static bool find_user(const char *text, uid_t *user)
{
    guint64 number;
    const struct passwd *entry = getpwnam(text);
    if (entry != NULL) {
        *user = entry->pw_uid;
        return true;
    }
    bool found = g_ascii_string_to_unsigned(text, 10, 0, UINT32_MAX - 1, &number, NULL);
    *user = found ? number : *user;
    return found;
}

static bool find_group(const char *text, gid_t *group)
{
    guint64 number;
    const struct group *entry = getgrnam(text);
    if (entry != NULL) {
        *group = entry->gr_gid;
        return true;
    }
    bool found = g_ascii_string_to_unsigned(text, 10, 0, UINT32_MAX - 1, &number, NULL);
    *group = found ? number : *group;
    return found;
}

/* USER, USER:GROUP or :GROUP. */
static bool parse_owner(const char *text, ListenerAccess *access, GError **error)
{
    if (text == NULL) {
        return true;
    }
    g_auto(GStrv) parts = g_strsplit(text, ":", 2);
    const char *user = parts[0] != NULL ? parts[0] : "";
    const char *group = parts[0] != NULL ? parts[1] : NULL;
    if (user[0] == '\0' && group == NULL) {
        return error_set(error, EINVAL, "serve: --socket-owner is '': must be USER[:GROUP]");
    }
    if (user[0] != '\0' && !find_user(user, &access->user)) {
        return error_set(error, EINVAL, "serve: --socket-owner is '%s': there is no user '%s'",
                         text, user);
    }
    return group == NULL || find_group(group, &access->group) ||
           error_set(error, EINVAL, "serve: --socket-owner is '%s': there is no group '%s'", text,
                     group);
}

bool serve_listen_check(ServeOptions *o, GError **error)
{
    if (o->stdio && o->listen != NULL) {
        return error_set(error, EINVAL, "serve: --stdio beside --listen: leave one of them out");
    }
    return check_none(o, error) && check_addresses(o, error) &&
           parse_mode(o->socket_mode, &o->access, error) &&
           parse_owner(o->socket_owner, &o->access, error);
}

bool serve_listen_inherit(Serve *serve, GError **error)
{
    if (serve->options.stdio) {
        serve->stdio_fd = inherit_connection(error);
        return serve->stdio_fd >= 0;
    }
    if (!serve->options.listen_none && !inherit_listeners(serve->listeners, error)) {
        return false;
    }
    serve->inherited = serve->listeners->len;
    return true;
}

bool serve_listen_open(Serve *serve, GError **error)
{
    const ServeOptions *o = &serve->options;
    char *fallback[] = {(char *)DEFAULT_LISTEN, NULL};
    char *nothing[] = {NULL};
    char **addresses = o->listen;
    if (o->listen_none || o->stdio) {
        addresses = nothing;
    } else if (addresses == NULL) {
        addresses = serve->listeners->len > 0 ? nothing : fallback;
    }
    for (; *addresses != NULL; addresses++) {
        if (!listener_open(*addresses, &o->access, serve->listeners, error)) {
            return false;
        }
    }
    return true;
}

char *serve_listen_uri(const Serve *serve, const Listener *listener)
{
    const char *uri = listener_uri(listener);
    bool secret = serve->options.tls == SERVE_TLS_REQUIRE && g_str_has_prefix(uri, "nbd");
    return secret ? g_strdup_printf("nbds%s", uri + strlen("nbd")) : g_strdup(uri);
}

static void accept_client(int fd, void *argument)
{
    nbd_server_accept(argument, fd);
}

void serve_start_listeners(Serve *serve)
{
    for (unsigned i = 0; i < serve->listeners->len; i++) {
        Listener *listener = g_ptr_array_index(serve->listeners, i);
        listener_start(listener, g_ptr_array_index(serve->workers, 0), accept_client,
                       serve->server);
    }
    if (serve->stdio_fd >= 0) {
        nbd_server_accept(serve->server, serve->stdio_fd);
        serve->stdio_fd = -1;
    }
}
