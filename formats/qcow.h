/*
 * qcow, version 1: what its files share. Private to formats/qcow.c, qcow-*.c and their tests.
 *
 *     qcow.c          probe, open, close, map, decode
 *     qcow-header.c   the header, the L1 table
 *     qcow-scan.c     who uses which part of the file: for writers and for check
 *     qcow-write.c    allocate, commit, abandon, unmap, flush, finish
 *     qcow-create.c   create
 *     qcow-check.c    check and repair
 */
#ifndef FORMATS_QCOW_H
#define FORMATS_QCOW_H

#include <glib.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "map/image.h"
#include "store/metacache.h"
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
#define QCOW_MAX_L1_BYTES     (32u << 20)
#define QCOW_MAX_NAME         1023
#define QCOW_COMPRESSED       (UINT64_C(1) << 63)
#define QCOW_PIECE            512u /* of a table, in the cache and on its way to the disk */
#define QCOW_PIECE_ENTRIES    64u

/* Offsets in the header; numbers are big endian */
#define QCOW_H_VERSION      4
#define QCOW_H_NAME_OFFSET  8
#define QCOW_H_NAME_SIZE    16
#define QCOW_H_SIZE         24
#define QCOW_H_CLUSTER_BITS 32
#define QCOW_H_L2_BITS      33
#define QCOW_H_CRYPT        36
#define QCOW_H_L1_OFFSET    40
#define QCOW_H_XEN_FLAGS    60

typedef struct QcowHeader {
    uint64_t name_offset, size, l1_offset;
    uint32_t name_size, cluster_bits, l2_bits;
    uint32_t l1_size; /* entries, as the size needs them */
    bool l1_little;   /* L1 is in little endian: an image of Xen's first blktap */
} QcowHeader;

typedef struct QcowState {
    QcowHeader header;
    uint64_t cluster_size;
    uint64_t l2_bytes; /* of one table */
    uint64_t *l1;
    MetaCache *meta; /* pieces of L2 tables */

    /* Writers only. */
    uint64_t used_end;    /* everything from here on is free */
    uint64_t fresh_start; /* from here on nothing was ever written */
    uint64_t size_at_open;
    GHashTable *l1_dirty; /* set: pieces of L1 that must be written */
    GHashTable *l1_new;   /* set: indices whose table no L1 on the disk points to yet */
    bool second_pending;  /* tables were written that no sync has covered */
    int write_error;      /* an implicit flush failed: changes answer this until one succeeds */
    atomic_bool dirty;    /* flush has something to write */
} QcowState;

static inline QcowState *qcow_state(const Image *image)
{
    return image->state;
}

/* ---- qcow-header.c ---- */

bool qcow_header_read(Image *image, QcowHeader *header, GError **error);
bool qcow_l1_read(const Image *image, QcowState *s, GError **error);

/* ---- qcow.c ---- */

typedef struct QcowCluster {
    uint64_t host; /* 0: not here */
    bool compressed;
    uint32_t stored_length; /* of a compressed one */
} QcowCluster;

/* What an L2 entry says. Pure. */
QcowCluster qcow_entry_decode(const QcowState *s, uint64_t entry);

/* Where the entry of a guest offset lies in the file; 0: there is no table. -EIO: not in the file.
 * [shared] */
int qcow_entry_find(const Image *image, uint64_t offset, uint64_t *place);

/* Reads or changes the entry at a place of the file. [shared]; [exclusive] */
int qcow_entry_get(QcowState *s, uint64_t place, uint64_t *entry);
int qcow_entry_set(QcowState *s, uint64_t place, uint64_t entry, MetaOrder order);

/* Whether all of a table or cluster may be there: aligned, and in the file. */
bool qcow_place_ok(const Image *image, uint64_t offset, uint64_t length);

/* ---- qcow-scan.c ---- */

/* Who uses which cluster of the file. */
typedef struct QcowUse {
    uint64_t clusters; /* of the file */
    uint32_t cluster_bits;
    uint8_t *used;   /* a bit a cluster: tables, header, plain clusters; or a compressed one */
    uint8_t *packed; /* a bit a cluster: only compressed ones, which may share it */
    uint64_t end;    /* one past the last cluster that is used */
} QcowUse;

/* Starts with what header, name and L1 take. */
bool qcow_scan_head(const Image *image, QcowUse *use, GError **error);
/* Takes what an L2 entry points to; false when it is not in the file, or not aligned, or another's.
 */
bool qcow_scan_entry(const Image *image, QcowUse *use, uint64_t entry);
bool qcow_table_is_hole(const Image *image, uint64_t l2);
void qcow_use_clear(QcowUse *use);
/* Takes a range of the file for one user; false when somebody has any of it already. packed: a
 * compressed cluster, which shares with others like it. Does not take it then. */
bool qcow_use_take(QcowUse *use, uint64_t offset, uint64_t length, bool packed);
uint64_t qcow_use_unused(const QcowUse *use); /* clusters below the end */

/* Sees that everything lies in the file and nothing on top of anything else: what a writer needs.
 */
bool qcow_scan(Image *image, GError **error);

/* ---- qcow-write.c ---- */

int qcow_allocate(Image *image, Allocation **list, unsigned count);
int qcow_commit(Image *image, Allocation **list, unsigned count);
void qcow_abandon(Image *image, Allocation **list, unsigned count);
int qcow_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);
bool qcow_start_writing(Image *image, GError **error);
int qcow_flush(Image *image);
int qcow_finish(Image *image);
bool qcow_is_dirty(const Image *image);

/* Takes length bytes (whole clusters) at the end of the file. *fresh: they read as zeroes.
 * [exclusive] */
int qcow_space_take(Image *image, uint64_t length, uint64_t *offset, bool *fresh);

/* Changes an L1 entry in memory. [exclusive] */
void qcow_l1_set(QcowState *s, uint64_t index, uint64_t offset);

/* ---- qcow-create.c, qcow-check.c ---- */

extern const FormatOption qcow_create_options[];
bool qcow_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool qcow_create_like(const Image *image, GHashTable *options, GError **error);
bool qcow_create(Store *store, const FormatCreate *how, GError **error);
bool qcow_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

#endif
