/*
 * The files that create writes: the image appears under its name whole, or not at all. [main]
 *
 * An image may have more files than the one that is its target. They are named before it, and what
 * it replaces goes away before they do: whoever looks sees the old image, none, or the whole new one.
 */
#ifndef CLI_CREATE_TARGET_H
#define CLI_CREATE_TARGET_H

#include <glib.h>
#include <stdbool.h>

#include "formats/format.h"
#include "store/store.h"

typedef struct CreateTarget {
    Store *store;   /* write the image here */
    char *path;     /* where it shall be, symbolic links resolved */
    bool nameless;  /* the file has no name until then */
    char *new_path; /* where it is until then; NULL for a nameless one, and for a device, which
                       is written in place */
    /* The file that is replaced, locked so that nobody starts to use it; or NULL. */
    Store *old_store;
    bool named; /* the file has its name, but not all of the image is there yet */

    /* Set it after target_open: each new file holds what the one of its name does, so that any mixture of old and new
     * ones is the image. They are exchanged one by one. */
    bool exchange;

    FormatFiles files; /* for format->create: makes the image's other files */
    GPtrArray *beside; /* those: CreateTarget *; or NULL */
    GHashTable *parts; /* the same for ImageOpen.parts; NULL when there are none */
} CreateTarget;

/* Whether all of it is new files, and no device. */
bool target_is_new(const CreateTarget *target);

/* Refuses a target that is in use, and what is neither a file nor a block device. */
bool target_open(CreateTarget *target, const char *path, GError **error);

/* The image is complete and synced: gives its files their names, durably. */
bool target_commit(CreateTarget *target, GError **error);

/* Frees; an image that was not committed is removed. */
void target_clear(CreateTarget *target);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CreateTarget, target_clear)

/* Whether both paths are the same existing file. */
bool target_is_file(const char *path, const char *other);

#endif
