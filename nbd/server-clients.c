/*
 * The clients of a server, seen from outside the workers.
 *
 * A connection is its worker's alone. So whoever wants to know something of all connections sends
 * each worker a message, which looks at those that it has, and waits until all have. What must stay
 * true: the messages lie on the stack of who asks, so that he never returns before the last worker.
 */
#include "nbd/server-clients.h"

#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "nbd/conn.h"
#include "nbd/tls.h"

typedef struct Visit Visit;

typedef struct VisitLocal {
    WorkerMessage message;
    NbdLocal *local;
    Visit *visit;
} VisitLocal;

struct Visit {
    void (*look)(Visit *visit, Conn *conn); /* [worker], lock is held */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned waiting; /* lock; workers that have not looked */

    GPtrArray *clients; /* lock; NULL: nobody asks for them */
    uint64_t number;
    const Export *export;
    unsigned kicked; /* lock */
};

static void visit_local(WorkerMessage *message)
{
    VisitLocal *own =
        (VisitLocal *)(void *)((uint8_t *)message - G_STRUCT_OFFSET(VisitLocal, message));
    Visit *visit = own->visit;
    with_mutex(&visit->lock);
    for (Conn *conn = own->local->conns, *next; conn != NULL; conn = next) {
        next = conn->next;
        visit->look(visit, conn);
    }
    visit->waiting--;
    pthread_cond_signal(&visit->changed);
}

static void visit_all(NbdServer *server, Visit *visit)
{
    g_autofree VisitLocal *locals = g_new0(VisitLocal, server->local_count);
    pthread_mutex_init(&visit->lock, NULL);
    pthread_cond_init(&visit->changed, NULL);
    visit->waiting = server->local_count;
    for (unsigned i = 0; i < server->local_count; i++) {
        locals[i] =
            (VisitLocal){.message.run = visit_local, .local = &server->locals[i], .visit = visit};
        worker_post(server->locals[i].worker, &locals[i].message);
    }
    pthread_mutex_lock(&visit->lock);
    while (visit->waiting > 0) {
        pthread_cond_wait(&visit->changed, &visit->lock);
    }
    pthread_mutex_unlock(&visit->lock);
    pthread_mutex_destroy(&visit->lock);
    pthread_cond_destroy(&visit->changed);
}

static char *unix_peer(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
        return g_strdup("unix");
    }
    return g_strdup_printf("unix:pid=%d,uid=%u", (int)peer.pid, (unsigned)peer.uid);
}

static char *inet_peer(const struct sockaddr_storage *address)
{
    char text[INET6_ADDRSTRLEN] = "";
    if (address->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)address;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
        return g_strdup_printf("%s:%u", text, ntohs(in->sin_port));
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)address;
    inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof text);
    return g_strdup_printf("[%s]:%u", text, ntohs(in6->sin6_port));
}

static char *peer_of(const Conn *conn)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    if (conn->gone != NULL) {
        return g_strdup("kernel");
    }
    if (getpeername(conn->fd, (struct sockaddr *)&address, &length) != 0) {
        return g_strdup("gone");
    }
    switch (address.ss_family) {
    case AF_UNIX:
        return unix_peer(conn->fd);
    case AF_INET:
    case AF_INET6:
        return inet_peer(&address);
    case AF_VSOCK:
        return g_strdup_printf("vsock:%u:%u",
                               ((const struct sockaddr_vm *)(const void *)&address)->svm_cid,
                               ((const struct sockaddr_vm *)(const void *)&address)->svm_port);
    default:
        return g_strdup("unknown");
    }
}

static void client_free(void *data)
{
    NbdClient *client = data;
    g_free(client->peer);
    g_free(client->export);
    g_free(client);
}

static void tell(Visit *visit, Conn *conn)
{
    NbdClient *client = g_new(NbdClient, 1);
    *client = (NbdClient){
        .number = conn->number,
        .peer = peer_of(conn),
        .export = g_strdup(conn->phase == CONN_TRANSMISSION ? conn->export->name : NULL),
        .in_flight = conn->phase == CONN_TRANSMISSION ? conn->in_flight : 0,
        .tls = conn->tls == NULL             ? NULL
               : tls_is_in_kernel(conn->tls) ? "kernel"
                                             : "server",
    };
    g_ptr_array_add(visit->clients, client);
}

static int by_number(const void *a, const void *b)
{
    uint64_t left = (*(const NbdClient *const *)a)->number;
    uint64_t right = (*(const NbdClient *const *)b)->number;
    return (left > right) - (left < right);
}

GPtrArray *nbd_server_clients(NbdServer *server)
{
    GPtrArray *clients = g_ptr_array_new_with_free_func(client_free);
    Visit visit = {.look = tell, .clients = clients};
    visit_all(server, &visit);
    g_ptr_array_sort(clients, by_number);
    return clients;
}

static void kick(Visit *visit, Conn *conn)
{
    bool meant = visit->number == 0 || visit->number == conn->number;
    bool uses = visit->export == NULL || visit->export == conn->export ||
                visit->export == conn->meta_export;
    if (meant && uses && conn->gone == NULL) {
        visit->kicked++;
        conn_stop(conn);
    }
}

unsigned nbd_server_kick(NbdServer *server, uint64_t number, const Export *export)
{
    Visit visit = {.look = kick, .number = number, .export = export};
    visit_all(server, &visit);
    return visit.kicked;
}
