/*
 * qed: what its files share. Private to formats/qed*.c and their tests.
 *
 *     qed.c          probe, open, close, map, check
 *     qed-header.c   the header: read and checked; its bits and the backing's name changed
 *     qed-write.c    unmap; start and end of writing
 *     qed-resize.c   a larger disk
 *     qed-create.c   create, measure
 *
 * Tables, writing, check and repair: tabletree.h.
 */
#ifndef FORMATS_QED_H
#define FORMATS_QED_H

#include <glib.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "formats/tabletree.h"
#include "map/image.h"
#include "store/store.h"

#define QED_MAGIC            0x00444551u /* "QED\0" */
#define QED_HEADER_SIZE      64u
#define QED_MIN_CLUSTER_SIZE 4096u
#define QED_MAX_CLUSTER_SIZE (64u << 20)
#define QED_MAX_TABLE_SIZE   16u
#define QED_MAX_NAME         1023u
#define QED_SECTOR           512u
#define QED_ZERO             1u /* L2 entry: zeroes, and no cluster */

/* Bits of features. */
#define QED_BACKING_FILE   1u
#define QED_NEED_CHECK     2u /* a writer has not come to its end */
#define QED_BACKING_IS_RAW 4u /* the backing's format is not to be guessed */
#define QED_FEATURES       7u

/* Offsets in the header; numbers are little endian */
#define QED_H_CLUSTER_SIZE 4
#define QED_H_TABLE_SIZE   8
#define QED_H_HEADER_SIZE  12
#define QED_H_FEATURES     16
#define QED_H_AUTOCLEAR    32
#define QED_H_L1_OFFSET    40
#define QED_H_SIZE         48
#define QED_H_NAME_OFFSET  56
#define QED_H_NAME_SIZE    60

typedef struct QedHeader {
    uint32_t cluster_size, table_size, header_size; /* bytes; the others in clusters */
    uint64_t features, autoclear;
    uint64_t l1_offset, size;
    uint32_t name_offset, name_size;
} QedHeader;

typedef struct QedState {
    TableTree tree; /* first */
    QedHeader header;
} QedState;

static inline QedState *qed_state(const Image *image)
{
    return image->state;
}

static inline uint64_t qed_table_bytes(const QedHeader *header)
{
    return (uint64_t)header->table_size * header->cluster_size;
}

/* Bytes of the disk that one entry of L1 stands for, at most 2^53. */
static inline uint64_t qed_table_span(const QedHeader *header)
{
    return qed_table_bytes(header) / 8 * header->cluster_size;
}

/* The largest disk that the tables have room for. */
uint64_t qed_largest_size(const QedHeader *header);

/* ---- qed-header.c ---- */

bool qed_header_read(Image *image, QedHeader *header, GError **error);

/* Durable when it returns 0; after an error the disk may have the old features or the new ones. */
int qed_set_features(Image *image, uint64_t features);
int qed_set_size(Image *image, uint64_t size);
bool qed_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                     GError **error);

/* ---- qed-write.c ---- */

int qed_before_change(Image *image); /* TableTree.before_change */
int qed_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);

/* Makes whole clusters zeroes, those below `below` also where nothing is; entries of its own it makes in memory.
 * -ENOTSUP: not without writing. [exclusive] */
int qed_zero(Image *image, uint64_t offset, uint64_t end, uint64_t below, StorePunch how);
bool qed_start_writing(Image *image, GError **error);
int qed_finish(Image *image);

/* ---- qed-resize.c, qed-create.c ---- */

bool qed_resize(Image *image, uint64_t size, GError **error);

extern const FormatOption qed_create_options[];
bool qed_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool qed_create_like(const Image *image, GHashTable *options, GError **error);
bool qed_create(Store *store, const FormatCreate *how, GError **error);

#endif
