/*
 * Subcommands that talk to a running server over its control socket. [main]
 */
#ifndef CLI_REMOTE_H
#define CLI_REMOTE_H

#include <glib.h>
#include <json-glib/json-glib.h>

#include "cli/cli.h"
#include "cli/options.h"

/* The option --control PATH, for a subcommand's own entries. */
#define REMOTE_ENTRY(variable)                                                           \
    {                                                                                    \
        "control", 0, 0, G_OPTION_ARG_FILENAME, (variable),                              \
            "Control socket of the server (default: /run/cownbd/control.sock, or below " \
            "$XDG_RUNTIME_DIR)",                                                         \
            "PATH"                                                                       \
    }

/* control_call, at the default path where path is NULL. */
JsonObject *remote_call(const char *path, const char *verb, JsonObject *arguments, GError **error);

/* Prints the answer, without "ok", as a document; takes it. The exit status. */
int remote_print_json(JsonObject *answer);

/* All of a subcommand that shows what a server says, the default one or that of the image or device named:
 * asks verb, and shows the answer, as a document with --json,
 * else by print_human. The exit status. */
int remote_show(const CliUsage *usage, int argc, char **argv, const char *verb,
                int (*print_human)(JsonObject *answer));

#endif
