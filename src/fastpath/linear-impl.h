/*
 * The inside of the linear fast path, for its files:
 *
 *     linear.c          the device from new to stop, and the thread that follows the image
 *     linear-round.c    one change of the table: plan, flush, grow, load, suspend, resume
 *     linear-files.c    the loop devices over the image's files
 *     linear-bound.c    how many lines are good for the device
 *     linear-flush.c    whether flushes go to the server
 *     linear-adopt.c    a device that an earlier server made
 *     linear-reclaim.c  what the kernel discarded goes back to the image
 */
#ifndef FASTPATH_LINEAR_IMPL_H
#define FASTPATH_LINEAR_IMPL_H

#include <pthread.h>

#include "base/worker.h"
#include "engine/lease.h"
#include "fastpath/dm.h"
#include "fastpath/dmtable.h"
#include "fastpath/linear.h"
#include "fastpath/loop.h"

/* Of the host's page cache, bytes. */
#define LINEAR_PAGE 4096u

/* A file of the image as a block device. */
typedef struct LinearFile {
    Store *store; /* not owned: the image is open for as long */
    Loop loop;
    bool refused;     /* the kernel cannot use the file: nothing of it becomes a line */
    int64_t discards; /* counted by the device when they were last looked at */
} LinearFile;

struct Linear {
    Disk *disk;
    char *name, *uuid, *device;
    dev_t nbd;
    unsigned lines_max;
    bool read_only;
    bool fixed;      /* the image cannot change: no leases, one table */
    bool has_leases; /* attached to the disk as a holder */
    bool has_switch; /* the kernel has lines that no flush is sent to */
    LeaseHolder holder;

    pthread_mutex_t round_lock; /* one round at a time, whoever runs it; guards what follows */
    GPtrArray *files;           /* LinearFile * */
    uint64_t alignment;         /* of all devices below, bytes */
    uint64_t size;              /* of the device, bytes */
    unsigned lines_bound;       /* at present, at most lines_max */
    DmTable table;              /* live */
    bool is_untold;             /* the live table sends no flushes to the server */
    bool is_removed;            /* the device is gone: no more rounds */
    Worker *worker;             /* for requests of its own; NULL until one is made */

    pthread_t thread;
    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t wake;
    bool stopping, recalled, is_repaired;
    LinearStats stats;
};

/* What one round took. */
typedef struct LinearCost {
    uint64_t plan_us; /* to read the map and make it durable */
    uint64_t swap_us; /* to load, suspend and resume; 0: the table was right already */
    bool is_partial;  /* something was being changed: another round may map more */
} LinearCost;

/* linear-round.c: with round_lock held. False with *error: the old table runs on. ECANCELED: the
 * disk changed meanwhile, another try may do. */
bool linear_refresh(Linear *linear, LinearCost *cost, GError **error); /* reads the map anew */
/* Takes out what changes wait for, what is in except (may be NULL), and what is too much for
 * lines_bound. */
bool linear_give_back(Linear *linear, const RangeSet *except, GError **error);
/* The first table: the device is made with it. */
bool linear_create(Linear *linear, GError **error);
/* The live table is not what table says (it may map less): now it is. The leases are right. */
bool linear_repair(Linear *linear, GError **error);
/* The same lines, with none that takes flushes to the server; every other round ends that. Write
 * through must be on, and what was answered before durable. */
bool linear_leave_untold(Linear *linear, GError **error);
DmTableOptions linear_table_options(const Linear *linear);
void linear_set_table(Linear *linear, DmTable *table); /* takes over what is in it */
bool linear_find_size(Linear *linear, GError **error);

/* linear-files.c: with round_lock held. */
LinearFile *linear_file(Linear *linear, Store *store); /* opens it when it is not; never NULL */
/* Opens and grows what the table needs; runs that do not lie on their devices are taken out. False
 * when the alignment has changed: the table must be planned again. */
bool linear_files_prepare(Linear *linear, DmTable *table);
void linear_files_free(Linear *linear);

/* linear-adopt.c: with round_lock held. The device is there: finds out which of its lines are right
 * and holds them. *wrong: how many are not. */
bool linear_adopt(Linear *linear, unsigned *wrong, GError **error);

/* linear-reclaim.c: with round_lock held. */
bool linear_saw_discards(Linear *linear); /* since it last said so */
/* Gives the holes below the runs of table back to the image. */
void linear_reclaim(Linear *linear, const DmTable *table);

/* linear-bound.c: with round_lock held. */
typedef struct LinearBound {
    uint64_t flushes, looked_at; /* at the last look */
    uint64_t low_until;          /* when a bound twice as high would have been too high */
} LinearBound;
typedef enum { LINEAR_BOUND_SAME, LINEAR_BOUND_FELL, LINEAR_BOUND_ROSE } LinearBoundChange;
LinearBound linear_bound_new(const Linear *linear);
/* Adapts linear->lines_bound to how often the device is flushed. */
LinearBoundChange linear_bound_look(Linear *linear, LinearBound *bound);

/* linear-flush.c: with round_lock held. */
typedef struct LinearFlush {
    uint64_t flushes, changes; /* that the nbd device had been given at the last look */
    uint64_t looked_at;
    uint64_t changed_at; /* when the server last had too many changes */
} LinearFlush;
LinearFlush linear_flush_new(const Linear *linear);
/* Looks at the load, and swaps the table when the other kind is better for it. False with *error:
 * that failed, and all is as it was. */
bool linear_flush_look(Linear *linear, LinearFlush *flush, GError **error);
/* Counts since the nbd device was connected; 0 where they cannot be read. changes may be NULL. */
uint64_t linear_count_flushes(const Linear *linear, uint64_t *changes);

uint64_t linear_now_us(void);

#endif
