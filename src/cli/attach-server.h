/*
 * The server of an attached image, seen from attach and detach: found by its control socket, or
 * started. [main]
 */
#ifndef CLI_ATTACH_SERVER_H
#define CLI_ATTACH_SERVER_H

#include <glib.h>
#include <stdbool.h>

#include "cli/options.h"

/* The real path of an image, also of one whose file is gone. g_free. */
char *attach_server_image(const char *image);

/* False with *error when a block device of the image is in the kernel: nobody but its server may write
 * to the image, and when that is dead no lock says so. */
bool attach_server_not_attached(const char *image, GError **error);

/* A file of ours in the runtime directory: "/run/cownbd/attach-<hash of the image's path>SUFFIX".
 * NULL: there is no such directory. g_free. */
#define ATTACH_JOURNAL ".journal" /* of the changes that were not flushed: engine/journal.h */
char *attach_server_file(const char *image, const char *suffix, GError **error);

/* Waits until no other attach or detach of the image is under way; theirs wait for the unlock. -1 where
 * there can be no lock: then there can be no server of attach either. */
int attach_server_lock(const char *image);
/* Where no server of attach is left, its lock goes, and its log when nothing was said there. */
void attach_server_unlock(const char *image, int lock);

/* The real path of the image that an argument of the command line means: its own, or that of a device of
 * ours. NULL with *error: the device is none. g_free. */
char *attach_server_argument(const char *device_or_image, GError **error);

/* The control socket of a living server that serves the image: the named one (control), or the
 * default one, or the image's own. NULL without *error: there is none; with it: one that does not
 * answer. g_free. */
char *attach_server_find(const char *control, const char *image, GError **error);

/* Starts a server for the image that goes on in the background, with options of `cownbd serve`
 * besides those that make it so; returns when it is ready. The device; NULL: *error is what the
 * server said. g_free. */
char *attach_server_start(const char *image, GPtrArray *options, GError **error);

/* False with *error where the user's options are none for a server in the background. */
bool attach_server_check_common(const CliCommon *common, GError **error);
/* Adds them; names of files become absolute, for the server works in another directory. */
void attach_server_add_common(GPtrArray *options, const CliCommon *common);

/* Adds the options of a server that goes on with what an earlier one left of the image. */
void attach_server_add_adopt(GPtrArray *options, const char *image);

/* Waits until a process that ends has ended; false after a minute. */
bool attach_server_wait(int pid);

#endif
