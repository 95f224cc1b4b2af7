/*
 * A store in memory: the simplest one, for unit tests and fuzz targets.
 *
 * One mutex around a growing array; every function is [any]. Asynchronous transfers are done at
 * once and reported by a message. Nothing is durable or lost: store_sync does nothing.
 */
#ifndef TESTS_LIB_STORE_MEMORY_H
#define TESTS_LIB_STORE_MEMORY_H

#include <stdint.h>

#include "store/store.h"

/* A write or truncate beyond answers -ENOSPC. What grows is there twice for a moment, and fuzz targets may have 2 GiB. */
#define MEMORY_SIZE_MAX (512u << 20)

/* Copies the first size bytes of content (NULL: zeroes). */
Store *store_memory_new(const char *name, const void *content, uint64_t size);

/* What the store holds, and how much of it. Valid until the next operation. */
const uint8_t *store_memory_content(Store *store, uint64_t *size);

/* From now on every write is refused, as on a read-only host file. */
void store_memory_set_read_only(Store *store);

/* From now on so many writes succeed, so many fail after them, and the others succeed. */
void store_memory_fail_writes(Store *store, uint64_t first, uint64_t count);

/* How many so far. */
uint64_t store_memory_syncs(Store *store);

#endif
