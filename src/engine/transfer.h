/*
 * A transfer: moves the bytes of some extents between stores and memory, without waiting.
 *
 *     t = transfer_new(disk, request, done);
 *     transfer_read(t, ...); transfer_write(t, ...);      any number
 *     transfer_start(t);                                  done(request, result) once, perhaps
 * inside the call
 *
 * The first error is the result; all pieces are tried all the same. [worker]
 */
#ifndef ENGINE_TRANSFER_H
#define ENGINE_TRANSFER_H

#include "engine/disk-impl.h"

typedef struct Transfer Transfer;
typedef void TransferDone(Request *request, int result);

Transfer *transfer_new(Disk *disk, Request *request, TransferDone *done);

/* Fills out with the extent's bytes; zero extents are cleared. */
void transfer_read(Transfer *transfer, const Extent *extent, uint8_t *out);

#define TRANSFER_IOV_MAX 3
/* Writes the bytes of the list, extent->length in all, where the extent lies. Whole sectors, where it is
 * encrypted (map/encryption.h). */
void transfer_write(Transfer *transfer, const Extent *extent, const struct iovec *iov, int count);

/* Makes error the result, unless there is one already. */
void transfer_fail(Transfer *transfer, int error);

void transfer_start(Transfer *transfer);

/* The same for one extent, only if it costs no waiting: 0, -EAGAIN (nothing useful done), -errno. */
int transfer_read_nowait(Disk *disk, const Extent *extent, uint8_t *out);

#endif
