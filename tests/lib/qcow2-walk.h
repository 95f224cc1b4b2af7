/*
 * Counts all references in the bytes of a qcow2 image, with code of its own: nothing of formats/ is
 * used.
 *
 * For images without compressed clusters, bitmaps and encryption.
 */
#ifndef TESTS_LIB_QCOW2_WALK_H
#define TESTS_LIB_QCOW2_WALK_H

#include <stdbool.h>
#include <stdint.h>

/* NULL when every refcount is exactly the number of references (with leaks_ok: at least), and
 * COPIED in the active tables stands where the refcount is 1; else what is wrong first, g_free. */
char *qcow2_walk(const uint8_t *bytes, uint64_t size, bool leaks_ok);

#endif
