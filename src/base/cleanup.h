/*
 * Clean-up at the end of a scope, for what GLib has no g_auto for.
 *
 *     autofd int fd = open(...);      closed when it goes out of scope, unless fd_steal took it
 *     with_mutex(&lock);              locked here, unlocked at the end of the scope
 */
#ifndef BASE_CLEANUP_H
#define BASE_CLEANUP_H

#include <pthread.h>
#include <unistd.h>

static inline void cleanup_fd(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
    }
}

static inline int fd_steal(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

static inline void cleanup_mutex(pthread_mutex_t **mutex)
{
    pthread_mutex_unlock(*mutex);
}

static inline pthread_mutex_t *mutex_locked(pthread_mutex_t *mutex)
{
    pthread_mutex_lock(mutex);
    return mutex;
}

#define autofd              __attribute__((cleanup(cleanup_fd)))

#define CLEANUP_NAME2(line) locked_mutex_##line
#define CLEANUP_NAME(line)  CLEANUP_NAME2(line)
#define with_mutex(mutex)                                                                     \
    __attribute__((cleanup(cleanup_mutex), unused)) pthread_mutex_t *CLEANUP_NAME(__LINE__) = \
        mutex_locked(mutex)

#endif
