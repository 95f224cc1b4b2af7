/*
 * Starting a thread: it takes no signals (main handles them all) and has a name that `top -H`
 * shows.
 */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>

/* name: at most 15 characters are kept. Returns 0 or a positive errno, as pthread_create does.
 * [any] */
int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *argument);

#endif
