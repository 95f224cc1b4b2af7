/*
 * What is wrong in a configuration, and where.
 *
 * A file of somebody who means no good may be wrong in every line, so only so many errors are kept; what
 * is looked at twice (a node of two exports) is told once.
 */
#include "control/config-errors.h"

#include <stdbool.h>
#include <string.h>

static void error_free(void *data)
{
    ConfigError *error = data;
    g_free(error->text);
    g_free(error);
}

void config_errors_init(ConfigErrors *errors)
{
    *errors = (ConfigErrors){.all = g_ptr_array_new_with_free_func(error_free)};
}

void config_errors_clear(ConfigErrors *errors)
{
    g_clear_pointer(&errors->all, g_ptr_array_unref);
}

static bool is_told(const ConfigErrors *errors, ConfigPlace place, const char *text)
{
    for (unsigned i = 0; i < errors->all->len; i++) {
        const ConfigError *error = g_ptr_array_index(errors->all, i);
        if (error->place.number == place.number && error->place.line == place.line &&
            strcmp(error->text, text) == 0) {
            return true;
        }
    }
    return false;
}

void config_errors_add(ConfigErrors *errors, ConfigPlace place, const char *format, ...)
{
    if (errors->all->len >= CONFIG_ERRORS_MAX) {
        errors->more++;
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    g_strdelimit(text, "\n\r\t", ' '); /* values may have any, a message is a line */
    if (is_told(errors, place, text)) {
        return;
    }
    ConfigError *error = g_new(ConfigError, 1);
    *error = (ConfigError){.place = place, .text = g_steal_pointer(&text)};
    g_ptr_array_add(errors->all, error);
}

static int compare(const void *a, const void *b)
{
    const ConfigPlace *left = &(*(const ConfigError *const *)a)->place;
    const ConfigPlace *right = &(*(const ConfigError *const *)b)->place;
    if (left->number != right->number) {
        return left->number < right->number ? -1 : 1;
    }
    return (left->line > right->line) - (left->line < right->line);
}

void config_errors_sort(ConfigErrors *errors)
{
    g_ptr_array_sort(errors->all, compare);
}

char *config_error_text(const ConfigError *error)
{
    return error->place.line > 0
               ? g_strdup_printf("%s:%u: %s", error->place.file, error->place.line, error->text)
               : g_strdup_printf("%s: %s", error->place.file, error->text);
}

char *config_errors_text(const ConfigErrors *errors)
{
    GString *text = g_string_new(NULL);
    for (unsigned i = 0; i < errors->all->len; i++) {
        g_autofree char *line = config_error_text(g_ptr_array_index(errors->all, i));
        g_string_append_printf(text, "%s%s", i > 0 ? "\n" : "", line);
    }
    if (errors->more > 0) {
        g_string_append_printf(text, "\nand %u more", errors->more);
    }
    return g_string_free(text, FALSE);
}
