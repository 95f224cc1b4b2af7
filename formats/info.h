/*
 * Entries of "format-specific" in what `info` says. Pure. [any]
 */
#ifndef FORMATS_INFO_H
#define FORMATS_INFO_H

#include <glib.h>

/* "{sv}": a text that comes out of an image, so it may be any bytes: what is no UTF-8 becomes U+FFFD. length may be
 * -1: up to the NUL. NULL counts as empty. */
void info_add_text(GVariantBuilder *data, const char *key, const char *text, gssize length);

#endif
