/*
 * The inside of a configuration, for its files.
 *
 *      config.c          files, sections -> declarations
 *      config-node.c     [node] sections, what an export finds behind node=
 */
#ifndef CONTROL_CONFIG_IMPL_H
#define CONTROL_CONFIG_IMPL_H

#include "control/config-scan.h"
#include "control/config.h"

/* Every key of the section is one of keys (ended by NULL), else an error names it and them. */
void config_check_keys(Config *config, const ConfigSection *section, const char *const *keys);

/* The value of a key; NULL, *value as it was: it is not there, or an error was added. A path counts
 * from the folder of its file; a format is a known one. g_free. */
char *config_take_text(Config *config, const ConfigSection *section, const char *key);
char *config_take_path(Config *config, const ConfigSection *section, const char *key);
char *config_take_format(Config *config, const ConfigSection *section, const char *key);
void config_take_flag(Config *config, const ConfigSection *section, const char *key, bool *value);

/* The section of that kind and name; NULL: there is none. */
const ConfigSection *config_find_section(const Config *config, const char *kind, const char *name);

/* Checks all nodes, alone and with each other. */
void config_check_nodes(Config *config);

/* The image behind the entry node= of an export: image, format, read_only are filled in, as far as
 * nothing is wrong. */
void config_resolve_node(Config *config, const ConfigEntry *entry, ConfigExport *export);

#endif
