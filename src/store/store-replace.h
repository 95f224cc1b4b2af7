/*
 * Host files that get other contents all at once, and their names.
 */
#ifndef STORE_STORE_REPLACE_H
#define STORE_STORE_REPLACE_H

#include <stddef.h>
#include <sys/stat.h>

/* Another file, with these bytes, durably has the name of the one that is open as `old` from path. It has the owner,
 * the mode and the locks of a writer. *fd: it, or -1 when the old one still has the name. 0 or -errno: -ESTALE when
 * path is another file by now, -EMLINK when the old one has more names, -ENOTSUP when it is no regular file.
 * [main]/[pool] */
int store_replace_file(const char *path, int old, const void *bytes, size_t length, int *fd);

/* A new file gets the mode of another, and its owner as far as we may: root's business is to give files away. 0 or
 * -errno. */
int store_copy_owner(int fd, const struct stat *like);

/* The name of path is durable. 0 or -errno. [main]/[pool] */
int store_sync_name(const char *path);

#endif
