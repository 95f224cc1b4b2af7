/*
 * vhd: what its files share. Private to formats/vhd*.c and their tests.
 *
 * Specification: Microsoft's "Virtual Hard Disk Image Format". Numbers on disk are big endian.
 *
 *     vhd.c           probe, open, close, map, info
 *     vhd-header.c    footer and header: read, checked, made
 *     vhd-parent.c    the names of a parent
 *     vhd-space.c     new blocks, and the footer that moves behind them
 *     vhd-write.c     allocate, commit, abandon, unmap
 *     vhd-flush.c     start of writing, flush, finish
 *     vhd-resize.c    another size of the disk
 *     vhd-backing.c   another parent
 *     vhd-create.c    create
 *     vhd-like.c      what a new image takes over from an old one
 *     vhd-check.c     check and repair
 */
#ifndef FORMATS_VHD_H
#define FORMATS_VHD_H

#include <glib.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "formats/blocktable.h"
#include "formats/format.h"
#include "map/image.h"
#include "store/metacache.h"
#include "store/store.h"

#define VHD_SECTOR         512u
#define VHD_FOOTER_SIZE    512u
#define VHD_HEADER_SIZE    1024u
#define VHD_UNUSED         0xffffffffu /* table entry: the block is not there */
#define VHD_UUID_SIZE      16u
#define VHD_LOCATORS       8u
#define VHD_LOCATOR_SIZE   24u
#define VHD_NAME_MAX       512u                   /* bytes of the parent's name */
#define VHD_LOCATOR_LIMIT  (1u << 20)             /* bytes of a locator that are heeded */
#define VHD_LOCATORS_SPACE 8192u                  /* bytes of the locators that we write */
#define VHD_DISK_SIZE_MAX  (UINT64_C(2040) << 30) /* what others open */
#define VHD_EPOCH          UINT64_C(946684800)    /* 2000-01-01 in seconds since 1970 */
#define VHD_MAX_CYLINDERS  65535u
#define VHD_MAX_GEOMETRY   (UINT64_C(65535) * 16 * 255 * 512) /* bytes that CHS can say at most */

/* Offsets in the footer */
#define VHD_F_FEATURES     8
#define VHD_F_VERSION      12
#define VHD_F_DATA_OFFSET  16
#define VHD_F_TIMESTAMP    24
#define VHD_F_CREATOR      28
#define VHD_F_CREATOR_VERS 32
#define VHD_F_CREATOR_HOST 36
#define VHD_F_ORIGINAL     40
#define VHD_F_CURRENT      48
#define VHD_F_CYLINDERS    56
#define VHD_F_HEADS        58
#define VHD_F_SECTORS      59
#define VHD_F_TYPE         60
#define VHD_F_CHECKSUM     64
#define VHD_F_UUID         68

/* Offsets in the dynamic header */
#define VHD_H_DATA_OFFSET  8
#define VHD_H_TABLE_OFFSET 16
#define VHD_H_VERSION      24
#define VHD_H_ENTRIES      28
#define VHD_H_BLOCK_SIZE   32
#define VHD_H_CHECKSUM     36
#define VHD_H_PARENT_UUID  40
#define VHD_H_PARENT_TIME  56
#define VHD_H_PARENT_NAME  64
#define VHD_H_LOCATORS     576

/* Xen's batmap: a header of VHD_BATMAP_HEADER bytes, and offsets in it */
#define VHD_BATMAP_HEADER   512u
#define VHD_BATMAP_MAGIC    "tdbatmap"
#define VHD_BATMAP_OFFSET   8
#define VHD_BATMAP_SIZE     16
#define VHD_BATMAP_CHECKSUM 24

typedef enum { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 } VhdType;

typedef struct VhdFooter {
    VhdType type;
    uint64_t data_offset; /* of the dynamic header */
    uint64_t size;        /* of the disk, bytes */
    uint32_t timestamp;   /* seconds since 2000 */
    uint8_t uuid[VHD_UUID_SIZE];
    uint8_t bytes[VHD_FOOTER_SIZE]; /* as found: it is written again like that */
} VhdFooter;

typedef struct VhdRange { /* of the file, bytes */
    uint64_t offset, length;
} VhdRange;

typedef struct VhdHeader {
    uint64_t table_offset;
    uint32_t entries;
    uint32_t block_size;
    uint8_t parent_uuid[VHD_UUID_SIZE];
    uint8_t bytes[VHD_HEADER_SIZE]; /* as found */
} VhdHeader;

typedef enum {
    VHD_FOOTER_GOOD,
    VHD_FOOTER_AT_END_BAD, /* the copy at offset 0 is used */
    VHD_FOOTER_COPY_BAD,   /* the one at the end of file is used */
    VHD_FOOTER_COPY_DIFFERS,
} VhdFooterState;

typedef struct VhdState {
    VhdFooter footer;
    VhdFooterState footer_state;
    uint64_t footer_offset; /* of the footer at the end of file; what is before it may be used */

    /* The rest is not for VHD_FIXED. */
    VhdHeader header;
    BlockTable *table;    /* sector of each block's bitmap, or VHD_UNUSED */
    uint64_t block_size;  /* bytes of data */
    uint64_t bitmap_size; /* bytes before them */
    MetaCache *bitmaps;   /* in pieces of a sector */
    GArray *structures;   /* VhdRange: what lies in the file besides blocks */
    bool has_batmap;      /* of Xen, right behind the table */

    /* Writers only. */
    uint64_t data_end;      /* nothing is used from here to the footer */
    uint64_t fresh_start;   /* from here on nothing was ever written */
    uint64_t footer_needed; /* finish does not move the footer before this place */
    uint64_t stale_footer;  /* where one was, to be cleared; 0: none */
    GHashTable *reserved;   /* block -> VhdReserved: space whose block is in no table yet */
    GArray *spare;          /* uint64_t: untouched places that were given back */
    GHashTable *unlinked;   /* set: blocks that no table on the disk may show yet */
    bool second_pending;    /* tables were written that no sync has covered */
    int broken; /* nobody knows what header or footer the disk has: nothing is written any more */
    int write_error;   /* an implicit flush failed: changes answer this until one succeeds */
    atomic_bool dirty; /* flush has something to write */
} VhdState;

static inline VhdState *vhd_state(const Image *image)
{
    return image->state;
}

/* ---- vhd-header.c ---- */

/* One's complement of the sum of all bytes but the four of the checksum. */
uint32_t vhd_checksum(const uint8_t *bytes, size_t n, size_t checksum_offset);

/* Finds the footer and fills in footer, footer_state, footer_offset of the state. */
bool vhd_footer_read(const Image *image, VhdState *s, GError **error);

/* Reads and checks the dynamic header and what it points to; fills in header, structures. */
bool vhd_header_read(const Image *image, VhdState *s, GError **error);

/* What the footer of a disk of that size says of it; for a creator whose programs take the geometry, another creator. */
void vhd_footer_set_size(uint8_t *bytes, uint64_t size);

/* Puts the right checksum into a footer or header. */
void vhd_checksum_set(uint8_t *bytes, size_t n, size_t checksum_offset);

/* Seconds since 1970 as footers and headers have them. */
uint32_t vhd_time(int64_t seconds);

/* The geometry of a disk, as the specification computes it. */
void vhd_geometry(uint64_t size, uint16_t *cylinders, uint8_t *heads, uint8_t *sectors);
/* The smallest size, from this one on, that a geometry can say; the same size where that is beyond them all. */
uint64_t vhd_size_by_geometry(uint64_t size);

/* ---- vhd-parent.c ---- */

/* Finds the parent's name in locators and header: sets image->backing_name, backing_substitute and
 * backing_format. */
bool vhd_parent_read(Image *image, const VhdState *s, GError **error);

/* Whether an image may have a backing of that format; backing: opened, or NULL. */
bool vhd_parent_check(const char *format, const Image *backing, GError **error);

/* Whom an image has as its parent: writes UUID, time, name and locators into the header's bytes. The locators' data, to
 * be put at `offset` of the file, is appended to data: at most VHD_LOCATORS_SPACE bytes. backing may be NULL. */
bool vhd_parent_make(const char *name, const Image *backing, uint64_t offset, uint8_t *header,
                     GByteArray *data, GError **error);

/* Bytes of the file that a locator's fields claim; both writers that count sectors and those that
 * count bytes are understood. Pure. */
uint64_t vhd_locator_space(uint32_t space, uint32_t length);

/* ---- vhd.c ---- */

int vhd_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list);

/* Where a block's bitmap lies (0: the block is not there), its data behind it. -EIO: not in the
 * file. [shared] */
int vhd_block_find(const Image *image, uint32_t block, uint64_t *bitmap_offset);

static inline uint32_t vhd_block_of(const VhdState *s, uint64_t offset)
{
    return offset / s->block_size;
}

/* ---- vhd-space.c ---- */

typedef struct VhdReserved {
    uint64_t bitmap_offset;
    bool touched; /* something may have been written to it */
} VhdReserved;

/* Space for a block that no table has. The file has grown, the footer lies behind it, the space
 * reads as zeroes. NULL with *result. [exclusive] */
VhdReserved *vhd_space_reserve(Image *image, uint32_t block, int *result);

/* Space for something else than a block, as it is; the footer lies behind it. 0 or -errno. [exclusive] */
int vhd_space_take(Image *image, uint64_t length, uint64_t *place);

/* Gives back what was reserved for a block and is untouched; any block may have it then.
 * [exclusive] */
void vhd_space_give_back(VhdState *s, uint32_t block);

/* Sees that no block lies on top of anything else or outside the file, and finds the end of what is
 * used. */
bool vhd_space_scan(const Image *image, GError **error);

/* Writes the footer, also when it is where it was. Does not sync. */
int vhd_footer_write(Image *image, uint64_t offset);

/* After a write of a footer that failed: it may have reached the disk all the same, and at the end of the file it would
 * count. The file ends behind the footer that does. */
int vhd_footer_settle(Image *image);

/* ---- vhd-write.c ---- */

int vhd_allocate(Image *image, Allocation **list, unsigned count);
int vhd_commit(Image *image, Allocation **list, unsigned count);
void vhd_abandon(Image *image, Allocation **list, unsigned count);
int vhd_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);

/* ---- vhd-flush.c ---- */

bool vhd_start_writing(Image *image, GError **error);
int vhd_flush(Image *image);
int vhd_finish(Image *image);
bool vhd_is_dirty(const Image *image);
void vhd_update_dirty(VhdState *s);
/* Sees to it that both footers are good and alike: writes the one that counts over the other.
 * data_end is known. */
int vhd_footers_mend(Image *image);
/* Makes these bytes the footer, durably, and then its copy where there is one. Where that fails nothing is written any
 * more. */
int vhd_footers_replace(Image *image, const uint8_t *bytes);
/* A sector, durably. */
int vhd_write_durably(Store *store, const uint8_t *bytes, uint64_t offset);
/* r: of a write of header or footers, after which nobody knows what the disk has when it failed. */
int vhd_written(VhdState *s, int r);
/* Moves the footer back to target, behind which nothing is used, and cuts the file off there. */
int vhd_trim(Image *image, uint64_t target);
void vhd_flush_if_full(Image *image);

/* ---- vhd-backing.c ---- */

bool vhd_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                     GError **error);

/* ---- vhd-resize.c ---- */

bool vhd_resize(Image *image, uint64_t size, GError **error);

/* ---- vhd-like.c ---- */

/* Where the batmap's header is, or would be. */
uint64_t vhd_batmap_place(const VhdState *s);

bool vhd_create_like(const Image *image, GHashTable *options, GError **error);

/* The footer of a new image in place of an old one; all of it, but for the checksum. */
void vhd_footer_like(const Image *image, uint8_t *footer);

/* The header of a new image, but for what says where its table is and what it has. Batmap and locators are appended to
 * data, which will lie at `start` of the file. */
bool vhd_header_like(const Image *image, uint64_t start, uint8_t *header, GByteArray *data,
                     GError **error);

/* ---- vhd-create.c, vhd-check.c ---- */

extern const FormatOption vhd_create_options[];
bool vhd_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool vhd_create(Store *store, const FormatCreate *how, GError **error);
bool vhd_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

#endif
