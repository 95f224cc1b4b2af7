/*
 * Starting a thread. Signals are blocked before the thread exists, not by the thread itself: so
 * there is no moment in which it could take one.
 */
#include "base/thread.h"

#include <glib.h>
#include <signal.h>

int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGSYS); /* see sandbox-calls.c */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err == 0) {
        char kept[16];
        g_strlcpy(kept, name, sizeof kept);
        pthread_setname_np(*thread, kept);
    }
    return err;
}
