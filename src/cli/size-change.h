/*
 * A size as `resize` takes it: "10G", or "+1G" and "-1G" from what there is.
 */
#ifndef CLI_SIZE_CHANGE_H
#define CLI_SIZE_CHANGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct SizeChange {
    char sign; /* '+', '-'; 0: the size itself */
    uint64_t bytes;
} SizeChange;

bool size_change_parse(const char *text, SizeChange *change, GError **error);

/* What a disk of size bytes gets. False: less than nothing, or more than a disk can have. */
bool size_change_apply(const SizeChange *change, uint64_t size, uint64_t *result, GError **error);

#endif
