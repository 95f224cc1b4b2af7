/*
 * What is wrong in a configuration, and where: all of it, not only the first. [main]
 */
#ifndef CONTROL_CONFIG_ERRORS_H
#define CONTROL_CONFIG_ERRORS_H

#include <glib.h>

#define CONFIG_ERRORS_MAX 100 /* kept; the rest is only counted */

typedef struct ConfigPlace {
    const char *file; /* stays as long as the configuration */
    unsigned number;  /* it is the file read as the how-manyth */
    unsigned line;    /* from 1; 0: the file as a whole */
} ConfigPlace;

typedef struct ConfigError {
    ConfigPlace place;
    char *text; /* "what is wrong: what would be right" */
} ConfigError;

typedef struct ConfigErrors {
    GPtrArray *all; /* ConfigError * */
    unsigned more;  /* not kept */
} ConfigErrors;

void config_errors_init(ConfigErrors *errors);
void config_errors_clear(ConfigErrors *errors);

/* The same in the same place is added once. */
void config_errors_add(ConfigErrors *errors, ConfigPlace place, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* By files in the order in which they were read, then by lines. */
void config_errors_sort(ConfigErrors *errors);

/* "FILE:LINE: text" of one; all of them, a line each, without a newline at the end. g_free. */
char *config_error_text(const ConfigError *error);
char *config_errors_text(const ConfigErrors *errors);

#endif
