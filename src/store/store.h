/*
 * A store: a flat run of bytes on which an image lies. A host file, a block device; in tests,
 * memory.
 *
 * Offsets and lengths are bytes. A read past the end of the store gives zeroes, it is no error: an
 * image's last cluster may be cut short. A write past the end grows the store. Functions return 0
 * or a negative errno unless they say otherwise; short transfers and EINTR are finished inside.
 *
 * Threads: each function says [pool] where it may block, [worker] where it must not. All of one
 * store's functions may be called from many threads at once.
 *
 * Ordering: nothing but store_sync orders writes. After a cut any subset of the writes (punches,
 * size changes) since the last finished sync may be on the disk; this is what the power-cut tests
 * enumerate.
 */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/pool.h"
#include "base/worker.h"

typedef struct Store Store;
typedef struct StoreIo StoreIo;
typedef struct StoreOps StoreOps;

typedef enum { STORE_IO_READ, STORE_IO_WRITE } StoreIoKind;

/* One asynchronous transfer. Fill in the first block, submit; done is called once, on the
 * submitting worker, never inside store_submit. The iovec array and the memory behind it belong to
 * the store until then (the store may change the array's entries). */
struct StoreIo {
    StoreIoKind kind;
    Store *store;
    struct iovec *iov;
    int iov_count; /* at most IOV_MAX */
    uint64_t offset;
    uint64_t length; /* sum of the iovecs */
    void (*done)(StoreIo *io);

    int result; /* 0 or -errno, valid in done */

    /* the implementation's */
    uint64_t progress;
    int fd;
    StoreIo *next;
    Worker *worker;
    PoolJob job;
    WorkerMessage message;
};

typedef enum {
    STORE_PUNCH_FREE,      /* reads as zeroes afterwards, space given back where the host can */
    STORE_PUNCH_KEEP_SPACE /* reads as zeroes afterwards, space stays allocated where the host can
                            */
} StorePunch;

/* read_nowait, write_nowait and write_direct may be NULL (always -EAGAIN), start_sync too (nothing happens), replace (-ENOTSUP). punch and next_data are called with
 * ranges inside the store, not empty; nothing that changes it is called on a read-only store. */
struct StoreOps {
    const char *name;
    int (*preadv)(Store *store, const struct iovec *iov, int count, uint64_t offset);
    int (*pwritev)(Store *store, const struct iovec *iov, int count, uint64_t offset);
    int (*read_nowait)(Store *store, const struct iovec *iov, int count, uint64_t offset);
    int (*write_nowait)(Store *store, const struct iovec *iov, int count, uint64_t offset);
    int (*write_direct)(Store *store, const struct iovec *iov, int count, uint64_t offset);
    void (*submit)(StoreIo *io);
    int (*punch)(Store *store, uint64_t offset, uint64_t length, StorePunch how);
    int (*next_data)(Store *store, uint64_t offset, uint64_t length, bool *data, uint64_t *run);
    int (*truncate)(Store *store, uint64_t size);
    int (*replace)(Store *store, const void *bytes, uint64_t length);
    int (*sync)(Store *store);
    void (*start_sync)(Store *store, uint64_t offset, uint64_t length);
    uint64_t (*allocated_bytes)(Store *store);
    void (*close)(Store *store); /* frees what lies behind the Store, not the Store's own memory */
};

/* The common head; an implementation embeds it first. */
struct Store {
    const StoreOps *ops;
    char *name; /* for messages: the path */
    bool read_only;
    int refs;              /* atomic */
    _Atomic uint64_t size; /* current size in bytes, kept by the implementation */
    /* For store_sync_changes. */
    pthread_mutex_t sync_lock;
    atomic_bool changed; /* by what has ended, since such a sync began */
    atomic_bool shared;  /* others may write to it */
};

void store_init(Store *store, const StoreOps *ops, const char *name, bool read_only, uint64_t size);
Store *store_ref(Store *store); /* [any] */
void store_unref(Store *store); /* closes with the last; may block. [pool] or [main] */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Store, store_unref)

uint64_t store_size(const Store *store); /* [any] */

/* Others write to it from now on, without these functions (the kernel). [any] */
void store_share(Store *store);

/* For implementations: calls io->done. [worker] */
void store_io_end(StoreIo *io);

/* For implementations: the store reaches at least to end now. [any] */
void store_raise_size(Store *store, uint64_t end);

/* Blocking transfers of everything. [pool] */
int store_read(Store *store, void *buffer, size_t length, uint64_t offset);
int store_write(Store *store, const void *buffer, size_t length, uint64_t offset);
int store_readv(Store *store, const struct iovec *iov, int count, uint64_t offset);
int store_writev(Store *store, const struct iovec *iov, int count, uint64_t offset);

/* The two _nowait functions take at most IOV_MAX pieces, and the pieces are not changed. */

/* Reads what is in the page cache, all of the range or nothing useful: 0, -EAGAIN (would wait; use
 * store_submit), or another -errno. [worker] */
int store_read_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset);

/* Writes into the page cache where that is expected not to wait: 0, -EAGAIN (nothing useful was
 * done; use store_submit), or another -errno. The file store decides from what its last writes
 * cost: when the host throttles its writers, it answers -EAGAIN for a while. [worker] */
int store_write_nowait(Store *store, const struct iovec *iov, int count, uint64_t offset);

/* Writes past the page cache, for data that whoever writes it has in a cache of his own: 0, -EAGAIN (nothing useful was
 * done: the host cannot, or not with a range as small or as crooked as this; use store_writev), or another -errno. Not
 * beside another transfer of the same range. [pool], or a worker that may block */
int store_write_direct(Store *store, const struct iovec *iov, int count, uint64_t offset);

/* Starts an asynchronous transfer. [worker] */
void store_submit(StoreIo *io);

/* Makes the range read as zeroes. -ENOTSUP when the host cannot do it without writing; the caller
 * writes zeroes then. A range past the end is clipped; the size never changes. [pool] */
int store_punch(Store *store, uint64_t offset, uint64_t length, StorePunch how);

/* Whether the bytes at offset are (perhaps) data or surely a hole, and for how many bytes, at most
 * length, that stays true. A store that cannot tell says data. [pool] */
int store_next_data(Store *store, uint64_t offset, uint64_t length, bool *data, uint64_t *run);

int store_truncate(Store *store, uint64_t size); /* [pool] */

/* The store has these bytes and no others from now on, durably; after a cut all of the old ones or all of the new. For
 * small ones, and beside no transfer. 0 or -errno; after an error too it has either. -ENOTSUP: it cannot, nothing was
 * changed. [pool] */
int store_replace(Store *store, const void *bytes, uint64_t length);

/* Everything written before the call is on stable storage when it returns 0 (fdatasync). After a
 * failure the store remembers it: every later sync fails with the same error, for the kernel
 * reports a lost page only once. [pool] */
int store_sync(Store *store);

/* The same, but nothing is done when nothing was changed since the last one that was successful: for images with many
 * files. What ended before this call is covered, by whatever thread it was done. [pool] */
int store_sync_changes(Store *store);

/* The range was just written and is to be synced some day: a good time to begin. Says nothing about what is on stable
 * storage, and hides no error from the store_sync that must follow. [pool] */
void store_start_sync(Store *store, uint64_t offset, uint64_t length);

uint64_t store_allocated_bytes(Store *store); /* space that the host uses [pool] */

#endif
