/*
 * What the commands that make images share: the format to make, -o, and the backing. [main]
 */
#ifndef CLI_CREATE_OPTIONS_H
#define CLI_CREATE_OPTIONS_H

#include "formats/format.h"

/* The format called name (NULL: raw), when images of it can be made. */
const Format *create_format(const char *name, GError **error);

/* Every name in options must be one of the format's, or one that all commands have. */
bool create_options_check(const Format *format, GHashTable *options, GError **error);

/* -o help. The exit status. */
int create_options_help(const Format *format);

/* Moves an option out of the table, unless it was given by its flag (*value) already. */
bool create_option_take(GHashTable *options, const char *name, char **value, GError **error);

/* The backing file and its format, by flag or by option, must be said together. */
bool create_backing_take(GHashTable *options, char **name, char **format, GError **error);

#endif
