/*
 * What formats that answer allocate and commit share (formats/format.h). All may block. [exclusive]
 */
#ifndef FORMATS_ALLOCATION_H
#define FORMATS_ALLOCATION_H

#include <stdbool.h>
#include <stdint.h>

#include "formats/format.h"
#include "map/image.h"
#include "store/store.h"

/* One range of allocate or commit: 0 or -errno. */
typedef int (*AllocationStep)(Image *image, Allocation *a);

/* allocate: each range by itself; reserve fills in its extents, and keeps nothing where it fails. refused: what is the
 * matter with the image, to be said of all of them, or 0. The first error. */
int allocation_reserve_all(Image *image, Allocation **list, unsigned count, int refused,
                           AllocationStep reserve);

/* commit: each range by itself. The first error. */
int allocation_commit_all(Image *image, Allocation **list, unsigned count, AllocationStep commit);

/* Where the next bytes of the range go. fresh: what is there is known to read as zeroes. */
void allocation_add(Image *image, Allocation *a, Store *store, uint64_t host_offset,
                    uint64_t length, bool fresh);
/* Where a->stored_length bytes go, which are all of the range. */
void allocation_add_encoded(Image *image, Allocation *a, uint64_t host_offset);

#endif
