/*
 * vdi: what its files share. Private to formats/vdi*.c and their tests.
 *
 *     vdi.c          probe, open, close, map, info
 *     vdi-header.c   the header: read and checked; UUIDs
 *     vdi-parent.c   finding the parent, which has no name in the image; another one
 *     vdi-write.c    allocate, commit, abandon, unmap; start of writing, flush, finish
 *     vdi-resize.c   another size of the disk
 *     vdi-create.c   create
 *     vdi-check.c    check and repair
 */
#ifndef FORMATS_VDI_H
#define FORMATS_VDI_H

#include <glib.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "formats/blocktable.h"
#include "formats/format.h"
#include "map/image.h"
#include "store/store.h"

#define VDI_SECTOR      512u
#define VDI_SIGNATURE   0xbeda107fu
#define VDI_VERSION     0x00010001u
#define VDI_UNALLOCATED 0xffffffffu /* table entry: ask the parent, or zeroes */
#define VDI_ZERO        0xfffffffeu /* table entry: zeroes, whatever the parent has */
#define VDI_UUID_SIZE   16u
#define VDI_BLOCK_MIN   4096u
#define VDI_BLOCK_MAX   (256u << 20)

/* Offsets in the header; numbers are little endian */
#define VDI_H_SIGNATURE   0x40
#define VDI_H_VERSION     0x44
#define VDI_H_HEADER_SIZE 0x48
#define VDI_H_TYPE        0x4c
#define VDI_H_TABLE       0x154
#define VDI_H_DATA        0x158
#define VDI_H_SECTOR_SIZE 0x168
#define VDI_H_DISK_SIZE   0x170
#define VDI_H_BLOCK_SIZE  0x178
#define VDI_H_EXTRA       0x17c
#define VDI_H_BLOCKS      0x180
#define VDI_H_ALLOCATED   0x184
#define VDI_H_UUID        0x188
#define VDI_H_MODIFIED    0x198 /* UUID: another after each session of writing */
#define VDI_H_LINK        0x1a8 /* UUID of the parent */
#define VDI_H_PARENT      0x1b8 /* what the parent's VDI_H_MODIFIED must be */
#define VDI_HEADER_END    0x1c8
#define VDI_HEADER_SIZE   0x180 /* of the part behind the version */

typedef enum { VDI_DYNAMIC = 1, VDI_FIXED = 2, VDI_UNDO = 3, VDI_DIFFERENCING = 4 } VdiType;

typedef struct VdiHeader {
    VdiType type;
    uint64_t table_offset, data_offset;
    uint64_t size;
    uint32_t block_size, extra; /* bytes; extra ones before each block */
    uint32_t blocks, allocated; /* entries in the table; blocks in the file, or more */
    uint8_t uuid[VDI_UUID_SIZE], modified[VDI_UUID_SIZE];
    uint8_t link[VDI_UUID_SIZE], parent[VDI_UUID_SIZE];
} VdiHeader;

typedef struct VdiReserved {
    uint32_t place;
    bool touched; /* something may have been written to it */
} VdiReserved;

typedef struct VdiState {
    VdiHeader header;
    BlockTable *table;
    uint64_t stride; /* bytes from block to block in the file */

    /* Writers only. */
    uint32_t next_place;        /* the file's blocks from here on are free */
    uint32_t allocated_on_disk; /* what the header in the file says */
    uint64_t fresh_start;       /* from here on nothing was ever written */
    uint64_t size_at_open;
    GHashTable *reserved; /* block -> VdiReserved: space that no table has yet */
    int broken;           /* nobody knows what header the disk has: nothing is written any more */
    atomic_bool dirty;    /* flush has something to write */
} VdiState;

static inline VdiState *vdi_state(const Image *image)
{
    return image->state;
}

static inline bool vdi_uuid_is_null(const uint8_t *uuid)
{
    static const uint8_t null[VDI_UUID_SIZE];
    return memcmp(uuid, null, VDI_UUID_SIZE) == 0;
}

/* Where a block of the file begins; its extra bytes are behind us. */
static inline uint64_t vdi_host_offset(const VdiState *s, uint32_t place)
{
    return s->header.data_offset + place * s->stride + s->header.extra;
}

/* ---- vdi-header.c ---- */

/* Reads the header of the file behind store and checks it against itself; name is for messages. */
bool vdi_header_read(Store *store, const char *name, VdiHeader *header, GError **error);

/* "01020304-0506-0708-090a-0b0c0d0e0f10", as VirtualBox writes it. g_free. */
char *vdi_uuid_text(const uint8_t *uuid);
bool vdi_uuid_make(uint8_t *uuid, GError **error);

/* ---- vdi-parent.c ---- */

/* Sets image->backing_name and backing_format: to the file with the parent's UUID in the directory
 * of the image or an allowed one; where there is none, to the name that VirtualBox would give it. */
void vdi_parent_find(Image *image, const VdiHeader *header);

/* Whether an image may have a backing of that name and format, which it would find again; backing: opened, or NULL. */
bool vdi_parent_check(const char *name, const char *format, const Image *backing, GError **error);
bool vdi_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                     GError **error);

/* ---- vdi-write.c ---- */

int vdi_allocate(Image *image, Allocation **list, unsigned count);
int vdi_commit(Image *image, Allocation **list, unsigned count);
void vdi_abandon(Image *image, Allocation **list, unsigned count);
int vdi_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);
bool vdi_start_writing(Image *image, GError **error);
int vdi_flush(Image *image);
int vdi_finish(Image *image);
bool vdi_is_dirty(const Image *image);

/* Space for a block that the table has not: the file's block `place`. [exclusive] */
int vdi_reserve(Image *image, uint32_t block, uint32_t *place, bool *fresh);

/* Puts a reserved block into the table. [exclusive] */
void vdi_link(VdiState *s, uint32_t block, uint32_t place);

static inline bool vdi_is_place(uint32_t entry)
{
    return entry != VDI_UNALLOCATED && entry != VDI_ZERO;
}

/* ---- vdi-resize.c ---- */

bool vdi_resize(Image *image, uint64_t size, GError **error);

/* ---- vdi-create.c, vdi-check.c ---- */

extern const FormatOption vdi_create_options[];
bool vdi_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool vdi_create_like(const Image *image, GHashTable *options, GError **error);
bool vdi_create(Store *store, const FormatCreate *how, GError **error);
bool vdi_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

#endif
