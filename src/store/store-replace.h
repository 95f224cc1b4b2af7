/*
 * Host files that get other contents all at once, and their names.
 */
#ifndef STORE_STORE_REPLACE_H
#define STORE_STORE_REPLACE_H

#include <stddef.h>

/* Another file, with these bytes, durably has the name of the one that is open as `old` from path. It has the owner,
 * the mode and the locks of a writer. *fd: it, or -1 when the old one still has the name. 0 or -errno: -ESTALE when
 * path is another file by now, -EMLINK when the old one has more names, -ENOTSUP when it is no regular file.
 * [main]/[pool] */
int store_replace_file(const char *path, int old, const void *bytes, size_t length, int *fd);

/* The name of path is durable. 0 or -errno. [main]/[pool] */
int store_sync_name(const char *path);

#endif
