/*
 * Asynchronous file I/O of a worker: io_uring where the kernel allows it, the pool where it does
 * not.
 *
 * Chosen once per worker at its first use. A seccomp filter or /proc/sys/kernel/io_uring_disabled
 * may refuse the ring: then the pool serves, with one informational log line a process.
 * COWNBD_AIO=pool|uring in the environment forces one (tests; `uring` fails loudly where it is
 * refused).
 */
#ifndef STORE_AIO_H
#define STORE_AIO_H

#include "store/store.h"

/* The pool that serves where io_uring does not. Once, before the first worker is used. [main] */
void aio_init(Pool *pool);

/* Submits a transfer on descriptor fd of a file store, for the current worker. [worker] */
void aio_submit(StoreIo *io, int fd);

/* "io_uring" or "pool": what the current worker uses. [worker] */
const char *aio_name(void);

#endif
