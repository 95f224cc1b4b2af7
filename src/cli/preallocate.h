/*
 * Space for a part of a disk before anybody writes there, for create, convert and resize. [main]
 */
#ifndef CLI_PREALLOCATE_H
#define CLI_PREALLOCATE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "map/image.h"

typedef enum {
    PREALLOCATE_OFF,
    PREALLOCATE_METADATA, /* the format's tables say where it lies; the host gives space when it is written */
    PREALLOCATE_FALLOC, /* the host has space reserved, too */
    PREALLOCATE_FULL,   /* zeroes are written */
} Preallocation;

/* False: no such name. NULL is off. */
bool preallocation_parse(const char *name, Preallocation *how, GError **error);

/* Takes the option preallocation out of those of a new image; *name: what it says, g_free. */
bool preallocation_take(GHashTable *options, const char *backing_name, char **name,
                        Preallocation *how, GError **error);

/* Whether the image can do that; before anything is changed. */
bool preallocate_check(const Image *image, Preallocation how, GError **error);

/* Gives the end of the disk, from offset `from` on, its space. What is there reads as zeroes, and does
 * so afterwards. progress may be NULL. */
bool preallocate(Image *image, uint64_t from, Preallocation how,
                 void (*progress)(void *context, uint64_t done, uint64_t total), GError **error);

#endif
