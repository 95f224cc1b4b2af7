/*
 * The locks by which programs agree who may use an image file: the same as qemu's file driver
 * takes.
 *
 * qemu gives each permission a bit: 0 consistent read, 1 write, 2 write unchanged, 3 resize. Who
 * uses permission n holds a shared open-file-description lock on byte 100 + n; who cannot bear that
 * others use it holds one on byte 200 + n. A lock held by another on the opposite byte is a
 * conflict.
 */
#ifndef STORE_STORE_LOCK_H
#define STORE_STORE_LOCK_H

#include <glib.h>
#include <stdbool.h>

/* Takes the locks of a writer or of a reader; they last until the open file description of fd is
 * closed. EBUSY: "PATH: is in use by another process ...". May wait for the file system.
 * [main]/[pool] */
bool store_lock(int fd, const char *path, bool write, GError **error);

#endif
