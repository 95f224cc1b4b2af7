/*
 * Opening the files of images: those that the user names, and those that an image names.
 *
 * The descriptors are of regular files or block devices, nothing else, and are in blocking mode.
 * May block. [main]/[pool]
 */
#ifndef MAP_IMAGE_NAME_H
#define MAP_IMAGE_NAME_H

#include "map/image.h"
#include "store/store-file.h"

/* With which an image opens its files. */
static inline StoreOpenFlags image_store_flags(bool write, bool no_lock)
{
    return (write ? STORE_OPEN_WRITE : STORE_OPEN_READ_ONLY) | (no_lock ? STORE_OPEN_NO_LOCK : 0);
}

/* Opens a path that the user gave: trusted, no limits where it leads. -1 with *error. */
int image_path_open(const char *path, bool write, GError **error);

/* Opens the file called name in image, which is its what ("backing file"; for messages), which must
 * lie beneath the directory of the image or of an allowed one. -1 with *error: EACCES for a name
 * that is not allowed. *resolved: the path for messages and for names in that file; free with
 * g_free; also set when the file cannot be opened, unless the name says nothing of a file. */
int image_name_open(const Image *image, const char *what, const char *name, bool write,
                    char **resolved, GError **error);

/* Makes the file called name, as image would name it, where there is none: beneath the directory of the image, and no
 * other. The name is durable. -1 with *error. *resolved: as above. */
int image_name_make(const Image *image, const char *what, const char *name, char **resolved,
                    GError **error);

/* Where path (from the directory `at` on; AT_FDCWD) is a directory that is an image, of this format (NULL: of any): the
 * path of the file in it that is opened in its place; free with g_free. Else NULL. */
char *image_name_in_directory(int at, const char *path, const Format *format);

/* openat below the directory, following no link, or as near to that as an old kernel comes. path has no
 * "..". -1 with errno. */
int image_name_open_beneath(int directory, const char *path, int flags);

#endif
