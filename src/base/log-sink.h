/*
 * Where the lines of the log go, for log.c and whoever chooses the place.
 */
#ifndef BASE_LOG_SINK_H
#define BASE_LOG_SINK_H

#include <glib.h>
#include <stdbool.h>

#include "base/log.h"

/* An event, ready to be shown: text of one line, without control characters. */
typedef struct LogEvent {
    LogLevel level;
    const char *text;
    const LogContext *context; /* NULL: of no client */
} LogEvent;

/* What no terminal shows as itself, and bytes that are not UTF-8, become '?', so that nobody can forge a line or talk to the
 * terminal. Errors and what is shown to people use it, too. [any] */
void log_make_harmless(char *text);

/* [any] */
void log_sink_put(const LogEvent *event);

#endif
