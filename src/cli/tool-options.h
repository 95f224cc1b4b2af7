/*
 * What the tools that read and write whole disks share: threads, backing files, files that must not
 * be the same. [main]
 */
#ifndef CLI_TOOL_OPTIONS_H
#define CLI_TOOL_OPTIONS_H

#include "cli/options.h"

/* A row of GOptionEntry; the number is checked by tool_threads_check. */
#define TOOL_THREADS_OPTION(number)                                          \
    {                                                                        \
        "threads", 'm', 0, G_OPTION_ARG_INT, (number),                       \
            "Work with so many threads (default: number of processors)", "N" \
    }

/* The same; the text is parsed by tool_rate_parse. */
#define TOOL_RATE_OPTION(text)                                                           \
    {                                                                                    \
        "rate-limit", 'r', 0, G_OPTION_ARG_FILENAME, (text),                             \
            "Move so many bytes a second at most, as in 50M (default: no limit)", "RATE" \
    }

/* 0 where nothing was said (NULL). */
bool tool_rate_parse(const char *text, uint64_t *rate, GError **error);

/* Puts the default in where nothing was said (0). */
bool tool_threads_check(int *threads, GError **error);

/* The image called name in one whose path is `path`, opened read-only, all the way down. A file
 * cannot be its own backing. */
Image *tool_open_backing(const char *path, const char *name, const char *format,
                         const CliCommon *common, GError **error);

/* Refuses an image with internal snapshots: what they do not have, they have from the backing, which is about to change. */
bool tool_no_snapshots(const Image *image, GError **error);

/* Whether path is another file than those of the chain. */
bool tool_not_in_chain(const Image *chain, const char *path, GError **error);

#endif
