/*
 * The status page: libevent's HTTP server on a thread of its own.
 *
 * evhttp takes any number of connections and gives each any time, as long as a byte comes now and
 * then. So this keeps a reference to the bufferevent of each connection (a Slot). evhttp takes its
 * callbacks off a bufferevent when it lets go of it: that is how a sweep sees that a slot is free
 * again. A connection that is too old is shut down, and with all slots taken nobody is accepted.
 *
 * What must stay true: a slot's descriptor is touched only while evhttp still has the connection,
 * for then it is open; everything but metrics_new and metrics_free runs on the one thread.
 */
#include "control/metrics.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/worker.h"

#define WORKER_INDEX   (UINT16_MAX + 1u) /* beside those of the server and the control socket */
#define LISTEN_BACKLOG 16
#define SWEEP_SECONDS  1

typedef struct Slot {
    struct bufferevent *stream; /* NULL: free */
    int64_t until;              /* g_get_monotonic_time: then it is too old */
} Slot;

struct Metrics {
    int fd;
    char *uri;
    MetricsCollect collect;
    void *context;
    Worker *worker; /* NULL: not started */
    struct evhttp *http;
    struct evconnlistener *listener;
    struct event *sweep;
    Slot slots[METRICS_CLIENTS_MAX];
    bool full; /* the listener is off */
    WorkerMessage start_message, stop_message;
};

/* Slots */

static bool is_let_go(const Slot *slot)
{
    bufferevent_data_cb read_cb, write_cb;
    bufferevent_event_cb event_cb;
    void *argument;
    bufferevent_getcb(slot->stream, &read_cb, &write_cb, &event_cb, &argument);
    return read_cb == NULL && write_cb == NULL && event_cb == NULL;
}

static void sweep_slot(Slot *slot, int64_t now)
{
    if (slot->stream == NULL) {
        return;
    }
    if (is_let_go(slot)) {
        bufferevent_decref(slot->stream);
        slot->stream = NULL;
    } else if (now > slot->until) {
        shutdown(bufferevent_getfd(slot->stream), SHUT_RDWR); /* evhttp sees an end */
    }
}

static Slot *free_slot(Metrics *metrics)
{
    for (unsigned i = 0; i < METRICS_CLIENTS_MAX; i++) {
        if (metrics->slots[i].stream == NULL) {
            return &metrics->slots[i];
        }
    }
    return NULL;
}

static void sweep(Metrics *metrics)
{
    int64_t now = g_get_monotonic_time();
    for (unsigned i = 0; i < METRICS_CLIENTS_MAX; i++) {
        sweep_slot(&metrics->slots[i], now);
    }
    if (metrics->full && metrics->http != NULL && free_slot(metrics) != NULL) {
        metrics->full = false;
        evconnlistener_enable(metrics->listener);
    }
}

static void sweep_cb(evutil_socket_t fd, short what, void *argument)
{
    sweep(argument);
}

/* A connection was accepted: its bufferevent, of which a slot has a reference. */
static struct bufferevent *connection_cb(struct event_base *base, void *argument)
{
    Metrics *metrics = argument;
    struct bufferevent *stream = bufferevent_socket_new(base, -1, 0);
    Slot *slot = free_slot(metrics);
    if (stream != NULL && slot != NULL) {
        bufferevent_incref(stream);
        *slot = (Slot){stream, g_get_monotonic_time() + METRICS_ASK_SECONDS * G_USEC_PER_SEC};
    }
    if (free_slot(metrics) == NULL) {
        metrics->full = true;
        evconnlistener_disable(metrics->listener);
    }
    return stream;
}

/* The connection has asked: it may take longer to read the answer. */
static void prolong(Metrics *metrics, struct evhttp_request *request)
{
    const struct bufferevent *stream =
        evhttp_connection_get_bufferevent(evhttp_request_get_connection(request));
    for (unsigned i = 0; i < METRICS_CLIENTS_MAX; i++) {
        if (metrics->slots[i].stream == stream) {
            metrics->slots[i].until += METRICS_ANSWER_SECONDS * G_USEC_PER_SEC;
        }
    }
}

/* No descriptors are left, most often: a sweep goes on with accepting. */
static void accept_failed_cb(struct evconnlistener *listener, void *argument)
{
    Metrics *metrics = argument;
    log_limited(LOG_LEVEL_WARNING, "status page: cannot accept: %s", g_strerror(errno));
    metrics->full = true;
    evconnlistener_disable(listener);
}

/* Answers */

static void add_header(struct evhttp_request *request, const char *name, const char *value)
{
    evhttp_add_header(evhttp_request_get_output_headers(request), name, value);
}

static void send_text(struct evhttp_request *request, int code, const char *reason,
                      const char *type, const char *text)
{
    struct evbuffer *body = evbuffer_new();
    if (body != NULL) {
        evbuffer_add(body, text, strlen(text));
    }
    add_header(request, "Content-Type", type);
    add_header(request, "Cache-Control", "no-store");
    add_header(request, "X-Content-Type-Options", "nosniff");
    add_header(request, "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'");
    add_header(request, "Connection", "close");
    evhttp_send_reply(request, code, reason, body);
    if (body != NULL) {
        evbuffer_free(body);
    }
}

#define PLAIN "text/plain; charset=utf-8"

static void send_metrics(struct evhttp_request *request, JsonObject *stats)
{
    GString *text = metrics_text(stats);
    send_text(request, HTTP_OK, "OK", "text/plain; version=0.0.4; charset=utf-8", text->str);
    g_string_free(text, TRUE);
}

static void send_status(struct evhttp_request *request, JsonObject *stats)
{
    g_autoptr(JsonNode) node = json_node_new(JSON_NODE_OBJECT);
    json_node_set_object(node, stats);
    g_autofree char *text = json_to_string(node, FALSE);
    g_autofree char *line = g_strconcat(text, "\n", NULL);
    send_text(request, HTTP_OK, "OK", "application/json", line);
}

static void send_page(struct evhttp_request *request, JsonObject *stats)
{
    GString *text = metrics_page(stats);
    send_text(request, HTTP_OK, "OK", "text/html; charset=utf-8", text->str);
    g_string_free(text, TRUE);
}

static const struct {
    const char *path;
    void (*send)(struct evhttp_request *request, JsonObject *stats);
} pages[] = {
    {"/", send_page},
    {"/metrics", send_metrics},
    {"/status", send_status},
};

static void request_cb(struct evhttp_request *request, void *argument)
{
    Metrics *metrics = argument;
    prolong(metrics, request);
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(request);
    const char *path = uri != NULL ? evhttp_uri_get_path(uri) : NULL;
    for (unsigned i = 0; path != NULL && i < G_N_ELEMENTS(pages); i++) {
        if (strcmp(path, pages[i].path) != 0) {
            continue;
        }
        g_autoptr(JsonObject) stats = metrics->collect(metrics->context);
        if (stats == NULL) {
            send_text(request, HTTP_SERVUNAVAIL, "Service Unavailable", PLAIN,
                      "The server is ending or being handed over.\n");
        } else {
            pages[i].send(request, stats);
        }
        return;
    }
    send_text(request, HTTP_NOTFOUND, "Not Found", PLAIN,
              "There are /, /metrics and /status here.\n");
}

/* Life */

static bool split_address(const char *address, char **host, char **port)
{
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon[1] == '\0') {
        return false;
    }
    size_t length = colon - address;
    bool brackets = length >= 2 && address[0] == '[' && address[length - 1] == ']';
    *host = brackets      ? g_strndup(address + 1, length - 2)
            : length == 0 ? g_strdup("127.0.0.1")
                          : g_strndup(address, length);
    *port = g_strdup(colon + 1);
    return true;
}

/* The first address of the list that can be bound. -1: errno. */
static int bind_one(const struct addrinfo *list)
{
    for (const struct addrinfo *one = list; one != NULL; one = one->ai_next) {
        autofd int fd =
            socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, one->ai_protocol);
        int on = 1;
        if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
            bind(fd, one->ai_addr, one->ai_addrlen) == 0 && listen(fd, LISTEN_BACKLOG) == 0) {
            return fd_steal(&fd);
        }
    }
    return -1;
}

static int bind_address(const char *address, GError **error)
{
    g_autofree char *host = NULL, *port = NULL;
    if (!split_address(address, &host, &port)) {
        error_set(error, EINVAL, "status page: '%s': must be HOST:PORT, [ADDRESS]:PORT or :PORT",
                  address);
        return -1;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int failure = getaddrinfo(host, port, &hints, &found);
    if (failure != 0) {
        error_set(error, EINVAL, "status page: '%s': %s", address, gai_strerror(failure));
        return -1;
    }
    int fd = bind_one(found);
    if (fd < 0) {
        error_set_errno(error, errno, "status page: cannot listen on %s", address);
    }
    freeaddrinfo(found);
    return fd;
}

/* Where it really listens: port 0 became one that was free. */
static char *uri_of(int fd)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getsockname(fd, (struct sockaddr *)&name, &length) != 0 ||
        getnameinfo((struct sockaddr *)&name, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return g_strdup("http://?/");
    }
    return g_strdup_printf(strchr(host, ':') != NULL ? "http://[%s]:%s/" : "http://%s:%s/", host,
                           port);
}

Metrics *metrics_adopt(int fd)
{
    Metrics *metrics = g_new0(Metrics, 1);
    metrics->fd = fd;
    metrics->uri = uri_of(fd);
    return metrics;
}

Metrics *metrics_new(const char *address, GError **error)
{
    int fd = bind_address(address, error);
    return fd >= 0 ? metrics_adopt(fd) : NULL;
}

int metrics_fd(const Metrics *metrics)
{
    return metrics->fd;
}

const char *metrics_uri(const Metrics *metrics)
{
    return metrics->uri;
}

static bool make_http(Metrics *metrics)
{
    struct event_base *base = worker_base(metrics->worker);
    metrics->http = evhttp_new(base);
    metrics->sweep = event_new(base, -1, EV_PERSIST, sweep_cb, metrics);
    if (metrics->http == NULL || metrics->sweep == NULL) {
        return false;
    }
    evhttp_set_allowed_methods(metrics->http, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD);
    evhttp_set_max_headers_size(metrics->http, METRICS_HEAD_MAX);
    evhttp_set_max_body_size(metrics->http, 0);
    evhttp_set_timeout(metrics->http, METRICS_ANSWER_SECONDS);
    evhttp_set_bevcb(metrics->http, connection_cb, metrics);
    evhttp_set_gencb(metrics->http, request_cb, metrics);
    metrics->listener = evconnlistener_new(base, NULL, NULL, LEV_OPT_CLOSE_ON_EXEC, 0, metrics->fd);
    if (metrics->listener == NULL ||
        evhttp_bind_listener(metrics->http, metrics->listener) == NULL) {
        return false;
    }
    evconnlistener_set_error_cb(metrics->listener, accept_failed_cb);
    return event_add(metrics->sweep, &(struct timeval){.tv_sec = SWEEP_SECONDS}) == 0;
}

static void start_http(WorkerMessage *message)
{
    Metrics *metrics =
        (Metrics *)(void *)((char *)message - G_STRUCT_OFFSET(Metrics, start_message));
    if (!make_http(metrics)) {
        log_error("status page: cannot start its server");
    }
}

static void stop_http(WorkerMessage *message)
{
    Metrics *metrics =
        (Metrics *)(void *)((char *)message - G_STRUCT_OFFSET(Metrics, stop_message));
    g_clear_pointer(&metrics->http, evhttp_free); /* with the listener */
    g_clear_pointer(&metrics->sweep, event_free);
    sweep(metrics);
}

bool metrics_start(Metrics *metrics, MetricsCollect collect, void *context, GError **error)
{
    metrics->collect = collect;
    metrics->context = context;
    metrics->start_message.run = start_http;
    metrics->stop_message.run = stop_http;
    metrics->worker = worker_new(WORKER_INDEX, error);
    if (metrics->worker == NULL) {
        return false;
    }
    worker_post(metrics->worker, &metrics->start_message);
    return true;
}

void metrics_free(Metrics *metrics)
{
    if (metrics == NULL) {
        return;
    }
    if (metrics->worker != NULL) {
        worker_post(metrics->worker, &metrics->stop_message);
        worker_free(metrics->worker);
    }
    close(metrics->fd);
    g_free(metrics->uri);
    g_free(metrics);
}
