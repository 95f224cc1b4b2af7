/*
 * A store in memory that can go back: it remembers a base content, and scratch_reset undoes all
 * that was written since, at the cost of what was written. For building and trying thousands of
 * states that differ a little.
 *
 * The store functions are [any]; asynchronous transfers are done at once and reported by a message.
 */
#ifndef TESTS_LIB_STORE_SCRATCH_H
#define TESTS_LIB_STORE_SCRATCH_H

#include <stdint.h>

#include "store/store.h"

/* Copies the first size bytes as base and content. */
Store *store_scratch_new(const char *name, const uint8_t *content, uint64_t size);

void scratch_reset(Store *store);  /* content = base */
void scratch_commit(Store *store); /* base = content */

/* Valid until the next operation. */
const uint8_t *scratch_content(Store *store, uint64_t *size);

#endif
