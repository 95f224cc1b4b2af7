/*
 * The table of a format that says with one 32-bit number where each block of the disk lies (vhd,
 * vdi): whole in memory, written in sectors.
 *
 * block_table_get runs beside itself and beside block_table_write; the others alone.
 */
#ifndef FORMATS_BLOCKTABLE_H
#define FORMATS_BLOCKTABLE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "map/image.h"
#include "store/store.h"

/* Entries of the largest table that is opened: 16 MiB. 2 MiB blocks make a disk of 8 TiB. */
#define BLOCK_TABLE_MAX (4u << 20)

typedef enum { BLOCK_TABLE_LITTLE_ENDIAN, BLOCK_TABLE_BIG_ENDIAN } BlockTableOrder;

typedef struct BlockTable BlockTable;

/* Reads count entries, at most BLOCK_TABLE_MAX, which lie at offset of the store: the caller has
 * checked that they do. The store must stay open. NULL with *error. May block. */
BlockTable *block_table_read(Store *store, uint64_t offset, uint32_t count, BlockTableOrder order,
                             GError **error);
/* A copy in memory of a table, for another place and number of entries; new ones are `fill`. All of it is dirty. NULL:
 * no memory. */
BlockTable *block_table_resized(const BlockTable *table, uint64_t offset, uint32_t count,
                                uint32_t fill);
void block_table_free(BlockTable *table); /* changes that were not written are dropped */

uint32_t block_table_count(const BlockTable *table);
uint32_t block_table_get(const BlockTable *table, uint32_t index);
void block_table_set(BlockTable *table, uint32_t index, uint32_t value); /* in memory */
bool block_table_is_dirty(
    const BlockTable *table); /* something is not written, or flushed and not synced */

/* Writes what was set. 0 or -errno: then nothing counts as written. Does not sync. May block. */
int block_table_write(BlockTable *table);
/* The same, and syncs. The table stays dirty until this has returned 0 once. */
int block_table_flush(BlockTable *table);

/* Adds the range, which lies in one block. 0 or -errno. */
typedef int (*BlockAdd)(Image *image, uint32_t block, uint64_t offset, uint64_t length,
                        ExtentList *list);
/* Format.map, block by block, for who has the table in memory: all of the range costs nothing more, but for the memory
 * of the answer. */
int block_table_map(Image *image, uint64_t block_size, BlockAdd add, uint64_t offset,
                    uint64_t length, ExtentList *list);

/* The entries but for those equal to one of the two values, ascending. g_free. */
uint32_t *block_table_sorted(const BlockTable *table, uint32_t without, uint32_t or_without,
                             uint32_t *count);

#endif
