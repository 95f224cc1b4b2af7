/*
 * What the commands that make images share.
 */
#include "cli/create-options.h"

#include <stdio.h>
#include <string.h>

#include "base/errors.h"
#include "cli/options.h"
#include "cli/output.h"
#include "formats/option.h"

/* Options that every format has, because they are the commands' own. */
static const FormatOption common_options[] = {
    {"size", "size of the disk, the same as SIZE"},
    {"backing_file", "the same as -b"},
    {"backing_fmt", "the same as -F"},
    {NULL, NULL},
};

/* "raw, qcow2 or vhd": those that can be made. */
static char *names_of_creatable(void)
{
    GString *names = g_string_new(NULL);
    const Format *last = NULL;
    for (const Format *const *format = formats; *format; format++) {
        if ((*format)->create) {
            if (last) {
                g_string_append_printf(names, "%s%s", names->len ? ", " : "", last->name);
            }
            last = *format;
        }
    }
    g_string_append_printf(names, " or %s", last->name);
    return g_string_free(names, FALSE);
}

const Format *create_format(const char *name, GError **error)
{
    const Format *format = cli_format(name ? name : "raw", error);
    if (format && !format->create) {
        g_autofree char *names = names_of_creatable();
        error_set(error, ENOTSUP, "images of format %s cannot be made: use %s", format->name,
                  names);
        return NULL;
    }
    return format;
}

static bool option_listed(const FormatOption *options, const char *name)
{
    for (; options->name; options++) {
        if (strcmp(options->name, name) == 0) {
            return true;
        }
    }
    return false;
}

static void append_names(GString *names, const FormatOption *options)
{
    for (; options->name; options++) {
        g_string_append_printf(names, "%s%s", names->len ? ", " : "", options->name);
    }
}

bool create_options_check(const Format *format, GHashTable *options, GError **error)
{
    GHashTableIter iter;
    gpointer name;
    g_hash_table_iter_init(&iter, options);
    while (g_hash_table_iter_next(&iter, &name, NULL)) {
        if (option_listed(format->create_options, name) || option_listed(common_options, name)) {
            continue;
        }
        g_autoptr(GString) names = g_string_new(NULL);
        append_names(names, format->create_options);
        append_names(names, common_options);
        return error_set(error, EINVAL, "option '%s' is not known to %s: must be one of %s",
                         (const char *)name, format->name, names->str);
    }
    return true;
}

static void print_options(const FormatOption *options)
{
    for (; options->name; options++) {
        printf("  %-17s %s\n", options->name, options->help);
    }
}

int create_options_help(const Format *format)
{
    printf("Options of %s:\n", format->name);
    print_options(format->create_options);
    print_options(common_options);
    return output_finish(0);
}

bool create_option_take(GHashTable *options, const char *name, char **value, GError **error)
{
    const char *text = option_lookup(options, name);
    if (!text) {
        return true;
    }
    if (*value) {
        return error_set(error, EINVAL, "%s is given twice: by its flag and by -o", name);
    }
    *value = g_strdup(text);
    g_hash_table_remove(options, name);
    return true;
}

bool create_backing_take(GHashTable *options, char **name, char **format, GError **error)
{
    if (!create_option_take(options, "backing_file", name, error) ||
        !create_option_take(options, "backing_fmt", format, error)) {
        return false;
    }
    if (*name && !*format) {
        return error_set(error, EINVAL,
                         "backing file '%s' without its format: say it with -F, for guessing is "
                         "not safe",
                         *name);
    }
    if (*format && !*name) {
        return error_set(error, EINVAL, "-F '%s' without a backing file: name it with -b", *format);
    }
    if (*name && *name[0] == '\0') {
        return error_set(error, EINVAL, "the name of the backing file is empty: name it with -b");
    }
    return true;
}
