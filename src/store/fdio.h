/*
 * Whole transfers on a file descriptor: short ones are continued, EINTR is tried again. They do not
 * use or move the descriptor's position. 0 or a negative errno. [pool]
 */
#ifndef STORE_FDIO_H
#define STORE_FDIO_H

#include <stdint.h>
#include <sys/uio.h>

/* What lies past the end of the file reads as zeroes. */
int fdio_read(int fd, const struct iovec *iov, int count, uint64_t offset);

/* *end (may be NULL): where the written bytes end, also after an error. */
int fdio_write(int fd, const struct iovec *iov, int count, uint64_t offset, uint64_t *end);

/* The sum of the lengths. [any] */
uint64_t iov_length(const struct iovec *iov, int count);

/* Zeroes what the vector holds from byte skip on. [any] */
void iov_zero_from(const struct iovec *iov, int count, uint64_t skip);

#endif
