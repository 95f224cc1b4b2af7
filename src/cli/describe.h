/*
 * The commands and their options as JSON, for programs that write manual pages and completions:
 * `cownbd --describe`. So what they say is what the program takes. [main]
 */
#ifndef CLI_DESCRIBE_H
#define CLI_DESCRIBE_H

#include "cli/options.h"

#define CLI_DESCRIBE "--describe"

/* Prints a command on a line, its options from both lists, each ended by a NULL name; own may be NULL. */
void cli_describe(const CliUsage *usage, const GOptionEntry *own, const GOptionEntry *common);

#endif
