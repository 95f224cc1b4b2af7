/*
 * The command line that the subcommands share: common flags, help, errors of one line, -o lists.
 * [main]
 */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <glib.h>
#include <stdbool.h>

#include "formats/format.h"
#include "map/image.h"

/* Which of the common flags a subcommand has. */
typedef enum {
    CLI_FLAG_FORMAT = 1 << 0,   /* -f, --format FMT */
    CLI_FLAG_JSON = 1 << 1,     /* --json, --output=json|human */
    CLI_FLAG_SHARE = 1 << 2,    /* -U, --force-share */
    CLI_FLAG_ALLOW = 1 << 3,    /* --allow-path DIR */
    CLI_FLAG_SNAPSHOT = 1 << 4, /* --snapshot NAME */
    CLI_FLAG_SECRET =
        1 << 5, /* --secret-file, --secret-fd; without it only metadata is looked at */
    CLI_FLAG_LOAD_SNAPSHOT = 1 << 6, /* -l NAME, the same as --snapshot */
    CLI_FLAG_CACHE = 1 << 7, /* qemu-img's -t and -T: what they ask for is so already, or refused */
    CLI_FLAG_VHD_SIZE = 1 << 8, /* --vhd-size=chs|current */
} CliFlags;

typedef struct CliCommon {
    char *format;
    char *output;
    char *snapshot;
    char *load_snapshot; /* the same, as -l has it */
    char *cache, *source_cache;
    char *vhd_size;
    char **allow_paths;                /* NULL-terminated or NULL */
    char **secret_files, **secret_fds; /* the same */
    /* Made of these, and of what systemd hands over; NULL without CLI_FLAG_SECRET. */
    Secrets *secrets;
    gboolean json;
    gboolean force_share;
} CliCommon;

void cli_common_clear(CliCommon *common);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(CliCommon, cli_common_clear)

typedef struct CliUsage {
    const char *command;   /* "info" */
    const char *arguments; /* "IMAGE" */
    const char *summary;   /* what it does, a sentence or a few */
    const char *example;   /* command lines, each with two spaces before it */
    unsigned flags;        /* CliFlags */
} CliUsage;

/* Parses options, takes them out of argv; argv[0] stays. own ends with a NULL name, may be NULL.
 * --help prints and exits. False: *error says what is wrong. */
bool cli_parse(const CliUsage *usage, const GOptionEntry *own, CliCommon *common, int *argc,
               char ***argv, GError **error);

/* Prints "cownbd: MESSAGE", each line of it, and gives 1, the exit status of failure. */
int cli_fail(const GError *error);

/* The same for a mistake in how the command was called: names the command and its help. */
int cli_fail_usage(const CliUsage *usage, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Fills in how from the common flags: format, allow_paths, no_lock, snapshot, secrets. False when -f names no format.
 * how must not outlive common. */
bool cli_image_open(const CliCommon *common, ImageOpen *how, GError **error);

/* The format called name; an error lists the known ones. */
const Format *cli_format(const char *name, GError **error);

/* Adds the "k=v,k=v" of each string of lists to options (char * -> char *, made by
 * cli_option_table). A comma in a value is written twice. A name alone means "on". */
bool cli_option_lists(char **lists, GHashTable *options, GError **error);
GHashTable *cli_option_table(void);

/* A name as the image of that path writes it, seen from here: beside the image unless it is
 * absolute or has a scheme ("nbd:..."). g_free. */
char *cli_name_beside(const char *image_path, const char *name);

#endif
