/*
 * A key file, taken apart: sections and their entries, each with its line. Pure. [any]
 *
 *      # a comment
 *      [export vm1]
 *      image=/srv/images/vm1.qcow2
 */
#ifndef CONTROL_CONFIG_SCAN_H
#define CONTROL_CONFIG_SCAN_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

#include "control/config-errors.h"

typedef struct ConfigEntry {
    char *key;
    char *raw; /* the value as it stands there, without spaces around it */
    ConfigPlace place;
} ConfigEntry;

typedef struct ConfigSection {
    char *kind; /* "export" */
    char *name; /* "vm1"; "" for a kind that has no names */
    ConfigPlace place;
    GPtrArray *entries; /* ConfigEntry *, each key once */
} ConfigSection;

/* An empty list of sections, which owns them. */
GPtrArray *config_sections_new(void);

/* Adds the sections of a file's text to those of the files before it: a section stands in one place
 * only, but for one without a name ("server"), which goes on. What is no key file, a section or a key
 * twice is an error, and the rest is read all the same. */
void config_scan(ConfigPlace file, const char *text, size_t length, GPtrArray *sections,
                 ConfigErrors *errors);

/* The entry of that key; NULL: there is none. */
const ConfigEntry *config_section_find(const ConfigSection *section, const char *key);

/* The value as GKeyFile understands it: \s \n \t \\ are spaces, line ends and so on; ';' parts the
 * elements of a list, spaces around them do not count; true or false; a whole number. NULL and false: an error was added. */
char *config_entry_text(const ConfigEntry *entry, ConfigErrors *errors);
char **config_entry_list(const ConfigEntry *entry, ConfigErrors *errors);
bool config_entry_flag(const ConfigEntry *entry, bool *value, ConfigErrors *errors);
bool config_entry_number(const ConfigEntry *entry, int *value, ConfigErrors *errors);

#endif
