/*
 * A configuration: key files turned into what is to be served. docs/configuration.md has the keys.
 *
 *      text --config_add--> sections --config_finish--> settings, exports, directories, errors
 *
 * Nothing here opens an image or changes anything: it only says what was declared, and everything
 * that is wrong with it. A configuration with errors is used for nothing but to tell them. [main]
 */
#ifndef CONTROL_CONFIG_H
#define CONTROL_CONFIG_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

#include "control/config-errors.h"

#define CONFIG_FILE_MAX (4u << 20) /* bytes of one file */

typedef enum { CONFIG_FLAG, CONFIG_NUMBER, CONFIG_TEXT, CONFIG_LIST } ConfigType;

/* A key that [server] may have. Who uses the settings knows them. */
typedef struct ConfigKey {
    const char *name;
    ConfigType type;
} ConfigKey;

/* A key of [server] with its values: one, but for CONFIG_LIST. */
typedef struct ConfigSetting {
    const char *name; /* of the ConfigKey */
    ConfigType type;
    char **values;
    ConfigPlace place;
} ConfigSetting;

/* Who may do what with exports: rules that were parsed without an error (control/access.h). */
typedef struct ConfigAccess {
    char **allow; /* NULL: as the server */
    bool require_tls;
} ConfigAccess;

/* An image under a name. */
typedef struct ConfigExport {
    char *name;
    char *image;                /* a path that counts from the working directory, or is absolute */
    char *format, *description; /* may be NULL */
    char **secret_files;        /* "[IMAGE=]FILE" with absolute paths (base/secret.h); NULL: none */
    char *snapshot;             /* internal one that is shown; NULL: none. Read-only then */
    bool read_only;
    ConfigAccess access;
    ConfigPlace place;
} ConfigExport;

/* All images below a folder, each as NAME/PATH. */
typedef struct ConfigDirectory {
    char *name;
    char *path;          /* as that of an image */
    char **formats;      /* known ones; NULL: any but raw */
    char **secret_files; /* as those of an export, for all images */
    bool read_only;
    ConfigAccess access;
    ConfigPlace place;
} ConfigDirectory;

typedef struct Config {
    GPtrArray *settings;    /* ConfigSetting * */
    GPtrArray *exports;     /* ConfigExport * */
    GPtrArray *directories; /* ConfigDirectory * */
    ConfigErrors errors;

    /* config's own */
    const ConfigKey *server_keys;
    GPtrArray *files;    /* char *, the names of places */
    GPtrArray *sections; /* ConfigSection * */
} Config;

/* server_keys, ended by a NULL name, must stay. */
Config *config_new(const ConfigKey *server_keys);
void config_free(Config *config);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Config, config_free)

/* One more file, of this name and text. */
void config_add(Config *config, const char *file, const char *text, size_t length);
/* All files have been added: the declaration is made. True: there is no error. */
bool config_finish(Config *config);

/* The file at path, those of its folder's conf.d that end in .conf, in the order of their names, and
 * finish. A file that cannot be read is one of the errors. Blocks. */
Config *config_read(const char *path, const ConfigKey *server_keys);

/* The setting of that name; NULL: it is not said. */
const ConfigSetting *config_find_setting(const Config *config, const char *name);

#endif
