/*
 * The store on a host file or block device.
 *
 * Locks: a writer takes, besides nothing else touching the file, the byte ranges that qemu's file
 * driver takes (open file description locks at byte 100 + permission and 200 + permission), so that
 * qemu and cownbd refuse each other's images exactly where two qemus would.
 */
#ifndef STORE_STORE_FILE_H
#define STORE_STORE_FILE_H

#include "store/store.h"

typedef enum {
    STORE_OPEN_READ_ONLY = 0,
    STORE_OPEN_WRITE = 1 << 0,
    STORE_OPEN_NO_LOCK = 1 << 1, /* look although somebody writes (qemu-img's --force-share) */
} StoreOpenFlags;

/* Opens path. A file that another writer has locked: EBUSY, with the words "is in use by another
 * process". [main]/[pool] */
Store *store_file_open(const char *path, StoreOpenFlags flags, GError **error);

/* The same for an open descriptor, which the store then owns (also on failure). path is for
 * messages. */
Store *store_file_from_fd(int fd, const char *path, StoreOpenFlags flags, GError **error);

/* Makes a new file, O_EXCL unless replace, write-locked. */
Store *store_file_create(const char *path, bool replace, GError **error);

/* The file of such a store once more, for the kernel: a descriptor without the store's locks, for
 * writing when the store is. -1 with errno; ENOTSUP: the store is no file. */
int store_file_reopen(Store *store);

/* Whether both are the same store, or lie on the same file. [any] */
bool store_file_same(const Store *a, const Store *b);

#endif
