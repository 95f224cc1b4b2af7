/*
 * Two levels of tables with 64-bit entries, and nothing that records what is free (qcow version 1, qed): L1 in memory,
 * pieces of L2 tables in a cache, new tables and clusters from the end of the file.
 *
 *     tabletree.c         entries, space; allocate, commit, abandon, flush, finish
 *     tabletree-packed.c  compressed clusters that are written
 *     tabletree-scan.c    who uses which part of the file: for writers and for check
 *     tabletree-resize.c  for disks that become larger
 *     tabletree-check.c   check and repair
 *
 * A format's state begins with a TableTree, so that functions named here stand in its table of callbacks as they are.
 * They block. [pool]
 */
#ifndef FORMATS_TABLETREE_H
#define FORMATS_TABLETREE_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "formats/clusteruse.h"
#include "formats/format.h"
#include "map/image.h"
#include "store/metacache.h"

#define TABLE_TREE_PIECE         512u /* of a table, in the cache and on its way to the disk */
#define TABLE_TREE_PIECE_ENTRIES 64u
#define TABLE_TREE_MAX_L1_BYTES  (32u << 20)

/* What an entry of an L2 table says. */
typedef struct TreeCluster {
    uint64_t host;          /* 0: it has no place in the file */
    bool zero;              /* reads as zeroes */
    bool compressed;        /* stored_length bytes from host on, which need not be aligned */
    uint32_t stored_length; /* of a compressed one */
} TreeCluster;

typedef struct TableTree {
    uint64_t l1_offset;
    uint32_t l1_size; /* entries that the disk needs */
    uint32_t cluster_bits, l2_bits;
    bool l1_little, l2_little; /* the order of bytes */
    uint64_t head_end;         /* no table or cluster begins below */
    uint64_t cluster_size, l2_bytes;
    uint64_t *l1;
    MetaCache *meta; /* pieces of L2 tables */

    TreeCluster (*decode)(const struct TableTree *tree, uint64_t entry); /* pure */
    /* The entry of a compressed cluster, pure. NULL: the format has none, or nobody writes them. */
    uint64_t (*encode)(const struct TableTree *tree, uint64_t host, uint32_t stored_length);
    /* Takes what header, name and L1 use. */
    void (*take_head)(const Image *image, ClusterUse *use);
    /* Called before the first change that allocates; durable when it returns 0. May be NULL. */
    int (*before_change)(Image *image);

    /* Writers only. */
    uint64_t used_end;    /* everything from here on is free */
    uint64_t fresh_start; /* from here on nothing was ever written */
    uint64_t packed_end;  /* where the compressed cluster that was placed last ends; 0: none was */
    uint64_t size_at_open;
    GHashTable *l1_dirty; /* set: pieces of L1 that must be written */
    GHashTable *l1_new;   /* set: indices whose table no L1 on the disk points to yet */
    bool second_pending;  /* tables were written that no sync has covered */
    int write_error;      /* an implicit flush failed: changes answer this until one succeeds */
    atomic_bool dirty;    /* flush has something to write */
} TableTree;

static inline TableTree *table_tree(const Image *image)
{
    return image->state;
}

/* ---- tabletree.c ---- */

/* Reads L1 and makes the cache; the fields above `l1` are set, and all of L1 lies in the file. */
bool table_tree_open(TableTree *tree, const Image *image, GError **error);
void table_tree_clear(TableTree *tree);

/* Where the entry of a guest offset lies in the file; 0: there is no table. -EIO: not in the file.
 * [shared] */
int table_tree_find(const Image *image, uint64_t offset, uint64_t *place);

/* Reads or changes the entry at a place of the file. [shared]; [exclusive] */
int table_tree_get(TableTree *tree, uint64_t place, uint64_t *entry);
int table_tree_set(TableTree *tree, uint64_t place, uint64_t entry, MetaOrder order);

/* Whether all of a table may be there: aligned to an entry, behind the header, and in the file. */
bool table_tree_place_ok(const Image *image, uint64_t offset, uint64_t length);
/* Whether a plain cluster may be there: behind the header, and it begins in the file. Where the file ends inside of it,
 * the rest reads as zeroes. */
bool table_tree_cluster_ok(const Image *image, uint64_t offset);

/* Changes an L1 entry in memory. [exclusive] */
void table_tree_l1_set(TableTree *tree, uint64_t index, uint64_t offset);

/* What an entry is to be written with: nothing on the disk points to a new table before the first sync. */
MetaOrder table_tree_order(const TableTree *tree, uint64_t offset);

/* Sees to it that there are tables for all of the range. [exclusive] */
int table_tree_make_tables(Image *image, uint64_t offset, uint64_t length);

/* Takes length bytes (whole clusters) at the end of the file. *fresh: they read as zeroes.
 * [exclusive] */
int table_tree_space_take(Image *image, uint64_t length, uint64_t *offset, bool *fresh);

/* Gives back what was taken last; it may have been written to. Other space stays taken. [exclusive] */
void table_tree_space_return(TableTree *tree, uint64_t offset, uint64_t length);

/* 0 when changes may be made: what an earlier flush could not write is written now. Before each change. [exclusive] */
int table_tree_may_change(Image *image);
/* After each change. [exclusive] */
void table_tree_changed(Image *image);

/* Where the backing ends: 0 without one, UINT64_MAX where it was not opened and may have any length. */
uint64_t table_tree_backing_end(const Image *image);

/* Gives the bytes of the plain clusters in a range back to the host; the clusters stay where they are. */
int table_tree_punch(Image *image, uint64_t offset, uint64_t length, StorePunch how);

int table_tree_allocate(Image *image, Allocation **list, unsigned count);
int table_tree_commit(Image *image, Allocation **list, unsigned count);
void table_tree_abandon(Image *image, Allocation **list, unsigned count);
bool table_tree_start_writing(Image *image, GError **error);
int table_tree_flush(Image *image);
int table_tree_finish(Image *image);
bool table_tree_is_dirty(const Image *image);

/* ---- tabletree-packed.c ---- */

/* Reserves the place of a compressed cluster (Allocation.stored_length); gives it back. [exclusive] */
int table_tree_packed_reserve(Image *image, Allocation *a);
void table_tree_packed_return(TableTree *tree, const Extent *extent);

/* ---- tabletree-scan.c ---- */

/* Takes what an L2 entry points to; false when it is not in the file, or not aligned, or another's. */
bool table_tree_scan_entry(const Image *image, ClusterUse *use, uint64_t entry);

/* Going through a table: the first piece at or behind `place` that may have entries, or end; the entries of a piece, 0
 * or -errno; the piece after one that had these entries. Pieces are aligned. */
uint64_t table_tree_skip_hole(const Image *image, uint64_t place, uint64_t end);
int table_tree_read_piece(TableTree *tree, uint64_t place, uint64_t *entries);
uint64_t table_tree_next_piece(const Image *image, uint64_t place, uint64_t end,
                               const uint64_t *entries);

/* Sees that everything lies in the file and nothing on top of anything else: what a writer needs. */
bool table_tree_scan(Image *image, GError **error);

/* ---- tabletree-resize.c: before a disk becomes larger ---- */

/* The cluster that the end of the disk cuts reads as zeroes behind the end. [exclusive] */
int table_tree_zero_last(Image *image);
/* Drops whatever entries the last table has behind the end. [exclusive] */
int table_tree_clear_behind(Image *image);

/* ---- tabletree-check.c ---- */

bool table_tree_check(Image *image, CheckRepair repair, CheckResult *result, GError **error);

#endif
