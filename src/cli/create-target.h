/*
 * The file that create writes: all of it appears under its name at once, or nothing does. [main]
 */
#ifndef CLI_CREATE_TARGET_H
#define CLI_CREATE_TARGET_H

#include <glib.h>
#include <stdbool.h>

#include "store/store.h"

typedef struct CreateTarget {
    Store *store;   /* write the image here */
    char *path;     /* where it shall be, symbolic links resolved */
    bool nameless;  /* the file has no name until then */
    char *new_path; /* where it is until then; NULL for a nameless one, and for a device, which
                       is written in place */
    Store
        *old_store; /* the file that is replaced, locked so that nobody starts to use it; or NULL */
} CreateTarget;

/* Whether it is a new file, and no device. */
bool target_is_new(const CreateTarget *target);

/* Refuses a target that is in use, and what is neither a file nor a block device. */
bool target_open(CreateTarget *target, const char *path, GError **error);

/* The image is complete and synced: gives it its name, durably. */
bool target_commit(CreateTarget *target, GError **error);

/* Frees; an image that was not committed is removed. */
void target_clear(CreateTarget *target);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CreateTarget, target_clear)

/* Whether both paths are the same existing file. */
bool target_is_file(const char *path, const char *other);

#endif
