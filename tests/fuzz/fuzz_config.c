/*
 * Fuzz target: a configuration made of any bytes. It is either refused, each mistake with a line
 * that the text has, or all that it declares is whole.
 */
#include <glib.h>
#include <stdint.h>
#include <string.h>

#include "control/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const ConfigKey server_keys[] = {
    {"allow-paths", CONFIG_LIST}, {"listen", CONFIG_LIST}, {"threads", CONFIG_NUMBER},
    {"control", CONFIG_TEXT},     {"once", CONFIG_FLAG},   {NULL, CONFIG_TEXT},
};

static unsigned count_lines(const uint8_t *data, size_t size)
{
    unsigned lines = 1;
    for (size_t i = 0; i < size; i++) {
        lines += data[i] == '\n';
    }
    return lines;
}

static void check_errors(const Config *config, unsigned lines)
{
    for (unsigned i = 0; i < config->errors.all->len; i++) {
        const ConfigError *error = g_ptr_array_index(config->errors.all, i);
        g_assert(error->place.line >= 1 && error->place.line <= lines);
        g_assert(strchr(error->text, '\n') == NULL && g_utf8_validate(error->text, -1, NULL));
    }
}

static void check_declared(const Config *config)
{
    for (unsigned i = 0; i < config->settings->len; i++) {
        const ConfigSetting *setting = g_ptr_array_index(config->settings, i);
        g_assert(setting->values[0] != NULL);
        g_assert(setting->type == CONFIG_LIST || setting->values[1] == NULL);
    }
    for (unsigned i = 0; i < config->exports->len; i++) {
        const ConfigExport *export = g_ptr_array_index(config->exports, i);
        g_assert(export->name[0] != '\0' && export->image[0] != '\0');
    }
    for (unsigned i = 0; i < config->directories->len; i++) {
        const ConfigDirectory *directory = g_ptr_array_index(config->directories, i);
        g_assert(directory->name[0] != '\0' && directory->path[0] != '\0');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(Config) config = config_new(server_keys);
    config_add(config, "/etc/fuzz.conf", (const char *)data, size);
    if (config_finish(config)) {
        check_declared(config);
    } else {
        check_errors(config, count_lines(data, size));
    }
    return 0;
}
