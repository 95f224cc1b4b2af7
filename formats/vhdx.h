/*
 * vhdx: what its files share. Private to formats/vhdx*.c and their tests.
 *
 * Specification: Microsoft's [MS-VHDX]. Numbers on disk are little endian.
 *
 *     vhdx.c           probe, open, close, map, info
 *     vhdx-header.c    headers and region tables: read, checked, written
 *     vhdx-metadata.c  the metadata table, the names of a parent
 *     vhdx-parent.c    another parent
 *     vhdx-log.c       the log: read and done again
 *     vhdx-flush.c     the log: written; start of writing, flush, finish
 *     vhdx-space.c     which MiB of the file are used
 *     vhdx-write.c     allocate, commit, abandon
 *     vhdx-unmap.c     unmap
 *     vhdx-resize.c    another size of the disk
 *     vhdx-create.c    create
 *     vhdx-check.c     check and repair
 */
#ifndef FORMATS_VHDX_H
#define FORMATS_VHDX_H

#include <glib.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "map/image.h"
#include "store/metacache.h"
#include "store/store.h"

#define VHDX_MIB           (UINT64_C(1) << 20)
#define VHDX_KIB           1024u
#define VHDX_GUID_SIZE     16u
#define VHDX_PAGE          4096u /* of the log, and of what it changes */
#define VHDX_HEADER_SIZE   4096u
#define VHDX_TABLE_SIZE    (64u * VHDX_KIB) /* a region table, the metadata table */
#define VHDX_ENTRIES_MAX   2047u            /* in each of them */
#define VHDX_LOG_MAX       (64 * VHDX_MIB)  /* length of the largest log that is read */
#define VHDX_BLOCK_MIN     VHDX_MIB
#define VHDX_BLOCK_MAX     (256 * VHDX_MIB)
#define VHDX_DISK_MAX      (UINT64_C(64) << 40)
#define VHDX_FILE_MAX      (UINT64_C(256) << 40) /* that is written: a bit of memory for each MiB */
#define VHDX_UNIT          4096u                 /* allocation unit over a parent */

#define VHDX_CHUNK_SECTORS (UINT64_C(1) << 23) /* sectors whose bits fill a MiB */

/* Where things lie in every file */
#define VHDX_HEADER_1  (64 * VHDX_KIB) /* the second lies as far behind it, and so on */
#define VHDX_REGIONS_1 (192 * VHDX_KIB)

/* Offsets in a header */
#define VHDX_H_CHECKSUM    4
#define VHDX_H_SEQUENCE    8
#define VHDX_H_FILE_GUID   16
#define VHDX_H_DATA_GUID   32
#define VHDX_H_LOG_GUID    48
#define VHDX_H_LOG_VERSION 64
#define VHDX_H_VERSION     66
#define VHDX_H_LOG_LENGTH  68
#define VHDX_H_LOG_OFFSET  72

/* Offsets in a log entry */
#define VHDX_L_CHECKSUM    4
#define VHDX_L_LENGTH      8
#define VHDX_L_TAIL        12
#define VHDX_L_SEQUENCE    16
#define VHDX_L_DESCRIPTORS 24
#define VHDX_L_GUID        32
#define VHDX_L_FLUSHED     48
#define VHDX_L_LAST        56
#define VHDX_L_HEADER_SIZE 64u
#define VHDX_L_DESCRIPTOR  32u /* bytes of one */
/* Descriptors that fit beside the header in one page, which is as many as we write. */
#define VHDX_L_FIRST_PAGE ((VHDX_PAGE - VHDX_L_HEADER_SIZE) / VHDX_L_DESCRIPTOR)

typedef enum { /* the low bits of an entry of the table */
               VHDX_NOT_PRESENT = 0,
               VHDX_UNDEFINED = 1,
               VHDX_ZERO = 2,
               VHDX_UNMAPPED = 3,
               VHDX_PRESENT = 6,
               VHDX_PARTIAL = 7, /* sector bits say what is here, and what is the parent's */
} VhdxBlockState;

#define VHDX_STATE_MASK UINT64_C(7)

typedef struct VhdxRange { /* of the file, bytes */
    uint64_t offset, length;
} VhdxRange;

typedef struct VhdxHeader {
    uint64_t sequence;
    uint8_t file_guid[VHDX_GUID_SIZE]; /* another one after each opening for writing */
    uint8_t data_guid[VHDX_GUID_SIZE]; /* the same, of what a guest sees: children know it */
    uint8_t log_guid[VHDX_GUID_SIZE];  /* of the log's entries; null: it is empty */
    VhdxRange log;
    unsigned slot; /* which of the two it is: 0, 1 */
} VhdxHeader;

typedef struct VhdxReserved {
    VhdxRange place;
    bool spoiled; /* a failed write left something there that could not be cleared */
} VhdxReserved;

typedef struct VhdxState {
    VhdxHeader header;
    unsigned regions_bad; /* bit 0, 1: that region table is damaged */
    GArray *regions;      /* VhdxRange: log, table, metadata, others */
    VhdxRange table;      /* the block allocation table */
    VhdxRange metadata;

    uint64_t block_size, sector_size;
    bool fixed; /* all blocks stay allocated */
    bool has_parent;
    uint8_t parent_guid[2][VHDX_GUID_SIZE]; /* either is the parent's data_guid */
    uint64_t size_offset;                   /* of the file: the disk's size, in the metadata */
    uint32_t blocks;                        /* of the disk */
    uint32_t chunk_ratio;                   /* blocks whose sector bits fill a MiB */
    MetaCache *tables;                      /* table and sector bits, in pages */

    /* What the log says: page of the file -> its bytes, or NULL for zeroes. */
    GHashTable *replayed;
    uint64_t replayed_size; /* the file has at least as many bytes then */

    /* Writers only. */
    uint8_t *used;        /* a bit for each MiB of the file */
    uint64_t used_count;  /* MiB that it has bits for */
    uint64_t search_from; /* MiB: no room for a block before it */
    uint64_t fresh_start; /* from here on nothing was ever written */
    bool moved;           /* space was taken or given back since the opening */
    GHashTable *reserved; /* entry of the table -> VhdxReserved: space that it does not show yet */
    GArray *freed;        /* VhdxRange: not shown any more, free after the next flush */
    uint8_t log_guid[VHDX_GUID_SIZE]; /* of this session's entries; in the header with the first */
    uint64_t log_sequence;            /* of the next entry */
    uint64_t log_position;            /* where it goes */
    uint8_t *entry;                   /* the newest one, or NULL */
    bool entry_torn;                  /* perhaps only some of its pages are in place */
    int broken;      /* what a change of the size has written is not known: no table is any more */
    int write_error; /* an implicit flush failed: changes answer this until one succeeds */
    atomic_bool dirty; /* flush has something to write */
} VhdxState;

static inline VhdxState *vhdx_state(const Image *image)
{
    return image->state;
}

static inline bool vhdx_guid_is_null(const uint8_t *guid)
{
    static const uint8_t null[VHDX_GUID_SIZE];
    return memcmp(guid, null, VHDX_GUID_SIZE) == 0;
}

/* ---- vhdx-header.c ---- */

extern const uint8_t vhdx_guid_table[VHDX_GUID_SIZE], vhdx_guid_metadata[VHDX_GUID_SIZE];

/* CRC-32C of n bytes as if the four at offset 4 were zeroes. */
uint32_t vhdx_checksum(const uint8_t *bytes, size_t n);

/* Finds the header that counts. */
bool vhdx_header_read(const Image *image, VhdxState *s, GError **error);

/* Makes s->header the one that counts, with the next sequence number, durably. 0 or -errno. */
int vhdx_header_write(Store *store, VhdxHeader *header);

/* Reads the region tables: fills in regions, table, metadata. */
bool vhdx_regions_read(const Image *image, VhdxState *s, GError **error);

/* A region table with the two regions that every file has; bytes: VHDX_TABLE_SIZE, zeroes. */
void vhdx_regions_make(uint8_t *bytes, VhdxRange table, VhdxRange metadata);

/* The sound one of the file, as it is with the table of blocks elsewhere; bytes: VHDX_TABLE_SIZE. 0 or -errno. */
int vhdx_regions_move_table(const Image *image, VhdxRange table, uint8_t *bytes);

bool vhdx_guid_make(uint8_t *guid, GError **error);
char *vhdx_guid_text(const uint8_t *guid); /* "{01020304-0506-...}", as Windows writes it; g_free */
bool vhdx_guid_parse(const char *text, uint8_t *guid);

/* ---- vhdx-metadata.c ---- */

typedef struct VhdxParent { /* of a new image */
    const char *name;
    const uint8_t *guid; /* its data_guid */
} VhdxParent;

/* Reads size of the disk, of blocks and sectors, and the names of the parent: also fills in
 * image->size, backing_name, backing_format, backing_substitute. */
bool vhdx_metadata_read(Image *image, VhdxState *s, GError **error);

/* The metadata region of a new image, which says size, block_size, sector_size and fixed of s;
 * parent may be NULL. NULL with *error. */
GByteArray *vhdx_metadata_make(const VhdxState *s, uint64_t size, const VhdxParent *parent,
                               GError **error);

/* All that is used of the region, in memory. NULL with *error. */
GByteArray *vhdx_metadata_region(const Image *image, GError **error);

/* Changes the metadata in memory so that they name that parent, or none (NULL): a few pages, which one flush makes
 * durable together. [exclusive] */
bool vhdx_metadata_set_parent(Image *image, const VhdxParent *parent, GError **error);

/* ---- vhdx-parent.c ---- */

/* Whether an image with such sectors may have a backing of that format; backing: opened, or NULL. */
bool vhdx_parent_check(uint64_t sector_size, const char *format, const Image *backing,
                       GError **error);
bool vhdx_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                      GError **error);

/* ---- vhdx-log.c ---- */

/* Reads the log, and keeps in memory what it says. */
bool vhdx_log_read(const Image *image, VhdxState *s, GError **error);

/* Reads the file as it is when the log has been done again. 0 or -errno. */
int vhdx_read(const Image *image, const VhdxState *s, void *bytes, size_t length, uint64_t offset);

/* The size of the file then. */
uint64_t vhdx_file_size(const Image *image, const VhdxState *s);

/* Puts pages of table and sector bits into s->tables. Who only reads is refused a log that changes
 * what a guest sees. */
bool vhdx_log_apply(Image *image, VhdxState *s, GError **error);

/* A page as a descriptor and its page of data in an entry say it; page: VHDX_PAGE bytes. */
void vhdx_log_page(const uint8_t *descriptor, const uint8_t *data, uint8_t *page);

/* Writes what the log says into the file, durably. */
int vhdx_log_write_back(Image *image);

/* ---- vhdx.c ---- */

int vhdx_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list);

static inline uint32_t vhdx_block_of(const VhdxState *s, uint64_t offset)
{
    return offset / s->block_size;
}

/* Which entry of the table is a block's, and which that of its sector bits. */
static inline uint32_t vhdx_block_entry(const VhdxState *s, uint32_t block)
{
    return block + block / s->chunk_ratio;
}

static inline uint32_t vhdx_bits_entry(const VhdxState *s, uint32_t block)
{
    return (block / s->chunk_ratio + 1) * (s->chunk_ratio + 1) - 1;
}

/* Entries that the table must have. */
uint64_t vhdx_entries_needed(const VhdxState *s);

static inline VhdxBlockState vhdx_entry_state(uint64_t entry)
{
    return entry & VHDX_STATE_MASK;
}

static inline uint64_t vhdx_entry_offset(uint64_t entry)
{
    return entry & ~(VHDX_MIB - 1);
}

/* Whether the state means that the block has a place in the file. */
static inline bool vhdx_has_place(uint64_t entry)
{
    VhdxBlockState state = vhdx_entry_state(entry);
    return state == VHDX_PRESENT || state == VHDX_PARTIAL;
}

typedef struct VhdxEntry {
    uint32_t index;
    uint32_t block; /* of the disk; of sector bits: the first that they are of */
    bool is_bits;
    uint64_t value;
} VhdxEntry;

/* Calls visit for each entry that blocks of the disk need, in order; what it returns other than 0
 * ends the walk. */
int vhdx_walk(Image *image, int (*visit)(void *opaque, const VhdxEntry *entry), void *opaque);

int vhdx_entry_get(const Image *image, uint32_t index, uint64_t *entry);
int vhdx_entry_set(Image *image, uint32_t index, uint64_t entry);

/* The sector bits of a block: where they begin, for the block's first sector. -EIO when the table
 * has no place for them. */
int vhdx_bits_find(const Image *image, uint32_t block, uint64_t *offset);

/* ---- vhdx-space.c ---- */

typedef enum { VHDX_PLACE_GOOD, VHDX_PLACE_OUTSIDE, VHDX_PLACE_TAKEN } VhdxClaim;

/* Begins to count what is used: the start of the file, and the regions. */
bool vhdx_space_start(Image *image, GError **error);

/* Marks a place as used; not when some of it is used already, or not in the file. */
VhdxClaim vhdx_space_claim(Image *image, VhdxRange place);

/* Space for what the entry will show: the file has grown, it reads as zeroes. NULL with *result. */
VhdxReserved *vhdx_space_reserve(Image *image, uint32_t index, uint64_t length, int *result);

/* Gives back what was reserved and never used. */
void vhdx_space_give_back(VhdxState *s, uint32_t index);

/* The entry does not show the place any more; free after the next flush. */
void vhdx_space_free(VhdxState *s, VhdxRange place);
void vhdx_space_flushed(VhdxState *s);

/* Claims the places of all entries, and refuses what cannot be. */
bool vhdx_space_scan(Image *image, GError **error);

/* One past the last byte that is used. */
uint64_t vhdx_space_end(const VhdxState *s);

/* ---- vhdx-write.c, vhdx-unmap.c ---- */

int vhdx_allocate(Image *image, Allocation **list, unsigned count);
int vhdx_commit(Image *image, Allocation **list, unsigned count);
void vhdx_abandon(Image *image, Allocation **list, unsigned count);
int vhdx_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);

/* ---- vhdx-flush.c ---- */

bool vhdx_start_writing(Image *image, GError **error);
int vhdx_flush(Image *image);
void vhdx_flush_if_full(Image *image);
int vhdx_finish(Image *image);
bool vhdx_is_dirty(const Image *image);
void vhdx_update_dirty(VhdxState *s);
/* After a flush: cuts off what lies behind the last place that is used. Before that the log is emptied, for it knows how
 * long the file was. */
int vhdx_trim(Image *image);

/* ---- vhdx-resize.c, vhdx-create.c, vhdx-check.c ---- */

bool vhdx_resize(Image *image, uint64_t size, GError **error);

extern const FormatOption vhdx_create_options[];
bool vhdx_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool vhdx_create_like(const Image *image, GHashTable *options, GError **error);
bool vhdx_create(Store *store, const FormatCreate *how, GError **error);
bool vhdx_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

#endif
