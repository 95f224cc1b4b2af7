/*
 * The store file IMAGE.cownbd-cow: what the kernel has written in snapshot mode and the image does
 * not have yet.
 *
 *      0       our header: magic, version, state, whose store this is (one sector, written whole)
 *      1 MiB   the kernel's exception store (exceptions.h), to the end of the file; a loop device
 *              with that offset shows it to the kernel
 *
 * A store belongs to the image as it was when the store was made. So the header has a digest of the
 * chain: sizes and times of all files, and where every byte of the disk lies. Whoever has written
 * to the image meanwhile has made the store worthless, and it is refused.
 *
 *      OPEN --> FOLDING --> FOLDED --> (removed)
 *
 * OPEN: the image is as it was. FOLDING: part of the store is in the image, all of it must follow;
 * only the files below the image are still compared. What is in the image for good may be gone from
 * the store, so that a fold needs little space of the host. FOLDED: all is in the image and durable; only
 * the file is left over.
 *
 * Whoever uses a store holds its lock, that of a writer. The loop device keeps the descriptor that
 * it was given, and with it the lock, also when the process that made it has died.
 * [main]/[pool], all of it.
 */
#ifndef FASTPATH_COWSTORE_H
#define FASTPATH_COWSTORE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "map/image.h"
#include "store/store.h"

#define COWSTORE_BASE (1u << 20) /* bytes: where the kernel's part begins */

typedef enum { COWSTORE_OPEN = 1, COWSTORE_FOLDING = 2, COWSTORE_FOLDED = 3 } CowstoreState;

#define COWSTORE_DIGEST 32

/* Whose store it is. */
typedef struct CowstoreOrigin {
    uint64_t disk_size;             /* bytes */
    uint8_t whole[COWSTORE_DIGEST]; /* the chain */
    uint8_t below[COWSTORE_DIGEST]; /* the same without the top image */
} CowstoreOrigin;

typedef struct CowstoreHeader {
    CowstoreState state;
    uint32_t chunk;     /* bytes, as chosen when the store was made */
    uint64_t folded_to; /* FOLDING: chunks of the disk before this one are in the image and durable
                           there; the store may have lost their contents */
    CowstoreOrigin origin;
} CowstoreHeader;

/* IMAGE.cownbd-cow of an image's real path; g_free. */
char *cowstore_path(const char *image_path);

/* Looks at the whole map: seconds for an image of a million extents. Nobody writes to the image. */
bool cowstore_origin(Image *image, CowstoreOrigin *origin, GError **error);

/* Refuses (EUCLEAN for a damaged header, ENOTSUP for a newer one). */
bool cowstore_read_header(Store *store, CowstoreHeader *header, GError **error);

/* Writes and syncs. 0 or -errno. */
int cowstore_write_header(Store *store, const CowstoreHeader *header);

/* Whether the store belongs to the image, as the state asks; EINVAL says what differs. */
bool cowstore_check_origin(Store *store, const CowstoreHeader *header, Image *image,
                           GError **error);

#endif
