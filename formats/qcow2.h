/*
 * qcow2: what its files share. Private to formats/qcow2*.c and their tests.
 *
 * Specification: docs/interop/qcow2.txt of QEMU. Numbers on disk are big endian. A *cluster* is the
 * unit of everything; a cluster number is a host offset divided by the cluster size.
 *
 *     qcow2.c           probe, open, close, info
 *     qcow2-header.c    header, extensions, feature bits
 *     qcow2-backing.c   another name of the backing
 *     qcow2-datafile.c  guest data in a file of its own
 *     qcow2-snapshot.c  the snapshot table, read
 *     qcow2-snapshot-table.c   the snapshot table, written anew
 *     qcow2-snapshot-tree.c    references to all that hangs on an L1 table
 *     qcow2-snapshot-change.c  snapshots made, applied, deleted
 *     qcow2-bitmap*.c   persistent bitmaps (qcow2-bitmap.h)
 *     qcow2-map.c       map, decode
 *     qcow2-l2.c        L1 and L2 tables
 *     qcow2-subcluster.c  parts of clusters, where L2 entries have a bitmap of them
 *     qcow2-refcount.c  refcounts and their blocks
 *     qcow2-table.c     space for tables, growth of the refcount table
 *     qcow2-alloc.c     search for free clusters
 *     qcow2-write.c     allocate, commit, abandon
 *     qcow2-compress.c  clusters that are written compressed
 *     qcow2-unmap.c     discard and write zeroes
 *     qcow2-flush.c     flush, pending frees, finish
 *     qcow2-resize.c    another size of the disk
 *     qcow2-check*.c    check and repair
 *     qcow2-create*.c   create (qcow2-create.h)
 *
 * Who may call what: "shared" functions run beside each other and beside flush; "exclusive" ones
 * alone (formats/format.h: map is shared, allocate, commit, abandon, unmap, check are exclusive).
 */
#ifndef FORMATS_QCOW2_H
#define FORMATS_QCOW2_H

#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "formats/format.h"
#include "formats/luks-header.h"
#include "formats/qcow2-disk.h"
#include "map/image.h"
#include "store/metacache.h"
#include "store/store.h"

/* A run of host clusters. */
typedef struct Qcow2Run {
    uint64_t first, count;
} Qcow2Run;

/* One internal snapshot, as its table says. Table offset and size are checked to lie in the file. */
typedef struct Qcow2Snapshot {
    uint64_t l1_table_offset;
    uint32_t l1_size; /* entries */
    uint64_t disk_size;
    uint64_t vm_state_size;
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t entry_offset, entry_length; /* of its entry in the file, padding included */
    uint32_t extra_size;
    char *id, *name;
} Qcow2Snapshot;

/* An L2 entry. bitmap: extended entries; else 0. */
typedef struct Qcow2Entry {
    uint64_t word, bitmap;
} Qcow2Entry;

typedef enum { QCOW2_SPARSE_UNKNOWN, QCOW2_SPARSE, QCOW2_NOT_SPARSE } Qcow2Sparse;

typedef struct Qcow2State {
    Qcow2Header header; /* what is on the disk */
    uint32_t cluster_bits;
    uint64_t cluster_size;
    bool extended;       /* L2 entries have 16 bytes, clusters have subclusters */
    uint32_t entry_size; /* bytes of an L2 entry: 8 or 16 */
    uint32_t l2_bits;    /* log2 of entries in an L2 table */
    uint64_t unit;       /* bytes that have a state of their own: a subcluster, or a cluster */
    uint32_t refcount_order;
    uint32_t block_bits;   /* log2 of refcounts in a refcount block */
    uint64_t refcount_max; /* the largest that the width can say */

    bool external;   /* guest data lies in `data`, each cluster at its guest offset */
    char *data_name; /* as the image says */
    Store *data;     /* NULL unless external */

    LuksHeader *luks; /* crypt_method 2: the header, which lies at luks_offset; or NULL */
    uint64_t luks_offset, luks_length;

    MetaCache *meta;    /* pieces of L2 tables and refcount blocks */
    uint32_t meta_size; /* its block size: min(cluster_size, 4096) */

    /* The active L1 table, whole, as on disk but in the machine's order. */
    uint64_t *l1;
    uint32_t l1_size;
    GHashTable *l1_dirty; /* set: 512-byte sectors of the table that must be written */
    GHashTable *l1_new;   /* set: indices whose L2 table no L1 on the disk points to yet */

    /* The refcount table: table_count entries in memory (the rest is 0), of table_entries that its
     * space holds. */
    uint64_t *table;
    uint64_t table_count;
    uint64_t table_entries;
    uint64_t table_offset;   /* differs from the header's until flush has moved the table */
    GHashTable *table_dirty; /* set: 512-byte sectors of the table that must be written */

    GArray *snapshots; /* Qcow2Snapshot, from open */
    uint64_t snapshot_table_bytes;
    GPtrArray *bitmaps;    /* Qcow2KeptBitmap *, in the order of the directory; NULL: not read */
    uint32_t bitmap_count; /* the bitmaps extension, if there is one that counts */
    uint64_t bitmap_directory_offset, bitmap_directory_size;
    uint64_t bitmaps_extension;                /* where its data lies; 0: there is none */
    uint64_t extensions_end, extensions_limit; /* the end mark (0: none), and what lies behind */

    /* Writers only: where metadata lies (sorted cluster numbers of refcount blocks and active L2
     * tables). */
    GArray *metadata;

    /* Writers only: free space. Every cluster at or above used_end is free; every one below
     * gap_hint is not. */
    bool space_known;
    uint64_t used_end, gap_hint;
    uint64_t fresh_start;  /* bytes; beyond it nothing was ever written */
    uint64_t size_at_open; /* bytes of the store, cluster-aligned */
    uint64_t packed_end; /* host offset where the next compressed cluster may begin (0: nowhere) */

    /* Writers of subclusters only: Qcow2Claim, where data is on its way (qcow2-subcluster.c). */
    GHashTable *claims;

    /* Writers only: pending frees. */
    GArray *freed; /* Qcow2Run: no table in memory refers to them, tables on the disk may */
    /* Qcow2Run: no table on the disk refers to them; refcounts still to be lowered. */
    GArray *unmapped;
    bool second_pending; /* tables were written in phase 2 that no sync has covered */

    int broken;        /* memory cannot be trusted any more: all changes and flushes answer this */
    int write_error;   /* an implicit flush failed: changes answer this until a flush succeeds */
    atomic_bool dirty; /* flush has something to write */
    _Atomic Qcow2Sparse sparse;
    atomic_bool corrupt;         /* damage was seen: no more changes */
    pthread_mutex_t header_lock; /* header and header fields on the disk */
} Qcow2State;

static inline Qcow2State *qcow2_state(const Image *image)
{
    return image->state;
}

/* ---- encryption (qcow2-encryption.c) ---- */

bool qcow2_crypto_extension(Image *image, const uint8_t *data, uint32_t length, GError **error);
/* After the header was read. */
bool qcow2_encryption_open(Image *image, GError **error);
void qcow2_encryption_info(const Image *image, GVariantBuilder *data);
/* create: which crypt_method the options want, and the LUKS header for it, NULL where there is none. Where the image
 * shall be like another, it is that one's. */
bool qcow2_encryption_plan(GHashTable *options, unsigned *method, GError **error);
bool qcow2_encryption_make(unsigned method, const FormatCreate *how, const char *name,
                           GByteArray **header, GError **error);

/* ---- the external data file (qcow2-datafile.c) ---- */

bool qcow2_data_extension(Image *image, const uint8_t *data, uint32_t length, GError **error);
/* After the header was read. */
bool qcow2_data_open(Image *image, GError **error);
void qcow2_data_info(const Image *image, GVariantBuilder *data);

/* The data file alone reads as the disk does, and must go on doing so. */
static inline bool qcow2_data_is_raw(const Qcow2State *s)
{
    return s->external && (s->header.autoclear_features & QCOW2_AUTOCLEAR_DATA_RAW);
}

/* Where guest data lies. */
static inline Store *qcow2_data_store(const Image *image)
{
    const Qcow2State *s = image->state;
    return s->external ? s->data : image->store;
}

/* Every store of the image. */
int qcow2_sync(Image *image);
uint64_t qcow2_allocated_bytes(const Image *image);

/* The rest is for images that have such a file. [exclusive] */

/* Fills in the extents of a range. */
int qcow2_data_reserve(Image *image, Allocation *a);
/* The range, of which no entry says that it is data, gives its space back. */
void qcow2_data_free(Image *image, uint64_t offset, uint64_t end);
/* Of a raw data file: Format.unmap. */
int qcow2_data_zero(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);
/* Before the disk gets this size: what it will gain reads as zeroes. Nothing to do where there is no data file. */
int qcow2_data_grow(Image *image, uint64_t size);
/* At least that long; no longer than the disk. Nothing to do where there is no data file. */
int qcow2_data_extend(Image *image, uint64_t size);
int qcow2_data_cut(Image *image);

/* ---- header (qcow2-header.c) ---- */

/* Unpacks and checks the first n bytes of an image, as far as that is possible without the rest of
 * the file. name is for messages. */
bool qcow2_header_unpack(const uint8_t *head, size_t n, const char *name, Qcow2Header *header,
                         GError **error);

/* The other way; for create. Writes header->header_length bytes' worth of fields (72, 104 or 112). */
void qcow2_header_pack(const Qcow2Header *header, Qcow2HeaderDisk *disk);

/* Checks the header against the file: extensions, backing name, offsets of tables. Fills in
 * image->backing_name, backing_format and the state's fields of bitmaps. */
bool qcow2_header_read(Image *image, GError **error);

/* Finds the bitmaps extension and the end mark among extensions, which lie behind the header and may go on
 * up to limit. */
void qcow2_extensions_locate(Qcow2State *s, const uint8_t *area, uint64_t length, uint64_t limit);

/* Writes feature bits, durably, and keeps state->header in step. 0 or -errno. */
int qcow2_header_set_features(Image *image, uint64_t incompatible, uint64_t autoclear);
/* Writes where the refcount table is, durably, and keeps state->header in step. 0 or -errno. */
int qcow2_header_set_refcount_table(Image *image, uint64_t offset, uint32_t clusters);

/* The same for the active L1 table, and for the size of the disk. */
int qcow2_header_set_l1(Image *image, uint64_t offset, uint32_t entries);
int qcow2_header_set_size(Image *image, uint64_t size);

/* Both at once; and the snapshot table. */
int qcow2_header_set_disk(Image *image, uint64_t size, uint64_t offset, uint32_t entries);
int qcow2_header_set_snapshots(Image *image, uint64_t offset, uint32_t count);

/* The image is damaged: says so once in the log and, for a writer, sets the corrupt bit durably;
 * from then on every change answers -EIO. Returns -EIO. [shared] */
int qcow2_corrupt(Image *image, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* ---- snapshots (qcow2-snapshot.c) ---- */

bool qcow2_snapshots_read(Image *image, GError **error); /* fills in state->snapshots */
void qcow2_snapshots_free(Qcow2State *s);
unsigned qcow2_snapshots_info(const Image *image, unsigned most, GVariantBuilder *list);

/* The one that is called so, or has this ID. NULL with *error: none, or more than one. The pointer
 * is good until the table changes. */
const Qcow2Snapshot *qcow2_snapshot_find(const Image *image, const char *name, GError **error);

/* The L1 table of a snapshot without its COPIED flags, at least `least` entries; g_free. NULL with
 * *error. */
uint64_t *qcow2_snapshot_l1(const Image *image, const Qcow2Snapshot *snapshot, uint32_t least,
                            GError **error);

/* How many entries an L1 table must have to show a snapshot: its own, or more when its disk is larger
 * than these say. */
bool qcow2_snapshot_l1_size(const Image *image, const Qcow2Snapshot *snapshot, uint32_t *entries,
                            GError **error);

/* Makes an image that is open for reading show a snapshot. */
bool qcow2_snapshot_show(Image *image, const char *name, GError **error);

/* [exclusive] */
bool qcow2_snapshot_create(Image *image, const char *name, GError **error);
bool qcow2_snapshot_apply(Image *image, const char *name, GError **error);
bool qcow2_snapshot_delete(Image *image, const char *name, GError **error);

/* ---- the snapshot table, anew (qcow2-snapshot-table.c) [exclusive] ---- */

/* A new table in its own, new clusters, which the header does not point to yet. */
typedef struct Qcow2SnapshotTable {
    Qcow2Run run; /* count 0: the table is empty */
    uint32_t count;
} Qcow2SnapshotTable;

/* The present entries with one more (added), or without one (gone); either may be NULL. Not synced. */
bool qcow2_snapshot_table_write(Image *image, const Qcow2Snapshot *added, const Qcow2Snapshot *gone,
                                Qcow2SnapshotTable *table, GError **error);

/* Points the header to it, durably; the old one will be freed. Its space must be durable. */
bool qcow2_snapshot_table_use(Image *image, const Qcow2SnapshotTable *table, GError **error);

/* ---- all that hangs on an L1 table (qcow2-snapshot-tree.c) [exclusive] ---- */

/* -EUCLEAN, said in the log, when it cannot be true what an L1 table refers to. */
int qcow2_tree_look(Image *image, const uint64_t *l1, uint32_t entries);

/* Nothing must be dirty. Each table and all data that an L1 table refers to gets one reference
 * more. On failure nothing is changed. */
int qcow2_tree_reference(Image *image, const uint64_t *l1, uint32_t entries);

/* Looked at before. Each loses one, by way of the frees that flush does: no table on the disk refers to them any more. */
int qcow2_tree_release(Image *image, const uint64_t *l1, uint32_t entries);

/* COPIED in the active tables: where the refcount is 1, and only there. In memory. */
int qcow2_tree_mend_copied(Image *image);

/* ---- L1 and L2 (qcow2-map.c) ---- */

typedef enum {
    QCOW2_CLUSTER_UNALLOCATED,
    QCOW2_CLUSTER_ZERO,       /* no host cluster */
    QCOW2_CLUSTER_ZERO_ALLOC, /* a host cluster is kept */
    QCOW2_CLUSTER_DATA,
    QCOW2_CLUSTER_COMPRESSED,
    QCOW2_CLUSTER_DAMAGED, /* reserved bits, misaligned offset, zero flag in version 2 */
} Qcow2ClusterType;

typedef struct Qcow2Cluster {
    Qcow2ClusterType type;
    bool copied;              /* nobody else refers to its host cluster */
    bool placed;              /* ZERO_ALLOC, DATA: there is a host cluster */
    uint64_t host;            /* bytes; ZERO_ALLOC, DATA, COMPRESSED */
    uint32_t stored_length;   /* COMPRESSED: bytes from host to the end of its last sector */
    uint32_t allocated, zero; /* extended entries: subclusters that are so, bit by bit */
} Qcow2Cluster;

/* What an L2 entry says. Where there are subclusters, the type is DATA when one of them is, and the state of each is
 * asked of qcow2_subcluster_type. Does not look at the size of the file. Pure. */
Qcow2Cluster qcow2_l2_decode(const Qcow2State *s, Qcow2Entry entry);

/* In an external data file, where its guest offset is not: such an entry is damaged. Pure. */
bool qcow2_is_misplaced(const Qcow2State *s, const Qcow2Cluster *cluster, uint64_t offset);

/* qcow2_corrupt, of the entry of a guest offset. */
int qcow2_entry_damaged(Image *image, uint64_t offset, Qcow2Entry entry);

/* Bits that no entry may have. Pure. */
static inline uint64_t qcow2_l2_reserved(const Qcow2State *s)
{
    return QCOW2_L2_RESERVED | (s->header.version < 3 || s->extended ? QCOW2_ZERO : 0);
}

/* The entry at index of a table (or of a piece of one). Pure. */
static inline Qcow2Entry qcow2_entry_load(const Qcow2State *s, const uint8_t *table, uint64_t index)
{
    const uint8_t *at = table + index * s->entry_size;
    return (Qcow2Entry){load_be64(at), s->extended ? load_be64(at + 8) : 0};
}

static inline void qcow2_entry_store(const Qcow2State *s, uint8_t *table, uint64_t index,
                                     Qcow2Entry entry)
{
    uint8_t *at = table + index * s->entry_size;
    store_be64(at, entry.word);
    if (s->extended) {
        store_be64(at + 8, entry.bitmap);
    }
}

static inline uint64_t qcow2_entries_per_piece(const Qcow2State *s)
{
    return s->meta_size / s->entry_size;
}

/* Where the offset of a compressed entry ends and its number of sectors begins. Pure. */
uint32_t qcow2_compressed_offset_bits(const Qcow2State *s);

/* All clusters of the image's own file that the entry refers to (count 0: none). */
Qcow2Run qcow2_cluster_run(const Qcow2State *s, const Qcow2Cluster *cluster);

/* Whether a table of that many clusters may lie at offset: aligned, not in cluster 0, inside the
 * file (which may cut its last cluster short). */
bool qcow2_table_offset_ok(const Image *image, uint64_t offset, uint64_t clusters);

/* The offset of the L2 table of an L1 index (0: none), checked. 0 or -EIO. [shared] */
int qcow2_l2_offset(Image *image, uint64_t l1_index, uint64_t *offset);

/* Pins the piece of the L2 table that holds entry `index` (of the whole table); *first is the index
 * of its first entry. [shared] */
int qcow2_l2_get(Image *image, uint64_t l2_offset, uint64_t index, MetaBlock **block,
                 uint64_t *first);

/* The entries of an L1 table that a disk of that size needs. Pure. */
static inline uint64_t qcow2_l1_needed(const Qcow2State *s, uint64_t size)
{
    return div_round_up(size, UINT64_C(1) << (s->cluster_bits + s->l2_bits));
}

int qcow2_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list);
int qcow2_decode(Image *image, const Extent *extent, const uint8_t *stored, size_t stored_length,
                 uint8_t *unit);

/* ---- refcounts (qcow2-refcount.c, qcow2-table.c) ---- */

#define QCOW2_SECTOR_ENTRIES 64 /* table entries in 512 bytes */

/* The refcount at index in a refcount block (or in a piece of one that starts on a byte). Pure. */
uint64_t qcow2_refcount_load(const uint8_t *block, uint64_t index, uint32_t refcount_order);
void qcow2_refcount_store(uint8_t *block, uint64_t index, uint32_t refcount_order, uint64_t value);

/* Reads the refcount table from where the header says. */
bool qcow2_refcount_table_read(Image *image, GError **error);

/* Reads the active L1 table. */
bool qcow2_l1_read(Image *image, GError **error);

/* Forgets all that is cached of the header, L1, L2 and refcounts (dirty pieces too) and reads it
 * again; for check, after it has written behind the cache's back. [exclusive] */
bool qcow2_reload(Image *image, GError **error);

/* 0 for clusters that no block describes. -EIO (after qcow2_corrupt) for a damaged table entry.
 * [shared] */
int qcow2_refcount_get(Image *image, uint64_t cluster, uint64_t *refcount);

/* Sets it in memory; written by the next flush, before tables. -ERANGE: more than the width can
 * say. -ENOENT: not 0, and no refcount block describes the cluster. [exclusive] */
int qcow2_refcount_set(Image *image, uint64_t cluster, uint64_t refcount);

/* Sets the refcounts of free clusters, described by blocks, to 1. [exclusive] */
int qcow2_refcount_raise(Image *image, Qcow2Run run);

/* Adds one reference to each cluster of the run, all in use; *done says how many were changed.
 * -ERANGE: more than the width can say. [exclusive] */
int qcow2_refcount_add(Image *image, Qcow2Run run, uint64_t *done);

/* Takes away one reference of each cluster of the run; *done says how many were changed, those
 * whose refcount became 0 are appended to zeroed. [exclusive, flush] */
int qcow2_refcount_drop(Image *image, Qcow2Run run, uint64_t *done, GArray *zeroed);

/* A refcount block for the region of the free cluster `at` must be there afterwards. *made: it was
 * not there; free space has been used up for it, at `at` or elsewhere. [exclusive] */
int qcow2_refcount_need_block(Image *image, uint64_t at, bool *made);

/* Makes a free cluster the block of a region. */
int qcow2_refcount_link_block(Image *image, uint64_t region, uint64_t cluster, bool fresh);

/* A piece of a refcount block, pinned, which describes the clusters from first to end. block is
 * NULL where nothing describes them: all are free. Put it back after a get that gave 0. */
typedef struct Qcow2Piece {
    MetaBlock *block;
    uint64_t first, end;
} Qcow2Piece;

int qcow2_piece_get(Image *image, uint64_t cluster, Qcow2Piece *piece);
void qcow2_piece_put(Qcow2State *s, Qcow2Piece *piece);
uint64_t qcow2_piece_load(const Qcow2State *s, const Qcow2Piece *piece, uint64_t cluster);
void qcow2_piece_store(Qcow2State *s, Qcow2Piece *piece, uint64_t cluster, uint64_t refcount);

/* Makes room in memory for that many table entries; false: out of memory. */
bool qcow2_table_reserve(Qcow2State *s, uint64_t count);

/* Makes a larger table, in memory, that has an entry for region; flush moves to it. -EFBIG: over
 * its limit. */
int qcow2_table_grow(Image *image, uint64_t region);

/* Reserves clusters that lie together, in a gap or at the end of the file, for a table; what they hold
 * is not known. [exclusive] */
int qcow2_alloc_table(Image *image, uint64_t clusters, Qcow2Run *run);

/* ---- free space (qcow2-alloc.c) ---- */

/* Reserves up to `want` (at least 1) clusters that lie together: refcounts 1, the store grown to
 * hold them. *fresh: they read as zeroes. 0 or -errno (-ENOSPC, -EFBIG, -EIO). [exclusive] */
int qcow2_alloc_run(Image *image, uint64_t want, Qcow2Run *run, bool *fresh);

/* Gives back what no table on the disk ever referred to. Never fails: at worst the space leaks.
 * [exclusive] */
void qcow2_alloc_return(Image *image, Qcow2Run run);

/* Before free clusters are put to use: none is metadata, an L2 entry can say their offset, the
 * store holds them. */
int qcow2_space_prepare(Image *image, Qcow2Run run, bool *fresh);

int qcow2_space_scan(Image *image);                      /* finds used_end [exclusive] */
void qcow2_space_freed(Qcow2State *s, uint64_t cluster); /* a refcount became 0 */
void qcow2_space_used(Qcow2State *s, Qcow2Run run);      /* refcounts became 1 */

int qcow2_write_zeroes(Image *image, uint64_t offset); /* over one cluster */
/* Guest bytes to where the extent says (offset, length, host_offset), encrypted where the image is. */
int qcow2_write_data(Image *image, Extent extent, const uint8_t *bytes);

/* Appends a run to an array of Qcow2Run; joined with the last one where it goes on. */
void qcow2_run_append(GArray *runs, Qcow2Run run);

/* Whether metadata lies in the run: header, L1, active L2 tables, refcount table and blocks,
 * snapshot table and the snapshots' L1 tables. Writers only. [shared] */
bool qcow2_overlaps_metadata(const Image *image, Qcow2Run run);
void qcow2_metadata_add(Qcow2State *s, uint64_t cluster);
void qcow2_metadata_remove(Qcow2State *s, uint64_t cluster);
void qcow2_metadata_index(Image *image); /* builds it anew from L1 and refcount table */

/* Whether two tables or blocks claim one cluster, as in no sound image. */
bool qcow2_metadata_is_shared(const Qcow2State *s, uint64_t *cluster);

/* ---- L2 entries, for changes (qcow2-l2.c) ---- */

/* A place in the L2 tables; keeps the piece pinned that was used last. [exclusive] */
typedef struct Qcow2Cursor {
    Image *image;
    MetaBlock *block;    /* NULL: there is no L2 table */
    uint64_t start, end; /* guest range that it describes */
    uint64_t l1_index;
} Qcow2Cursor;

void qcow2_cursor_init(Qcow2Cursor *cursor, Image *image);
void qcow2_cursor_release(Qcow2Cursor *cursor); /* unpins; the cursor can be used again */
int qcow2_cursor_seek(Qcow2Cursor *cursor, uint64_t offset);

/* What the cluster of a guest offset is. 0 or -errno; never DAMAGED. */
int qcow2_cursor_get(Qcow2Cursor *cursor, uint64_t offset, Qcow2Cluster *cluster);

/* Changes its entry in memory; makes the L2 table, or a copy of one that is shared, where that is
 * needed. */
int qcow2_cursor_set(Qcow2Cursor *cursor, uint64_t offset, Qcow2Entry entry);

/* The L1 entry must refer to a table that is ours alone. */
int qcow2_l2_prepare(Image *image, uint64_t l1_index);

/* ---- subclusters (qcow2-subcluster.c) ---- */

/* Those that a guest range touches, all in one cluster: bits. Pure. */
uint32_t qcow2_subcluster_mask(const Qcow2State *s, uint64_t offset, uint64_t length);

/* The state of a part, numbered 0 to 31; of the whole cluster where there are no parts. Pure. */
Qcow2ClusterType qcow2_subcluster_type(const Qcow2State *s, const Qcow2Cluster *cluster,
                                       unsigned index);

/* How many parts from index on, at most up to `end`, have the state of that one. Pure. */
unsigned qcow2_subcluster_run(const Qcow2Cluster *cluster, unsigned index, unsigned end);

/* The bitmap of an entry. Pure. */
uint64_t qcow2_subcluster_bitmap(uint32_t allocated, uint32_t zero);

/* Format.unit_at. [exclusive] */
int qcow2_unit_at(Image *image, uint64_t offset, uint64_t *unit);

/* Whether the cluster can only be replaced as a whole: some of it is compressed, or shared. Pure. */
bool qcow2_is_indivisible(const Qcow2State *s, const Qcow2Cluster *cluster);

/* Where parts of a guest cluster are being written now. [exclusive] */
bool qcow2_claimed(const Qcow2State *s, uint64_t offset, uint64_t *host);
void qcow2_claim(Qcow2State *s, uint64_t offset, uint64_t host);
/* One claim less; false: nobody else has one. */
bool qcow2_unclaim(Qcow2State *s, uint64_t offset);

/* ---- changes (qcow2-write.c) and flush (qcow2-flush.c) ---- */

int qcow2_allocate(Image *image, Allocation **list, unsigned count);
int qcow2_commit(Image *image, Allocation **list, unsigned count);
void qcow2_abandon(Image *image, Allocation **list, unsigned count);
int qcow2_unmap(Image *image, uint64_t offset, uint64_t length, UnmapFlags flags);

/* Below this guest offset, unallocated may not read as zeroes. */
uint64_t qcow2_backing_end(const Image *image);

/* Whole units lose what they hold, also behind the end of the disk: zero below zero_end,
 * unallocated from there on. The L1 table has entries for all of them. [exclusive] */
int qcow2_drop(Image *image, uint64_t offset, uint64_t end, uint64_t zero_end);

bool qcow2_resize(Image *image, uint64_t size, GError **error);

/* 0, or why nothing may be changed. Tries again the flush that said so. [exclusive] */
int qcow2_may_change(Image *image);

int qcow2_flush(Image *image);
int qcow2_settle(Image *image); /* flushes until nothing is left to write or to free */
int qcow2_finish(Image *image);
int qcow2_trim(Image *image); /* cuts off the end of the file that nothing uses */
bool qcow2_is_dirty(const Image *image);
void qcow2_update_dirty(Qcow2State *s); /* after any change */
void qcow2_free_later(Qcow2State *s,
                      Qcow2Run run);    /* no table in memory refers to the run any more */
void qcow2_flush_if_full(Image *image); /* what changes run at their end */
int qcow2_make_room(Image *image);      /* the same, for who can fail at once */

/* ---- compressed clusters (qcow2-compress.c) ---- */

int qcow2_encode(Image *image, const uint8_t *unit, uint32_t unit_length, uint8_t *stored,
                 uint32_t room);

/* Reserves the bytes of an Allocation with a stored_length. [exclusive] */
int qcow2_compressed_reserve(Image *image, Allocation *a);

/* The L2 entry of such an extent; false: it lies too far behind in the file to say so. Pure. */
bool qcow2_compressed_entry(const Qcow2State *s, const Extent *extent, uint64_t *entry);

/* ---- the backing's name (qcow2-backing.c) ---- */

bool qcow2_set_backing(Image *image, const char *name, const char *format, const Image *backing,
                       GError **error);

/* ---- bitmaps (qcow2-bitmap*.c) ---- */

void qcow2_mark(Image *image, uint64_t offset, uint64_t length); /* [any] */
char **qcow2_bitmap_names(Image *image);
DirtyMap *qcow2_bitmap_get(Image *image, const char *name, GError **error);
bool qcow2_bitmap_change(Image *image, const BitmapChange *change, GError **error);

/* ---- tools (qcow2-check*.c, qcow2-create.c) ---- */

extern const FormatOption qcow2_create_options[];
bool qcow2_measure(const FormatCreate *how, FormatMeasure *measure, GError **error);
bool qcow2_create_like(const Image *image, GHashTable *options, GError **error);
bool qcow2_create(Store *store, const FormatCreate *how, GError **error);
bool qcow2_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

#endif
