/*
 * The names of parents in vhd and vhdx: UTF-16, with the slashes of Windows. Pure. [any]
 */
#ifndef FORMATS_WINDOWS_NAME_H
#define FORMATS_WINDOWS_NAME_H

#include <glib.h>
#include <stdbool.h>

/* UTF-8, without what follows a NUL; NULL when it is no text, or empty. encoding: "UTF-16LE" or
 * "UTF-16BE". g_free. */
char *windows_name_decode(const void *bytes, gsize length, const char *encoding);

/* Slashes as they are here; "./" at the start says nothing. Takes over name, which may be NULL;
 * NULL when nothing is left. g_free. */
char *windows_name_to_local(char *name);

/* "a/b.vhd" is ".\a\b.vhd" to Windows. NULL for a name with a backslash, which nobody would find. g_free. */
char *windows_name_from_local(const char *name, GError **error);

/* The last part of an absolute path of another system, which is tried beside the image; NULL for a
 * relative name. g_free. */
char *windows_name_substitute(const char *local);

#endif
