/*
 * The control socket: the server side.
 *
 *      socket thread (a worker):  receive -> line -> check -> job ... answer -> send
 *      verbs' thread (a pool of one):                          run
 *
 * A client has one request at a time under way; what it sends meanwhile waits in its socket. What
 * must stay true: a Client is freed only when no job of it is under way; after `stopping` nothing is
 * submitted to the verbs' thread.
 */
#include "control/control.h"

#include <errno.h>
#include <event2/event.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/pool.h"
#include "base/worker.h"
#include "control/control-path.h"
#include "control/json-line.h"

#define IDLE_SECONDS   60 /* a client that neither sends nor takes for so long is dropped */
#define RECEIVE_SIZE   4096
#define ACCEPTS_A_TURN 16
#define WORKER_INDEX   UINT16_MAX /* beside those of the server */

typedef struct Verb {
    const char *name;
    const char *const *keys;
    ControlVerb function;
    void *context;
} Verb;

typedef struct Client {
    Control *control;
    struct Client *next, **link;
    int fd;
    struct event *read_event, *write_event;
    GString *input;  /* at most one line and a piece */
    GString *output; /* the answer that is being sent */
    size_t sent;
    bool last; /* it is closed when the output is sent */
    /* the request under way */
    bool busy;
    const Verb *verb;
    JsonObject *arguments;
    char *answer; /* the verbs' thread's, until the message arrives */
    PoolJob job;
    WorkerMessage answered;
} Client;

struct Control {
    char *path;
    int fd;
    dev_t device;
    ino_t inode;
    GArray *verbs;
    Worker *worker; /* NULL: not started */
    Pool *pool;
    struct event *accept_event; /* [worker] */
    Client *clients;            /* [worker] */
    unsigned client_count;      /* [worker] */
    bool stopping;              /* [worker] */
    WorkerMessage start_message, stop_message, end_message;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopped; /* lock */
};

static void client_advance(Client *client);

/* Answers */

static char *answer_text(JsonObject *answer, const GError *error)
{
    g_autoptr(JsonObject) line = json_object_new();
    json_object_set_boolean_member(line, "ok", error == NULL);
    if (error != NULL) {
        json_object_set_string_member(line, "error", error->message);
        json_object_set_int_member(line, "code", error->domain == COWNBD_ERROR ? error->code : EIO);
        return json_line_print(line);
    }
    JsonObjectIter iter;
    const char *key;
    JsonNode *value;
    json_object_iter_init_ordered(&iter, answer);
    while (json_object_iter_next_ordered(&iter, &key, &value)) {
        json_object_set_member(line, key, json_node_copy(value));
    }
    return json_line_print(line);
}

static void answer_error(Client *client, const GError *error)
{
    g_autofree char *text = answer_text(NULL, error);
    g_string_assign(client->output, text);
}

static void answer_hello(Client *client)
{
    g_autoptr(JsonObject) answer = json_object_new();
    json_object_set_string_member(answer, "program", "cownbd");
    json_object_set_string_member(answer, "version", COWNBD_VERSION);
    json_object_set_int_member(answer, "protocol", CONTROL_PROTOCOL);
    json_object_set_int_member(answer, "pid", getpid());
    g_autofree char *text = answer_text(answer, NULL);
    g_string_assign(client->output, text);
}

/* Requests */

static const Verb *find_verb(const Control *control, const char *name)
{
    for (unsigned i = 0; i < control->verbs->len; i++) {
        const Verb *verb = &g_array_index(control->verbs, Verb, i);
        if (strcmp(verb->name, name) == 0) {
            return verb;
        }
    }
    return NULL;
}

static bool check_keys(const Verb *verb, JsonObject *arguments, GError **error)
{
    JsonObjectIter iter;
    const char *key;
    json_object_iter_init_ordered(&iter, arguments);
    while (json_object_iter_next_ordered(&iter, &key, NULL)) {
        bool known =
            strcmp(key, "verb") == 0 || (verb->keys != NULL && g_strv_contains(verb->keys, key));
        if (!known) {
            g_autofree char *keys =
                verb->keys != NULL ? g_strjoinv(" ", (char **)verb->keys) : g_strdup("");
            return error_set(error, EINVAL, "%s: '%.64s' is no argument of it: it takes %s",
                             verb->name, key, keys[0] != '\0' ? keys : "none");
        }
    }
    return true;
}

static const char *verb_name(JsonObject *arguments, GError **error)
{
    const char *name = NULL;
    if (!control_get_string(arguments, "verb", &name, error)) {
        return NULL;
    }
    if (name == NULL) {
        error_set(error, EINVAL, "request: no verb: say for example {\"verb\": \"list\"}");
    }
    return name;
}

static void run_verb(PoolJob *job)
{
    Client *client = (Client *)(void *)((char *)job - G_STRUCT_OFFSET(Client, job));
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) answer = json_object_new();
    const Verb *verb = client->verb;
    bool ok = verb->function(client->arguments, answer, verb->context, &error);
    client->answer = answer_text(answer, ok ? NULL : error);
    worker_post(client->control->worker, &client->answered);
}

static void verb_answered(WorkerMessage *message)
{
    Client *client = (Client *)(void *)((char *)message - G_STRUCT_OFFSET(Client, answered));
    client->busy = false;
    g_clear_pointer(&client->arguments, json_object_unref);
    g_string_assign(client->output, client->answer);
    g_clear_pointer(&client->answer, g_free);
    client_advance(client);
}

/* Takes one request; afterwards there is output, or a verb is under way. */
static void take_request(Client *client, const char *line, size_t length)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(JsonObject) arguments = json_line_parse(line, length, CONTROL_DEPTH_MAX, &error);
    const char *name = arguments != NULL ? verb_name(arguments, &error) : NULL;
    if (name == NULL) {
        answer_error(client, error);
        return;
    }
    static const Verb hello = {.name = "hello"};
    const Verb *verb = strcmp(name, hello.name) == 0 ? &hello : find_verb(client->control, name);
    if (verb == NULL) {
        error_set(&error, EINVAL, "verb '%.64s': this server does not know it", name);
    } else if (client->control->stopping) {
        error_set(&error, ESHUTDOWN, "%s: the server is ending", name);
    } else if (check_keys(verb, arguments, &error)) {
        if (verb == &hello) {
            answer_hello(client);
            return;
        }
        client->busy = true;
        client->verb = verb;
        client->arguments = g_steal_pointer(&arguments);
        pool_submit(client->control->pool, &client->job);
        return;
    }
    answer_error(client, error);
}

/* Clients */

static void client_free(Client *client)
{
    *client->link = client->next;
    if (client->next != NULL) {
        client->next->link = client->link;
    }
    client->control->client_count--;
    g_clear_pointer(&client->read_event, event_free);
    g_clear_pointer(&client->write_event, event_free);
    close(client->fd);
    g_string_free(client->input, TRUE);
    g_string_free(client->output, TRUE);
    g_free(client);
}

/* False: the client has gone. */
static bool send_some(Client *client)
{
    while (client->sent < client->output->len) {
        ssize_t sent = send(client->fd, client->output->str + client->sent,
                            client->output->len - client->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            return errno == EAGAIN || errno == EINTR;
        }
        client->sent += sent;
    }
    g_string_truncate(client->output, 0);
    client->sent = 0;
    return true;
}

/* True when a line was taken off the input. */
static bool take_line(Client *client)
{
    const char *newline = memchr(client->input->str, '\n', client->input->len);
    if (newline == NULL && client->input->len < CONTROL_LINE_MAX) {
        return false;
    }
    if (newline == NULL || newline - client->input->str >= CONTROL_LINE_MAX) {
        g_autoptr(GError) error = NULL;
        error_set(&error, E2BIG, "request: longer than %u bytes", CONTROL_LINE_MAX);
        answer_error(client, error);
        client->last = true; /* what follows is no beginning of a line */
        return true;
    }
    size_t length = newline - client->input->str;
    take_request(client, client->input->str, length);
    g_string_erase(client->input, 0, length + 1);
    return true;
}

/* Goes on as far as it goes: answers out, requests in, events set for what it waits for. */
static void client_advance(Client *client)
{
    bool alive = send_some(client);
    while (alive && !client->last && !client->busy && client->output->len == 0 &&
           take_line(client)) {
        alive = send_some(client);
    }
    if (!alive || (client->last && client->output->len == 0)) {
        client_free(client);
        return;
    }
    struct timeval idle = {.tv_sec = IDLE_SECONDS};
    event_del(client->read_event);
    event_del(client->write_event);
    if (client->output->len > 0) {
        event_add(client->write_event, &idle);
    } else if (!client->busy) {
        event_add(client->read_event, &idle);
    }
}

static void readable_cb(evutil_socket_t fd, short what, void *argument)
{
    Client *client = argument;
    char piece[RECEIVE_SIZE];
    ssize_t got = what & EV_READ ? recv(fd, piece, sizeof piece, MSG_DONTWAIT) : 0;
    if (got > 0) {
        g_string_append_len(client->input, piece, got);
        client_advance(client);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        client_free(client);
    }
}

static void writable_cb(evutil_socket_t fd, short what, void *argument)
{
    Client *client = argument;
    if (what & EV_WRITE) {
        client_advance(client);
    } else {
        client_free(client);
    }
}

static void client_new(Control *control, int fd)
{
    Client *client = g_new0(Client, 1);
    struct event_base *base = worker_base(control->worker);
    client->control = control;
    client->fd = fd;
    client->input = g_string_new(NULL);
    client->output = g_string_new(NULL);
    client->job.run = run_verb;
    client->answered.run = verb_answered;
    client->next = control->clients;
    client->link = &control->clients;
    if (client->next != NULL) {
        client->next->link = &client->next;
    }
    control->clients = client;
    control->client_count++;
    client->read_event = event_new(base, fd, EV_READ | EV_PERSIST, readable_cb, client);
    client->write_event = event_new(base, fd, EV_WRITE | EV_PERSIST, writable_cb, client);
    if (client->read_event == NULL || client->write_event == NULL) {
        client_free(client);
        return;
    }
    client_advance(client);
}

static void accept_cb(evutil_socket_t listening, short what, void *argument)
{
    Control *control = argument;
    for (unsigned i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            return;
        }
        if (!control_peer_is_allowed(fd)) {
            log_limited(LOG_LEVEL_WARNING, "control client refused: it is another user's");
            close(fd);
        } else if (control->client_count >= CONTROL_CLIENTS_MAX) {
            log_limited(LOG_LEVEL_WARNING, "control client refused: %u are connected",
                        control->client_count);
            close(fd);
        } else {
            client_new(control, fd);
        }
    }
}

/* Life */

static Control *make(const char *path, int fd)
{
    Control *control = g_new0(Control, 1);
    control->path = g_canonicalize_filename(path, NULL);
    control->fd = fd;
    control->verbs = g_array_new(FALSE, FALSE, sizeof(Verb));
    pthread_mutex_init(&control->lock, NULL);
    pthread_cond_init(&control->changed, NULL);
    struct stat st;
    if (stat(path, &st) == 0) {
        control->device = st.st_dev;
        control->inode = st.st_ino;
    }
    return control;
}

Control *control_new(const char *path, GError **error)
{
    int fd = control_listen(path, error);
    return fd >= 0 ? make(path, fd) : NULL;
}

Control *control_adopt(const char *path, int fd)
{
    return make(path, fd);
}

int control_fd(const Control *control)
{
    return control->fd;
}

void control_leave_file(Control *control)
{
    control->device = 0;
    control->inode = 0;
}

const char *control_path(const Control *control)
{
    return control->path;
}

void control_add_verb(Control *control, const char *name, const char *const *keys,
                      ControlVerb function, void *context)
{
    Verb verb = {.name = name, .keys = keys, .function = function, .context = context};
    g_array_append_val(control->verbs, verb);
}

static void start_accepting(WorkerMessage *message)
{
    Control *control =
        (Control *)(void *)((char *)message - G_STRUCT_OFFSET(Control, start_message));
    control->accept_event = event_new(worker_base(control->worker), control->fd,
                                      EV_READ | EV_PERSIST, accept_cb, control);
    if (control->accept_event == NULL || event_add(control->accept_event, NULL) != 0) {
        log_error("control socket %s: cannot watch it", control->path);
    }
}

bool control_start(Control *control, GError **error)
{
    control->worker = worker_new(WORKER_INDEX, error);
    if (control->worker == NULL) {
        return false;
    }
    control->pool = pool_new(1);
    control->start_message.run = start_accepting;
    worker_post(control->worker, &control->start_message);
    return true;
}

static void stop_accepting(WorkerMessage *message)
{
    Control *control =
        (Control *)(void *)((char *)message - G_STRUCT_OFFSET(Control, stop_message));
    g_clear_pointer(&control->accept_event, event_free);
    control->stopping = true;
    with_mutex(&control->lock);
    control->stopped = true;
    pthread_cond_signal(&control->changed);
}

static void close_clients(WorkerMessage *message)
{
    Control *control = (Control *)(void *)((char *)message - G_STRUCT_OFFSET(Control, end_message));
    while (control->clients != NULL) {
        client_free(control->clients);
    }
}

static void stop_threads(Control *control)
{
    control->stop_message.run = stop_accepting;
    worker_post(control->worker, &control->stop_message);
    pthread_mutex_lock(&control->lock);
    while (!control->stopped) {
        pthread_cond_wait(&control->changed, &control->lock);
    }
    pthread_mutex_unlock(&control->lock);
    pool_free(control->pool);
    control->end_message.run = close_clients;
    worker_post(control->worker, &control->end_message);
    worker_free(control->worker);
}

void control_free(Control *control)
{
    if (control == NULL) {
        return;
    }
    if (control->worker != NULL) {
        stop_threads(control);
    }
    struct stat st;
    if (stat(control->path, &st) == 0 && st.st_dev == control->device &&
        st.st_ino == control->inode) {
        unlink(control->path);
    }
    close(control->fd);
    pthread_mutex_destroy(&control->lock);
    pthread_cond_destroy(&control->changed);
    g_array_unref(control->verbs);
    g_free(control->path);
    g_free(control);
}
