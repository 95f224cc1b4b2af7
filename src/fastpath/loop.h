/*
 * A host file as a block device for the kernel: a loop device, or, where the file is a block device
 * that nobody writes to, that one.
 *
 * The loop device clears itself when nobody has it open any more: this process, or a device-mapper
 * table that uses it. Functions block; [any] thread that may.
 */
#ifndef FASTPATH_LOOP_H
#define FASTPATH_LOOP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct Loop {
    int fd;       /* of the device; -1: closed */
    dev_t device; /* its number */
    bool is_loop; /* false: the file was a block device */
    bool read_only;
    uint64_t size;       /* bytes that the device has now */
    unsigned block_size; /* logical, bytes */
    bool direct_io;      /* goes past the page cache */
    uint64_t offset;     /* of the device's first byte in the file */
    char path[32];       /* "/dev/loop3" */
} Loop;

/* file: a descriptor of the file, opened for the access that is wanted (the loop device keeps the
 * open file, so also its locks); may be closed after. offset: where in the file the device begins.
 * name: for messages. */
bool loop_open(Loop *loop, int file, uint64_t offset, const char *name, GError **error);

/* Takes the loop device (or block device) with this number, if it lies on the same file at the same
 * offset; ENODEV otherwise. For devices that an earlier server made. */
bool loop_adopt(Loop *loop, dev_t device, int file, uint64_t offset, GError **error);

/* The file has grown: so does the device. */
bool loop_grow(Loop *loop, GError **error);

void loop_close(Loop *loop);

/* Through the page cache or past it, as the file's filesystem allows. */
bool loop_set_direct_io(Loop *loop, bool direct_io, GError **error);

/* Discards that the device has been given since the kernel made it; -1: not known. */
int64_t loop_discards(const Loop *loop);

#endif
