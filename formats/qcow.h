/*
 * qcow, version 1: what its files share. Private to formats/qcow.c, qcow-*.c and their tests.
 *
 *     qcow.c          probe, open, close, map, decode
 *     qcow-header.c   the header
 *     qcow-write.c    unmap
 *     qcow-resize.c   a larger disk
 *     qcow-create.c   create
 *
 * Tables, writing, check and repair: tabletree.h.
 */
#ifndef FORMATS_QCOW_H
#define FORMATS_QCOW_H

#include <glib.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "formats/tabletree.h"
#include "map/image.h"
#include "store/store.h"

#define QCOW_MAGIC            0x514649fbu /* "QFI\xfb" */
#define QCOW_HEADER_SIZE      48u
#define QCOW_XEN_MAGIC        0x58454efbu /* "XEN\xfb", behind the header */
#define QCOW_XEN_SIZE         16u
#define QCOW_XEN_L1_BIG       2u /* flag: L1 is in big endian */
#define QCOW_MIN_CLUSTER_BITS 9
#define QCOW_MAX_CLUSTER_BITS 16
#define QCOW_MIN_L2_BITS      6
#define QCOW_MAX_L2_BITS      13
#define QCOW_MAX_NAME         1023
#define QCOW_COMPRESSED       (UINT64_C(1) << 63)

/* Offsets in the header; numbers are big endian */
#define QCOW_H_VERSION      4
#define QCOW_H_NAME_OFFSET  8
#define QCOW_H_NAME_SIZE    16
#define QCOW_H_SIZE         24
#define QCOW_H_CLUSTER_BITS 32
#define QCOW_H_L2_BITS      33
#define QCOW_H_CRYPT        36
#define QCOW_CRYPT_AES      1 /* its value */
#define QCOW_H_L1_OFFSET    40
#define QCOW_H_XEN_FLAGS    60

typedef struct QcowHeader {
    uint64_t name_offset, size, l1_offset;
    uint32_t name_size, cluster_bits, l2_bits;
    uint32_t l1_size; /* entries, as the size needs them */
    bool aes;         /* the data is encrypted */
    bool l1_little;   /* L1 is in little endian: an image of Xen's first blktap */
} QcowHeader;

typedef struct QcowState {
    TableTree tree; /* first */
    QcowHeader header;
    int broken; /* which L1 table counts is not known: nothing may be allocated any more */
} QcowState;

static inline QcowState *qcow_state(const Image *image)
{
    return image->state;
}

/* ---- qcow-header.c ---- */

bool qcow_header_read(Image *image, QcowHeader *header, GError **error);
bool qcow_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                      GError **error);

/* ---- qcow-write.c ---- */

int qcow_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);

/* ---- qcow-resize.c ---- */

int qcow_before_change(Image *image); /* TableTree.before_change */
bool qcow_resize(Image *image, uint64_t size, GError **error);

/* ---- qcow-create.c ---- */

extern const FormatOption qcow_create_options[];
bool qcow_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool qcow_create_like(const Image *image, GHashTable *options, GError **error);
bool qcow_create(Store *store, const FormatCreate *how, GError **error);

#endif
