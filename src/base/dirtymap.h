/*
 * Which parts of a disk were written: one bit for each granule.
 *
 * Marks come from many threads at once and cost no lock; memory is taken for 4 KiB of bits at a time,
 * where something is marked. In its serial form, as images keep it, the bit of granule g is bit g % 8
 * of byte g / 8.
 */
#ifndef BASE_DIRTYMAP_H
#define BASE_DIRTYMAP_H

#include <stdbool.h>
#include <stdint.h>

typedef struct DirtyMap DirtyMap;

#define DIRTYMAP_GRANULARITY_MIN 9                     /* bits */
#define DIRTYMAP_GRANULARITY_MAX 31                    /* bits */
#define DIRTYMAP_BYTES_MAX       (UINT64_C(512) << 20) /* of the serial form */

/* How long the serial form is. Pure. */
uint64_t dirtymap_serial_size(uint64_t size, unsigned granularity_bits);

/* Nothing is marked. NULL: its serial form would be over the limit, or there is no memory. */
DirtyMap *dirtymap_new(uint64_t size, unsigned granularity_bits);
void dirtymap_free(DirtyMap *map); /* NULL is fine */

/* The range lies inside the disk. [any] */
void dirtymap_mark(DirtyMap *map, uint64_t offset, uint64_t length);

/* Whether the byte at offset is marked, and in *run how many bytes, 1 to length, say the same. [any] */
bool dirtymap_get(const DirtyMap *map, uint64_t offset, uint64_t length, uint64_t *run);

/* Nobody marks meanwhile: */

void dirtymap_clear(DirtyMap *map);

typedef enum { DIRTYMAP_NONE, DIRTYMAP_ALL, DIRTYMAP_SOME } DirtyMapFill;

/* `length` bytes of the serial form from `at` on, both multiples of 512; zeroes behind its end. */
DirtyMapFill dirtymap_save(const DirtyMap *map, uint64_t at, uint64_t length, uint8_t *bytes);
/* The same range; bits behind the end are dropped. bytes NULL: all of them are set. */
void dirtymap_load(DirtyMap *map, uint64_t at, uint64_t length, const uint8_t *bytes);

#endif
