/*
 * What formats that hand out blocks of a store share. All may block. [pool]
 */
#ifndef FORMATS_SPACE_H
#define FORMATS_SPACE_H

#include <stdint.h>

#include "map/image.h"
#include "store/store.h"

/* The store has at least end bytes afterwards, perhaps more: by units, so that it need not grow for
 * each of them. -ENOSPC where it cannot (a block device has the size it has). */
int space_grow(Store *store, uint64_t end, uint64_t unit);

/* Sees to it that the range, which may have been used before (a block device, what a power cut
 * left), reads as zeroes. From fresh_start on nothing was ever written. 0 or -errno. */
int space_make_fresh(Store *store, uint64_t offset, uint64_t length, uint64_t fresh_start);

/* Copies bytes within a store, a piece at a time. The ranges do not overlap. 0 or -errno. */
int space_copy(Store *store, uint64_t from, uint64_t to, uint64_t length);

/* The image's backing has bytes behind the end of its disk, which would show if that grew. */
bool space_backing_is_longer(const Image *image);

#endif
