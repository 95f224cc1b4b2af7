/*
 * qcow2 check: what its files share. Private to formats/qcow2-check*.c.
 *
 *     qcow2-check.c            the order of things: scan, mend, scan again
 *     qcow2-check-counts.c     how often each host cluster is referred to, and what the image says
 *     qcow2-check-scan.c       refers to all but guest data: header, snapshots, refcount blocks ...
 *     qcow2-check-bitmap.c     refers to the persistent bitmaps
 *     qcow2-check-tables.c     L1 and L2 tables: refers to guest data, looks at every entry
 *     qcow2-check-refcounts.c  reads, compares, raises and lowers refcounts
 *     qcow2-check-rebuild.c    refcounts anew, in new space
 *     qcow2-check-entries.c    mends entries of L1 and L2 tables
 *     qcow2-check-unshare.c    gives data that lies on top of something else a place of its own
 *
 * Everything is read from the store, past the metadata cache. [exclusive]
 */
#ifndef FORMATS_QCOW2_CHECK_H
#define FORMATS_QCOW2_CHECK_H

#include "formats/qcow2.h"

/* ---- counts (qcow2-check-counts.c) ---- */

#define COUNT_CHUNK_BITS 10
#define COUNT_CHUNK      (1u << COUNT_CHUNK_BITS)

/* Neighbouring clusters. 0xffff: the number is in the table of large ones. */
typedef struct CountChunk {
    uint64_t first; /* cluster */
    uint16_t wanted[COUNT_CHUNK];
    uint16_t found[COUNT_CHUNK];
} CountChunk;

/* Two numbers a cluster: wanted, how often tables refer to it; found, its refcount on disk. */
typedef struct Counts {
    GHashTable *chunks; /* chunk number -> CountChunk */
    CountChunk *last;
    GHashTable *large_wanted, *large_found; /* cluster -> uint64_t, made when needed */
    uint64_t bytes, limit;                  /* memory taken, and how much may be */
    bool full;                              /* something was not counted: the limit is reached */
} Counts;

void counts_init(Counts *counts, uint64_t limit);
void counts_clear(Counts *counts);
uint64_t counts_wanted(Counts *counts, uint64_t cluster);
uint64_t counts_found(Counts *counts, uint64_t cluster);
void counts_set_wanted(Counts *counts, uint64_t cluster, uint64_t value);
void counts_set_found(Counts *counts, uint64_t cluster, uint64_t value);

/* All chunks, in the order of clusters: CountChunk *. */
GPtrArray *counts_sorted(Counts *counts);

/* ---- the check ---- */

/* An L2 table, and how many L1 entries point to it: in all L1 tables, and in the active one. */
typedef struct CheckTable {
    uint64_t offset;
    uint32_t l1_index; /* of one of them: which part of the disk the table is about */
    uint32_t references, active;
} CheckTable;

/* A run of clusters that nothing else may refer to. */
typedef struct CheckOwned {
    uint64_t offset, length;
    const char *what;
} CheckOwned;

typedef struct Qcow2Check {
    Image *image;
    Qcow2State *s;
    Store *store;
    CheckResult *result; /* counts of this scan */
    uint64_t cluster_size;
    uint64_t file_size, file_clusters;

    Counts counts;
    GArray *tables;   /* CheckTable, ascending, each once */
    GArray *owned;    /* CheckOwned */
    uint64_t *blocks; /* the refcount table */
    uint64_t block_count;

    bool whole_blocks;      /* read refcounts behind the end of the file, too */
    bool skip_refcounts;    /* do not refer to refcount table and blocks: they will be replaced */
    bool refcounts_damaged; /* table or blocks cannot be used as they are */
    uint64_t bad_entries;   /* of L1 and L2 tables, which mending would change */
    uint64_t bad_copied;    /* entries whose COPIED flag is wrong */
    uint64_t stale;    /* refcounts behind the end of the file: no leaks, but wrong once it grows */
    uint64_t overused; /* clusters that more refer to than the image knows, or may */
    uint64_t table_bytes; /* of L1 and bitmap tables looked at so far */
    bool quiet;           /* count, but say nothing */
} Qcow2Check;

/* One look at everything. The result is in check->result, *check is good for the functions that
 * mend. False with *error: not even the main tables could be read. */
bool check_scan(Qcow2Check *check, Image *image, CheckResult *result, GError **error);
void check_clear(Qcow2Check *check);

/* A finding. times: how often qemu counts it. */
void check_corruption(Qcow2Check *check, uint64_t times, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
void check_leak(Qcow2Check *check, uint64_t cluster, uint64_t found, uint64_t wanted);
void check_error(Qcow2Check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);
void check_say(Qcow2Check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Counts `times` references to each cluster that the range touches. False, and a corruption, when
 * it ends a cluster or more behind the end of the file; nothing is counted then. */
bool check_refer(Qcow2Check *check, uint64_t offset, uint64_t length, uint64_t times,
                 const char *what);
/* Its two halves: whether the range is acceptable, as it is when it begins in the file and ends at most inside the
 * cluster in which the file does; and the counting of one that is. */
bool check_range_ok(const Qcow2Check *check, uint64_t offset, uint64_t length);
void check_count(Qcow2Check *check, uint64_t offset, uint64_t length, uint64_t times);
/* Remembers that nothing else may refer to the range. */
void check_own(Qcow2Check *check, uint64_t offset, uint64_t length, const char *what);

/* qcow2-check-bitmap.c */
void check_scan_bitmaps(Qcow2Check *check);

/* qcow2-check-tables.c */

/* What is wrong with an entry, and what mending makes of it. */
typedef struct CheckVerdict {
    Qcow2Entry mended;  /* the entry as it should be; COPIED is not looked at */
    const char *reason; /* NULL: nothing is wrong */
    bool lost;          /* mending gives up what it pointed to */
} CheckVerdict;

CheckVerdict check_l1_entry(const Qcow2Check *check, uint64_t entry);
/* The entry at an index of a table. */
CheckVerdict check_l2_entry(const Qcow2Check *check, const CheckTable *table, uint64_t index,
                            Qcow2Entry entry);

/* The number of the cluster of the disk that such an entry is about. */
static inline uint64_t check_guest_cluster(const Qcow2Check *check, const CheckTable *table,
                                           uint64_t index)
{
    return ((uint64_t)table->l1_index << check->s->l2_bits) + index;
}

/* How a message names an entry; g_free. */
char *check_entry_text(const Qcow2Check *check, Qcow2Entry entry);

static inline uint64_t check_table_entries(const Qcow2Check *check)
{
    return UINT64_C(1) << check->s->l2_bits;
}

bool check_only_table(Qcow2Check *check, const CheckTable *table); /* nothing else refers to it */

void check_collect_l1(Qcow2Check *check, uint64_t offset, uint32_t entries, bool active);
void check_sort_tables(Qcow2Check *check);
void check_scan_tables(Qcow2Check *check);

/* Calls visit for each L2 table with its entries as on disk; where visit says true, it changed
 * them, and they are written back. 0 or the first -errno; a table that cannot be read is a check
 * error, and passed over. */
typedef bool (*CheckVisit)(Qcow2Check *check, const CheckTable *table, uint8_t *entries,
                           void *opaque);
int check_visit_tables(Qcow2Check *check, CheckVisit visit, void *opaque);

/* qcow2-check-refcounts.c */
bool check_load_refcounts(Qcow2Check *check, GError **error);
uint64_t check_wanted(Qcow2Check *check, uint64_t cluster); /* as far as the width can say it */
uint64_t check_found(Qcow2Check *check,
                     uint64_t cluster); /* the refcount on disk, of any cluster */
void check_refer_refcounts(Qcow2Check *check);
void check_compare(Qcow2Check *check);

typedef enum { CHECK_RAISE, CHECK_LOWER } CheckDirection;
/* Writes the wanted counts where they are above (or below) the found ones; not synced. 0 or -errno. */
int check_write_refcounts(Qcow2Check *check, CheckDirection direction);
/* Whether raising needs refcount blocks that do not exist. */
bool check_needs_rebuild(Qcow2Check *check);

/* qcow2-check-rebuild.c: all refcounts anew, synced, and the header points to them. check was
 * scanned with skip_refcounts. keep_leaks: what nothing refers to stays allocated. 0 or -errno. */
int check_rebuild(Qcow2Check *check, bool keep_leaks);

/* qcow2-check-unshare.c: data that lies where other data or metadata lies gets clusters of its own.
 * Synced but for the entries. *changed: something was written. 0 or -errno. */
int check_unshare(Qcow2Check *check, bool *changed);

/* qcow2-check-entries.c: 0 or -errno; not synced. */
int check_mend_entries(Qcow2Check *check, bool *tables_lost);
int check_mend_copied(Qcow2Check *check);

#endif
