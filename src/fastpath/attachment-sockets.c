/*
 * The connections of an nbd device: made, and made again whenever one dies.
 *
 *      kernel's end --- socket pair --- our end -> serve_socket        gone -> thread -> reconnect
 *
 * When a connection dies (the kernel gives one up whose request was not answered in time, or we do
 * because of nonsense in it), a thread offers the device a new one. What must stay true:
 *
 *  1. Not before the last request of the dead connection has ended (gone says so): the kernel sends
 *     its requests again over the new one, and an old write that came late would undo a newer one.
 *  2. That is why a device has one connection unless somebody asks for more: with two, the kernel
 *     sends the requests again over the other one at once, and nothing here can hold them back.
 *  3. The kernel takes a new socket only in place of one that it knows to be dead, and otherwise
 *     drops it and says nothing. Our end shows that: when no reference to the other end is left, it
 *     hangs up. Then we try again a little later.
 */
#include "fastpath/attachment-impl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"
#include "base/thread.h"

#define RETRY_FIRST_US 2000
#define RETRY_MOST_US  500000
#define ADOPT_SECONDS  20 /* for the kernel to see that the old server's sockets are closed */

AttachmentSockets *attachment_sockets_new(const AttachmentOptions *options,
                                          const NbdLinkDevice *device)
{
    AttachmentSockets *sockets = g_new0(AttachmentSockets, 1);
    sockets->index = -1;
    sockets->device = *device;
    sockets->count = CLAMP(options->connections, 1, NBDLINK_SOCKETS_MAX);
    sockets->serve_socket = options->serve_socket;
    sockets->argument = options->argument;
    pthread_mutex_init(&sockets->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&sockets->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    atomic_init(&sockets->refs, 1);
    return sockets;
}

void attachment_sockets_unref(AttachmentSockets *sockets)
{
    if (atomic_fetch_sub(&sockets->refs, 1) == 1) {
        pthread_cond_destroy(&sockets->changed);
        pthread_mutex_destroy(&sockets->lock);
        g_free(sockets);
    }
}

/* A connection's end: no request of it is in flight. [any] */
static void connection_gone(void *argument)
{
    AttachmentSockets *sockets = argument;
    {
        with_mutex(&sockets->lock);
        sockets->dead++;
        pthread_cond_signal(&sockets->changed);
    }
    attachment_sockets_unref(sockets);
}

static void serve(AttachmentSockets *sockets, int fd)
{
    atomic_fetch_add(&sockets->refs, 1);
    sockets->serve_socket(sockets->argument, fd, connection_gone, sockets);
}

/* Two ends: ours does not block, the kernel's does. */
static bool make_pair(int *ours, int *kernels, GError **error)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0 ||
        fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0) {
        return error_set_errno(error, errno, "cannot make a socket pair for the kernel");
    }
    *ours = ends[0];
    *kernels = ends[1];
    return true;
}

bool attachment_sockets_is_ours(const AttachmentSockets *sockets)
{
    g_autofree char *identifier = nbdlink_identifier(sockets->index);
    return nbdlink_is_connected(sockets->index) && identifier != NULL &&
           strcmp(identifier, sockets->device.identifier) == 0;
}

static NbdLinkDevice current_device(AttachmentSockets *sockets)
{
    with_mutex(&sockets->lock);
    return sockets->device;
}

typedef enum { OFFER_TAKEN, OFFER_NOT_TAKEN, OFFER_REFUSED } Offer;

/* Offers the kernel one end of a new pair, and serves the other one if it is taken. */
static Offer offer_socket(AttachmentSockets *sockets, GError **error)
{
    autofd int ours = -1, kernels = -1;
    NbdLinkDevice device = current_device(sockets);
    if (!make_pair(&ours, &kernels, error) ||
        !nbdlink_reconnect(sockets->index, &device, kernels, error)) {
        return OFFER_REFUSED;
    }
    close(fd_steal(&kernels));
    struct pollfd look = {.fd = ours, .events = POLLIN};
    if (poll(&look, 1, 0) > 0 && (look.revents & POLLHUP)) {
        return OFFER_NOT_TAKEN;
    }
    serve(sockets, fd_steal(&ours));
    return OFFER_TAKEN;
}

/* Waits on the condition for so long, or until it is stopping. False: it is stopping. Locked. */
static bool pause_locked(AttachmentSockets *sockets, uint64_t us)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = until.tv_nsec + us * 1000;
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    while (!sockets->stopping &&
           pthread_cond_timedwait(&sockets->changed, &sockets->lock, &until) != ETIMEDOUT) {
    }
    return !sockets->stopping;
}

static bool pause_for(AttachmentSockets *sockets, uint64_t us)
{
    with_mutex(&sockets->lock);
    return pause_locked(sockets, us);
}

/* Offers sockets until one is taken. seconds: how long, 0 for ever. */
static bool replace_one(AttachmentSockets *sockets, unsigned seconds, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + (gint64)seconds * G_USEC_PER_SEC;
    for (uint64_t wait = RETRY_FIRST_US;; wait = MIN(wait * 2, RETRY_MOST_US)) {
        g_clear_error(error);
        Offer offer = offer_socket(sockets, error);
        if (offer == OFFER_TAKEN) {
            return true;
        }
        if (!attachment_sockets_is_ours(sockets)) {
            g_clear_error(error);
            return error_set(error, ENODEV, "nbd%d: was disconnected by somebody else",
                             sockets->index);
        }
        if (seconds != 0 && g_get_monotonic_time() > deadline) {
            if (offer == OFFER_NOT_TAKEN) {
                error_set(error, EBUSY,
                          "nbd%d: is still served: end that server (cownbd detach) first",
                          sockets->index);
            }
            return false;
        }
        if (offer == OFFER_REFUSED) {
            log_limited(LOG_LEVEL_WARNING, "%s: trying again", (*error)->message);
        }
        if (!pause_for(sockets, wait)) {
            g_clear_error(error);
            return error_set(error, ECANCELED, "nbd%d: detached meanwhile", sockets->index);
        }
    }
}

static bool wait_for_dead(AttachmentSockets *sockets)
{
    with_mutex(&sockets->lock);
    while (sockets->dead == 0 && !sockets->stopping) {
        pthread_cond_wait(&sockets->changed, &sockets->lock);
    }
    return !sockets->stopping;
}

static void count_replaced(AttachmentSockets *sockets)
{
    with_mutex(&sockets->lock);
    sockets->dead--;
    sockets->reconnects++;
}

static void *keep_connected(void *argument)
{
    AttachmentSockets *sockets = argument;
    while (wait_for_dead(sockets)) {
        g_autoptr(GError) error = NULL;
        if (!replace_one(sockets, 0, &error)) {
            if (error->code != ECANCELED) {
                log_error("%s: requests of the kernel are not served any more", error->message);
            }
            break;
        }
        count_replaced(sockets);
        log_info("nbd%d: a connection was made again", sockets->index);
    }
    return NULL;
}

static bool start_thread(AttachmentSockets *sockets, GError **error)
{
    int r = thread_start(&sockets->thread, "nbd-sockets", keep_connected, sockets);
    sockets->running = r == 0;
    return r == 0 || error_set_errno(error, r, "cannot start a thread");
}

bool attachment_sockets_connect(AttachmentSockets *sockets, int wanted, GError **error)
{
    int ours[NBDLINK_SOCKETS_MAX], kernels[NBDLINK_SOCKETS_MAX];
    unsigned made = 0;
    while (made < sockets->count && make_pair(&ours[made], &kernels[made], error)) {
        made++;
    }
    if (made == sockets->count) {
        sockets->index = nbdlink_connect(wanted, kernels, made, &sockets->device, error);
    }
    for (unsigned i = 0; i < made; i++) {
        close(kernels[i]);
        if (sockets->index >= 0) {
            serve(sockets, ours[i]);
        } else {
            close(ours[i]);
        }
    }
    return sockets->index >= 0 && start_thread(sockets, error);
}

bool attachment_sockets_adopt(AttachmentSockets *sockets, int index, GError **error)
{
    sockets->index = index;
    if (!replace_one(sockets, ADOPT_SECONDS, error)) {
        return false;
    }
    /* The kernel does not tell how many it had: it takes as many. */
    sockets->count = 1;
    while (sockets->count < NBDLINK_SOCKETS_MAX && offer_socket(sockets, NULL) == OFFER_TAKEN) {
        sockets->count++;
    }
    sockets->reconnects = sockets->count;
    return start_thread(sockets, error);
}

bool attachment_sockets_resize(AttachmentSockets *sockets, uint64_t size, GError **error)
{
    {
        with_mutex(&sockets->lock);
        sockets->device.size = size;
    }
    NbdLinkDevice device = current_device(sockets);
    return nbdlink_resize(sockets->index, &device, error);
}

uint64_t attachment_sockets_reconnects(AttachmentSockets *sockets)
{
    with_mutex(&sockets->lock);
    return sockets->reconnects;
}

void attachment_sockets_stop(AttachmentSockets *sockets)
{
    {
        with_mutex(&sockets->lock);
        sockets->stopping = true;
        pthread_cond_broadcast(&sockets->changed);
    }
    if (sockets->running) {
        pthread_join(sockets->thread, NULL);
        sockets->running = false;
    }
}
