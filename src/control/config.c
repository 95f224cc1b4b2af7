/*
 * A configuration: sections turned into declarations.
 *
 * Each kind of section has the list of its keys here. What must stay true: everything is looked at
 * although something is wrong already, so that all errors are told at once; whatever a declaration
 * points to (files' names, keys) lives as long as the configuration.
 */
#include "control/config.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/errors.h"
#include "base/secret.h"
#include "control/access.h"
#include "control/config-impl.h"
#include "control/export.h"
#include "formats/format.h"

static const char *const export_keys[] = {"image",    "node",        "format",      "read-only",
                                          "snapshot", "secret-file", "description", "allow",
                                          "tls",      NULL};
static const char *const directory_keys[] = {"path",  "formats", "secret-file", "read-only",
                                             "allow", "tls",     NULL};

static void setting_free(void *data)
{
    ConfigSetting *setting = data;
    g_strfreev(setting->values);
    g_free(setting);
}

static void export_free_declared(void *data)
{
    ConfigExport *export = data;
    g_free(export->name);
    g_free(export->image);
    g_free(export->format);
    g_free(export->description);
    g_free(export->snapshot);
    g_strfreev(export->secret_files);
    g_strfreev(export->access.allow);
    g_free(export);
}

static void directory_free(void *data)
{
    ConfigDirectory *directory = data;
    g_free(directory->name);
    g_free(directory->path);
    g_strfreev(directory->formats);
    g_strfreev(directory->secret_files);
    g_strfreev(directory->access.allow);
    g_free(directory);
}

Config *config_new(const ConfigKey *server_keys)
{
    Config *config = g_new0(Config, 1);
    config->settings = g_ptr_array_new_with_free_func(setting_free);
    config->exports = g_ptr_array_new_with_free_func(export_free_declared);
    config->directories = g_ptr_array_new_with_free_func(directory_free);
    config_errors_init(&config->errors);
    config->server_keys = server_keys;
    config->files = g_ptr_array_new_with_free_func(g_free);
    config->sections = config_sections_new();
    return config;
}

void config_free(Config *config)
{
    g_ptr_array_unref(config->settings);
    g_ptr_array_unref(config->exports);
    g_ptr_array_unref(config->directories);
    config_errors_clear(&config->errors);
    g_ptr_array_unref(config->sections);
    g_ptr_array_unref(config->files);
    g_free(config);
}

/* A place of the file that is added now. */
static ConfigPlace new_file(Config *config, const char *name)
{
    char *file = g_strdup(name);
    g_ptr_array_add(config->files, file);
    return (ConfigPlace){.file = file, .number = config->files->len};
}

void config_add(Config *config, const char *file, const char *text, size_t length)
{
    config_scan(new_file(config, file), text, length, config->sections, &config->errors);
}

/* For all kinds of sections */

const ConfigSection *config_find_section(const Config *config, const char *kind, const char *name)
{
    for (unsigned i = 0; i < config->sections->len; i++) {
        const ConfigSection *section = g_ptr_array_index(config->sections, i);
        if (strcmp(section->kind, kind) == 0 && strcmp(section->name, name) == 0) {
            return section;
        }
    }
    return NULL;
}

void config_check_keys(Config *config, const ConfigSection *section, const char *const *keys)
{
    g_autofree char *known = g_strjoinv(", ", (char **)keys);
    for (unsigned i = 0; i < section->entries->len; i++) {
        const ConfigEntry *entry = g_ptr_array_index(section->entries, i);
        if (!g_strv_contains(keys, entry->key)) {
            config_errors_add(&config->errors, entry->place,
                              "key '%s' is not known here: must be one of %s", entry->key, known);
        }
    }
}

char *config_take_text(Config *config, const ConfigSection *section, const char *key)
{
    const ConfigEntry *entry = config_section_find(section, key);
    return entry != NULL ? config_entry_text(entry, &config->errors) : NULL;
}

char *config_take_path(Config *config, const ConfigSection *section, const char *key)
{
    g_autofree char *path = config_take_text(config, section, key);
    if (path == NULL || g_path_is_absolute(path)) {
        return g_steal_pointer(&path);
    }
    g_autofree char *folder = g_path_get_dirname(config_section_find(section, key)->place.file);
    return strcmp(folder, ".") == 0 ? g_steal_pointer(&path) : g_build_filename(folder, path, NULL);
}

/* "[IMAGE=]FILE": the files are read when the image is opened. */
static char **take_secret_files(Config *config, const ConfigSection *section)
{
    const ConfigEntry *entry = config_section_find(section, "secret-file");
    char **files = entry != NULL ? config_entry_list(entry, &config->errors) : NULL;
    g_autofree char *folder = entry != NULL ? g_path_get_dirname(entry->place.file) : NULL;
    for (char **text = files; text != NULL && *text != NULL; text++) {
        char *absolute = secret_text_absolute(*text, folder);
        g_free(*text);
        *text = absolute;
    }
    return files;
}

static void check_format(Config *config, ConfigPlace place, const char *name)
{
    if (format_find(name) == NULL) {
        g_autofree char *names = format_names();
        config_errors_add(&config->errors, place, "format '%s' is not known: must be one of %s",
                          name, names);
    }
}

char *config_take_format(Config *config, const ConfigSection *section, const char *key)
{
    char *format = config_take_text(config, section, key);
    if (format != NULL) {
        check_format(config, config_section_find(section, key)->place, format);
    }
    return format;
}

void config_take_flag(Config *config, const ConfigSection *section, const char *key, bool *value)
{
    const ConfigEntry *entry = config_section_find(section, key);
    if (entry != NULL) {
        config_entry_flag(entry, value, &config->errors);
    }
}

/* [server] */

static const ConfigKey *find_server_key(const Config *config, const char *name)
{
    const ConfigKey *key = config->server_keys;
    while (key->name != NULL && strcmp(key->name, name) != 0) {
        key++;
    }
    return key->name != NULL ? key : NULL;
}

static char **setting_values(Config *config, const ConfigEntry *entry, ConfigType type)
{
    bool flag;
    int number;
    char *text = NULL;
    switch (type) {
    case CONFIG_FLAG:
        text = config_entry_flag(entry, &flag, &config->errors) ? g_strdup(flag ? "true" : "false")
                                                                : NULL;
        break;
    case CONFIG_NUMBER:
        text = config_entry_number(entry, &number, &config->errors) ? g_strdup_printf("%d", number)
                                                                    : NULL;
        break;
    case CONFIG_TEXT:
        text = config_entry_text(entry, &config->errors);
        break;
    case CONFIG_LIST:
        return config_entry_list(entry, &config->errors);
    }
    if (text == NULL) {
        return NULL;
    }
    char **values = g_new0(char *, 2);
    values[0] = text;
    return values;
}

static void take_setting(Config *config, const ConfigEntry *entry)
{
    const ConfigKey *key = find_server_key(config, entry->key);
    if (key == NULL) {
        GString *known = g_string_new(NULL);
        for (key = config->server_keys; key->name != NULL; key++) {
            g_string_append_printf(known, "%s%s", known->len > 0 ? ", " : "", key->name);
        }
        config_errors_add(&config->errors, entry->place,
                          "key '%s' is not known in [server]: must be one of %s", entry->key,
                          known->str);
        g_string_free(known, TRUE);
        return;
    }
    char **values = setting_values(config, entry, key->type);
    if (values != NULL) {
        ConfigSetting *setting = g_new(ConfigSetting, 1);
        *setting = (ConfigSetting){
            .name = key->name, .type = key->type, .values = values, .place = entry->place};
        g_ptr_array_add(config->settings, setting);
    }
}

static void take_server(Config *config, const ConfigSection *section)
{
    if (section->name[0] != '\0') {
        config_errors_add(&config->errors, section->place,
                          "[server] has no name: must be [server]");
        return;
    }
    for (unsigned i = 0; i < section->entries->len; i++) {
        take_setting(config, g_ptr_array_index(section->entries, i));
    }
}

const ConfigSetting *config_find_setting(const Config *config, const char *name)
{
    for (unsigned i = 0; i < config->settings->len; i++) {
        const ConfigSetting *setting = g_ptr_array_index(config->settings, i);
        if (strcmp(setting->name, name) == 0) {
            return setting;
        }
    }
    return NULL;
}

/* [export NAME], [directory NAME] */

static char **take_allow(Config *config, const ConfigEntry *entry)
{
    char **allow = config_entry_list(entry, &config->errors);
    g_autoptr(AccessRules) rules = access_rules_new();
    for (char **text = allow; text != NULL && *text != NULL; text++) {
        g_autoptr(GError) error = NULL;
        if (!access_rule_parse(rules, *text, &error)) {
            config_errors_add(&config->errors, entry->place, "allow: %s", error->message);
        }
    }
    return allow;
}

static ConfigAccess take_access(Config *config, const ConfigSection *section)
{
    ConfigAccess access = {0};
    const ConfigEntry *allow = config_section_find(section, "allow");
    g_autofree char *tls = config_take_text(config, section, "tls");
    if (allow != NULL) {
        access.allow = take_allow(config, allow);
    }
    access.require_tls = g_strcmp0(tls, "require") == 0;
    if (tls != NULL && !access.require_tls && strcmp(tls, "on") != 0) {
        config_errors_add(&config->errors, config_section_find(section, "tls")->place,
                          "tls is '%s': must be on (as the server) or require", tls);
    }
    return access;
}

static bool has_name(Config *config, const ConfigSection *section)
{
    size_t length = strlen(section->name);
    if (length > 0 && length <= EXPORT_NAME_MAX) {
        return true;
    }
    config_errors_add(&config->errors, section->place,
                      "the name of [%s] has %zu bytes: must be [%s NAME] with 1 to %d",
                      section->kind, length, section->kind, EXPORT_NAME_MAX);
    return false;
}

static void take_image(Config *config, const ConfigSection *section, ConfigExport *export)
{
    const ConfigEntry *node = config_section_find(section, "node");
    const ConfigEntry *image = config_section_find(section, "image");
    if ((node != NULL) == (image != NULL)) {
        config_errors_add(&config->errors, node != NULL ? node->place : section->place,
                          "export '%s' has %s image and node: say one of them", export->name,
                          node != NULL ? "both" : "neither");
        return;
    }
    if (image != NULL) {
        export->image = config_take_path(config, section, "image");
        export->format = config_take_format(config, section, "format");
        return;
    }
    const ConfigEntry *format = config_section_find(section, "format");
    if (format != NULL) {
        config_errors_add(&config->errors, format->place,
                          "format belongs to the node here: say it in the [node] section");
    }
    config_resolve_node(config, node, export);
}

static void take_export(Config *config, const ConfigSection *section)
{
    config_check_keys(config, section, export_keys);
    if (!has_name(config, section)) {
        return;
    }
    ConfigExport *export = g_new0(ConfigExport, 1);
    export->name = g_strdup(section->name);
    export->place = section->place;
    export->description = config_take_text(config, section, "description");
    export->access = take_access(config, section);
    take_image(config, section, export);
    /* A node that is read-only stays so. */
    bool read_only = false;
    config_take_flag(config, section, "read-only", &read_only);
    export->snapshot = config_take_text(config, section, "snapshot");
    export->secret_files = take_secret_files(config, section);
    export->read_only |= read_only || export->snapshot != NULL;
    g_ptr_array_add(config->exports, export);
}

static void take_directory(Config *config, const ConfigSection *section)
{
    config_check_keys(config, section, directory_keys);
    if (!has_name(config, section)) {
        return;
    }
    ConfigDirectory *directory = g_new0(ConfigDirectory, 1);
    directory->name = g_strdup(section->name);
    directory->place = section->place;
    directory->path = config_take_path(config, section, "path");
    directory->secret_files = take_secret_files(config, section);
    directory->access = take_access(config, section);
    config_take_flag(config, section, "read-only", &directory->read_only);
    const ConfigEntry *entry = config_section_find(section, "formats");
    directory->formats = entry != NULL ? config_entry_list(entry, &config->errors) : NULL;
    for (char **name = directory->formats; name != NULL && *name != NULL; name++) {
        check_format(config, entry->place, *name);
    }
    if (config_section_find(section, "path") == NULL) {
        config_errors_add(&config->errors, section->place,
                          "directory '%s' has no path: say path=DIR", directory->name);
    }
    g_ptr_array_add(config->directories, directory);
}

/* Who writes an image is alone with it. */
static void check_writers(Config *config)
{
    g_autoptr(GHashTable) first = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (unsigned i = 0; i < config->exports->len; i++) {
        ConfigExport *export = g_ptr_array_index(config->exports, i);
        if (export->image == NULL) {
            continue;
        }
        char *path = g_canonicalize_filename(export->image, NULL);
        const ConfigExport *other = g_hash_table_lookup(first, path);
        if (other != NULL && !(other->read_only && export->read_only)) {
            config_errors_add(
                &config->errors, export->place,
                "%s is export '%s' at %s:%u already: an image that is written must be "
                "in one place only, or say read-only=true in both",
                export->image, other->name, other->place.file, other->place.line);
        }
        g_hash_table_insert(first, path, export);
    }
}

/* All of it */

static const struct {
    const char *kind;
    void (*take)(Config *config, const ConfigSection *section);
} kinds[] = {
    {"server", take_server},
    {"export", take_export},
    {"directory", take_directory},
    {"node", NULL}, /* looked at when an export names it, and all together */
};

static void take_section(Config *config, const ConfigSection *section)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++) {
        if (strcmp(kinds[i].kind, section->kind) == 0) {
            if (kinds[i].take != NULL) {
                kinds[i].take(config, section);
            }
            return;
        }
    }
    config_errors_add(&config->errors, section->place,
                      "section [%s] is not known: must be server, export, directory or node",
                      section->kind);
}

bool config_finish(Config *config)
{
    for (unsigned i = 0; i < config->sections->len; i++) {
        take_section(config, g_ptr_array_index(config->sections, i));
    }
    config_check_nodes(config);
    check_writers(config);
    config_errors_sort(&config->errors);
    return config->errors.all->len == 0;
}

/* Files */

static void read_file(Config *config, const char *path)
{
    struct stat st;
    g_autoptr(GError) error = NULL;
    g_autofree char *text = NULL;
    gsize length = 0;
    if (stat(path, &st) == 0 && (!S_ISREG(st.st_mode) || st.st_size > CONFIG_FILE_MAX)) {
        config_errors_add(&config->errors, new_file(config, path),
                          "must be a regular file of at most %u bytes", CONFIG_FILE_MAX);
    } else if (!g_file_get_contents(path, &text, &length, &error)) {
        config_errors_add(&config->errors, new_file(config, path), "%s", error->message);
    } else {
        config_add(config, path, text, length);
    }
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The files of the folder beside the file, if there is one. */
static void read_folder(Config *config, const char *path)
{
    g_autofree char *folder = g_path_get_dirname(path);
    g_autofree char *more = g_build_filename(folder, "conf.d", NULL);
    g_autoptr(GDir) dir = g_dir_open(more, 0, NULL);
    g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
    for (const char *name; dir != NULL && (name = g_dir_read_name(dir)) != NULL;) {
        if (g_str_has_suffix(name, ".conf")) {
            g_ptr_array_add(paths, g_build_filename(more, name, NULL));
        }
    }
    g_ptr_array_sort(paths, compare_names);
    for (unsigned i = 0; i < paths->len; i++) {
        read_file(config, g_ptr_array_index(paths, i));
    }
}

Config *config_read(const char *path, const ConfigKey *server_keys)
{
    Config *config = config_new(server_keys);
    read_file(config, path);
    read_folder(config, path);
    config_finish(config);
    return config;
}
