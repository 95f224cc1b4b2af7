/*
 * Values of options that people type: sizes, switches, numbers. Used by create options and by the
 * command line. Pure. [any]
 */
#ifndef FORMATS_OPTION_H
#define FORMATS_OPTION_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* "65536", "64k", "1.5G": a number, perhaps with a fraction, and one of b k K M G T P E (powers of
 * 1024). False, and *value untouched, for anything else, a negative number and what does not fit in
 * 63 bits. */
bool option_parse_size(const char *text, uint64_t *value);

/* "on"/"off", as in qemu-img; "yes", "true", "no", "false" also, in small letters. */
bool option_parse_switch(const char *text, bool *value);

/* A plain decimal number up to maximum. */
bool option_parse_number(const char *text, uint64_t maximum, uint64_t *value);

/* The value of the option, or NULL; options may be NULL. */
const char *option_lookup(GHashTable *options, const char *name);

/* Creation makes tables alone: space for the disk is the business of who can write to the new image, and takes the
 * option away. False: it is there, and not off. */
bool option_check_preallocation(GHashTable *options, GError **error);

#endif
