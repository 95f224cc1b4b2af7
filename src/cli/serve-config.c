/*
 * The configuration of a server: control/config.h says what was declared, this file whether serve
 * can do that.
 *
 * A setting is an option of the command line in another place: it is tried as one, each for itself, so
 * that what is wrong with it has a line, then all together.
 */
#include "cli/serve-config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/errors.h"
#include "cli/serve-impl.h"

/* What follows "serve: --NAME" in an error that is about this setting; NULL: it is not. */
static const char *about(const ConfigSetting *setting, const char *message)
{
    const char *name = strcmp(setting->name, "allow-paths") == 0 ? "allow-path" : setting->name;
    g_autofree char *prefix = g_strdup_printf("serve: --%s", name);
    const char *rest = message + strlen(prefix);
    bool is_it =
        g_str_has_prefix(message, prefix) && (*rest == ' ' || *rest == ':' || *rest == '=');
    return is_it ? rest : NULL;
}

static bool try_settings(const GPtrArray *settings, GError **error)
{
    ServeOptions o;
    serve_options_init(&o);
    bool ok =
        serve_options_try((const ConfigSetting *const *)settings->pdata, settings->len, &o, error);
    serve_options_clear(&o);
    return ok;
}

/* A value that can never be right ("--threads is 0: ..."); what only lacks another setting passes. */
static void check_value(Config *config, const ConfigSetting *setting)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) one = g_ptr_array_new();
    g_ptr_array_add(one, (void *)setting);
    const char *rest = try_settings(one, &error) ? NULL : about(setting, error->message);
    if (rest != NULL && g_str_has_prefix(rest, " is ")) {
        config_errors_add(&config->errors, setting->place, "%s%s", setting->name, rest);
    }
}

/* What is wrong with settings that are each right. */
static void check_together(Config *config)
{
    g_autoptr(GError) error = NULL;
    if (config->settings->len == 0 || try_settings(config->settings, &error)) {
        return;
    }
    const ConfigSetting *first = g_ptr_array_index(config->settings, 0);
    ConfigPlace place = {.file = first->place.file, .number = first->place.number};
    const char *text = error->message;
    for (unsigned i = 0; i < config->settings->len; i++) {
        const ConfigSetting *setting = g_ptr_array_index(config->settings, i);
        if (about(setting, error->message) != NULL) {
            place = setting->place;
            text = error->message + strlen("serve: --");
        }
    }
    config_errors_add(&config->errors, place, "%s", text);
}

static void check_settings(Config *config)
{
    unsigned before = config->errors.all->len;
    for (unsigned i = 0; i < config->settings->len; i++) {
        check_value(config, g_ptr_array_index(config->settings, i));
    }
    if (config->errors.all->len == before) {
        check_together(config);
    }
}

static void check_file(Config *config, ConfigPlace place, const char *path, bool directory,
                       const char *wanted)
{
    if (path == NULL) {
        return;
    }
    if (access(path, R_OK) != 0) {
        config_errors_add(&config->errors, place, "%s: cannot be read: %s", path,
                          g_strerror(errno));
    } else if (directory != g_file_test(path, G_FILE_TEST_IS_DIR)) {
        config_errors_add(&config->errors, place, "%s: must be %s", path, wanted);
    }
}

static void check_secrets(Config *config, ConfigPlace place, char *const *files)
{
    for (; files != NULL && *files != NULL; files++) {
        check_file(config, place, secret_text_source(*files), false, "a secret, not a directory");
    }
}

Config *serve_config_check(const char *path)
{
    Config *config = config_read(path, serve_options_keys());
    check_settings(config);
    for (unsigned i = 0; i < config->exports->len; i++) {
        const ConfigExport *export = g_ptr_array_index(config->exports, i);
        check_file(config, export->place, export->image, false, "an image, not a directory");
        check_secrets(config, export->place, export->secret_files);
    }
    for (unsigned i = 0; i < config->directories->len; i++) {
        const ConfigDirectory *directory = g_ptr_array_index(config->directories, i);
        check_file(config, directory->place, directory->path, true, "a directory");
        check_secrets(config, directory->place, directory->secret_files);
    }
    config_errors_sort(&config->errors);
    return config;
}

static bool refuse(Config *config, GError **error)
{
    if (config->errors.all->len == 0) {
        return false;
    }
    config_errors_sort(&config->errors);
    g_autofree char *text = config_errors_text(&config->errors);
    g_set_error_literal(error, COWNBD_ERROR, EINVAL, text); /* several lines */
    return true;
}

Config *serve_config_read(const char *path, GError **error)
{
    g_autoptr(Config) config = serve_config_check(path);
    return refuse(config, error) ? NULL : g_steal_pointer(&config);
}

static void check_rules(Config *config, ConfigPlace place, const ConfigAccess *access,
                        const ServeOptions *o)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(AccessRules) rules = serve_tls_rules(o, access);
    if (rules != NULL && !serve_tls_check_rules(o, rules, "allow", &error)) {
        config_errors_add(&config->errors, place, "%s", error->message);
    }
}

bool serve_config_check_rules(Config *config, const ServeOptions *o, GError **error)
{
    for (unsigned i = 0; i < config->exports->len; i++) {
        const ConfigExport *export = g_ptr_array_index(config->exports, i);
        check_rules(config, export->place, &export->access, o);
    }
    for (unsigned i = 0; i < config->directories->len; i++) {
        const ConfigDirectory *directory = g_ptr_array_index(config->directories, i);
        check_rules(config, directory->place, &directory->access, o);
    }
    return !refuse(config, error);
}

Config *serve_config_check_alone(const char *path)
{
    Config *config = serve_config_check(path);
    ServeOptions o;
    serve_options_init(&o);
    const ConfigSetting *const *settings = (const ConfigSetting *const *)config->settings->pdata;
    if (config->errors.all->len == 0 &&
        serve_options_try(settings, config->settings->len, &o, NULL)) {
        serve_config_check_rules(config, &o, NULL);
    }
    serve_options_clear(&o);
    return config;
}
