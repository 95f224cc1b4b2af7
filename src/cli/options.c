/*
 * The command line that the subcommands share.
 *
 * GOption does the parsing; this adds what is common: flags that mean the same everywhere stand in
 * one table, every --help ends with an example, and every mistake is one line on stderr that says
 * what would be right.
 */
#include "cli/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/errors.h"
#include "cli/describe.h"
#include "cli/option-hints.h"

void cli_common_clear(CliCommon *common)
{
    g_free(common->format);
    g_free(common->output);
    g_free(common->snapshot);
    g_free(common->load_snapshot);
    g_free(common->cache);
    g_free(common->source_cache);
    g_free(common->vhd_size);
    g_strfreev(common->allow_paths);
    g_strfreev(common->secret_files);
    g_strfreev(common->secret_fds);
    secrets_free(common->secrets);
    *common = (CliCommon){0};
}

#define COMMON_MAX 16

/* Those of the common options that the flags choose; a NULL name ends them. */
static void common_entries(GOptionEntry *entries, unsigned flags, CliCommon *common)
{
    const struct {
        unsigned flag;
        GOptionEntry entry;
    } rows[] = {
        {CLI_FLAG_FORMAT,
         {"format", 'f', 0, G_OPTION_ARG_FILENAME, &common->format,
          "Format of the image (default: found from its first bytes)", "FMT"}},
        {CLI_FLAG_JSON, {"json", 0, 0, G_OPTION_ARG_NONE, &common->json, "Print JSON", NULL}},
        {CLI_FLAG_JSON,
         {"output", 0, 0, G_OPTION_ARG_FILENAME, &common->output, "human (default) or json",
          "HOW"}},
        {CLI_FLAG_SHARE,
         {"force-share", 'U', 0, G_OPTION_ARG_NONE, &common->force_share,
          "Look although another process writes the image", NULL}},
        {CLI_FLAG_ALLOW,
         {"allow-path", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &common->allow_paths,
          "Files that the image names may also lie in DIR (repeatable)", "DIR"}},
        {CLI_FLAG_SNAPSHOT,
         {"snapshot", 0, 0, G_OPTION_ARG_FILENAME, &common->snapshot,
          "Look at this internal snapshot of the image (its name or ID)", "NAME"}},
        {CLI_FLAG_LOAD_SNAPSHOT, /* what qemu-img calls it, where -l means nothing else */
         {"load-snapshot", 'l', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &common->load_snapshot,
          NULL, NULL}},
        {CLI_FLAG_VHD_SIZE,
         {"vhd-size", 0, 0, G_OPTION_ARG_FILENAME, &common->vhd_size,
          "Size of a vhd: chs (its geometry) or current (its number; default: by its creator)",
          "WHICH"}},
        {CLI_FLAG_CACHE,
         {"cache", 't', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &common->cache, NULL, NULL}},
        {CLI_FLAG_CACHE,
         {"source-cache", 'T', G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_FILENAME, &common->source_cache,
          NULL, NULL}},
        {CLI_FLAG_SECRET,
         {"secret-file", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &common->secret_files,
          "FILE holds the passphrase of encrypted images, or of IMAGE (repeatable)",
          "[IMAGE=]FILE"}},
        {CLI_FLAG_SECRET,
         {"secret-fd", 0, 0, G_OPTION_ARG_FILENAME_ARRAY, &common->secret_fds,
          "The same, read from an open descriptor", "[IMAGE=]N"}},
    };
    G_STATIC_ASSERT(G_N_ELEMENTS(rows) < COMMON_MAX);
    unsigned count = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(rows); i++) {
        if (flags & rows[i].flag) {
            entries[count++] = rows[i].entry;
        }
    }
}

static bool check_output(CliCommon *common, GError **error)
{
    if (!common->output || strcmp(common->output, "human") == 0) {
        return true;
    }
    if (strcmp(common->output, "json") != 0) {
        return error_set(error, EINVAL, "--output is '%s': must be human or json", common->output);
    }
    common->json = TRUE;
    return true;
}

static bool check_vhd_size(const CliCommon *common, GError **error)
{
    return !common->vhd_size || strcmp(common->vhd_size, "chs") == 0 ||
           strcmp(common->vhd_size, "current") == 0 ||
           error_set(error, EINVAL, "--vhd-size is '%s': must be chs or current", common->vhd_size);
}

/* qemu-img knows -l NAME, -l snapshot.name=NAME and -l snapshot.id=ID. */
static bool take_load_snapshot(CliCommon *common, GError **error)
{
    const char *text = common->load_snapshot;
    if (!text) {
        return true;
    }
    if (common->snapshot) {
        return error_set(error, EINVAL, "-l and --snapshot: say it once");
    }
    if (g_str_has_prefix(text, "snapshot.name=") || g_str_has_prefix(text, "snapshot.id=")) {
        text = strchr(text, '=') + 1;
    }
    common->snapshot = g_strdup(text);
    return true;
}

/* Files are read and written through the page cache, and what was written is synced before the command ends. */
static bool check_cache(char flag, const char *mode, GError **error)
{
    static const char *const known[] = {"writeback", "writethrough", "unsafe", NULL};
    return !mode || g_strv_contains(known, mode) ||
           error_set(error, ENOTSUP,
                     "-%c is '%s': must be writeback, writethrough or unsafe, for files are used "
                     "through the page cache and synced at the end",
                     flag, mode);
}

/* What the options name is read now, before there are other threads, and before a sandbox closes. */
static bool read_secrets(unsigned flags, CliCommon *common, GError **error)
{
    bool ok = true;
    if (!(flags & CLI_FLAG_SECRET)) {
        return true;
    }
    common->secrets = secrets_new(NULL);
    for (char **text = common->secret_files; ok && text && *text; text++) {
        ok = secrets_add_file(common->secrets, *text, error);
    }
    for (char **text = common->secret_fds; ok && text && *text; text++) {
        ok = secrets_add_fd(common->secrets, *text, error);
    }
    return ok && secrets_add_credentials(common->secrets, error);
}

bool cli_parse(const CliUsage *usage, const GOptionEntry *own, CliCommon *common, int *argc,
               char ***argv, GError **error)
{
    g_autofree char *program = g_strdup_printf("cownbd %s", usage->command);
    g_autofree char *example = g_strdup_printf("Example:\n%s\n", usage->example);
    GOptionEntry shared[COMMON_MAX] = {0};
    common_entries(shared, usage->flags, common);
    if (*argc == 2 && strcmp((*argv)[1], CLI_DESCRIBE) == 0) {
        cli_describe(usage, own, shared);
        exit(0);
    }
    g_set_prgname(program);
    g_autoptr(GOptionContext) context = g_option_context_new(usage->arguments);
    g_option_context_set_summary(context, usage->summary);
    g_option_context_set_description(context, example);
    if (own) {
        g_option_context_add_main_entries(context, own, NULL);
    }
    g_option_context_add_main_entries(context, shared, NULL);
    if (!g_option_context_parse(context, argc, argv, error)) {
        option_hint_add(error);
        return false;
    }
    return check_output(common, error) && check_vhd_size(common, error) &&
           check_cache('t', common->cache, error) &&
           check_cache('T', common->source_cache, error) && take_load_snapshot(common, error) &&
           read_secrets(usage->flags, common, error);
}

int cli_fail(const GError *error)
{
    g_auto(GStrv) lines = g_strsplit(error->message, "\n", -1); /* a configuration has several */
    for (char **line = lines; *line != NULL; line++) {
        fprintf(stderr, "cownbd: %s\n", *line);
    }
    return 1;
}

int cli_fail_usage(const CliUsage *usage, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    fprintf(stderr, "cownbd: %s: %s: see cownbd %s --help\n", usage->command, text, usage->command);
    return 1;
}

const Format *cli_format(const char *name, GError **error)
{
    const Format *format = format_find(name);
    if (!format) {
        g_autofree char *names = format_names();
        error_set(error, EINVAL, "format '%s' is not known: must be one of %s", name, names);
    }
    return format;
}

bool cli_image_open(const CliCommon *common, ImageOpen *how, GError **error)
{
    how->allow_paths = (const char *const *)common->allow_paths;
    how->no_lock = common->force_share;
    how->snapshot = common->snapshot;
    how->secrets = common->secrets;
    how->no_secrets = !common->secrets;
    how->vhd_size = !common->vhd_size                      ? VHD_SIZE_OF_CREATOR
                    : strcmp(common->vhd_size, "chs") == 0 ? VHD_SIZE_CHS
                                                           : VHD_SIZE_CURRENT;
    if (common->format) {
        how->format = cli_format(common->format, error);
        return how->format != NULL;
    }
    return true;
}

GHashTable *cli_option_table(void)
{
    return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
}

/* Takes one "k=v" off the front of *text, up to a comma that is not doubled. */
static char *next_item(const char **text)
{
    GString *item = g_string_new(NULL);
    const char *p = *text;
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',') {
                break;
            }
            p++;
        }
        g_string_append_c(item, *p);
    }
    *text = *p ? p + 1 : p;
    return g_string_free(item, FALSE);
}

bool cli_option_lists(char **lists, GHashTable *options, GError **error)
{
    for (; lists && *lists; lists++) {
        for (const char *text = *lists; *text;) {
            g_autofree char *item = next_item(&text);
            char *equals = strchr(item, '=');
            size_t name_length = equals ? (size_t)(equals - item) : strlen(item);
            if (name_length == 0) {
                return error_set(error, EINVAL,
                                 "-o '%s' has an option without a name: must be NAME=VALUE,...",
                                 *lists);
            }
            g_hash_table_insert(options, g_strndup(item, name_length),
                                g_strdup(equals ? equals + 1 : "on"));
        }
    }
    return true;
}

char *cli_name_beside(const char *image_path, const char *name)
{
    const char *colon = strchr(name, ':'), *name_slash = strchr(name, '/');
    bool has_scheme = colon && (!name_slash || colon < name_slash);
    const char *slash = strrchr(image_path, '/');
    if (name[0] == '/' || has_scheme || !slash) {
        return g_strdup(name);
    }
    return g_strdup_printf("%.*s%s", (int)(slash + 1 - image_path), image_path, name);
}
