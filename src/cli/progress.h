/*
 * How far a long-running tool is: a bar on a terminal, JSON lines for programs; and ^C. [main]
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef enum { PROGRESS_NONE, PROGRESS_BAR, PROGRESS_JSON, PROGRESS_JSON_STDERR } ProgressKind;

typedef struct Progress {
    ProgressKind kind;
    int64_t start; /* monotonic, µs; 0: not begun */
    int64_t shown; /* when the last line was */
    bool open;     /* the bar stands on a line that has not ended */
} Progress;

/* What the user wants to see: by --json lines on stdout; by -q nothing; a bar where stderr is a
 * terminal; where it is none, lines there when -p asks for them. */
ProgressKind progress_kind(bool wanted, bool quiet, bool json);

/* From now on SIGINT, SIGTERM and SIGHUP do not end the process but make progress_step say so, so
 * that a tool can clean up. */
void progress_catch_signals(void);

/* Fits bulk_run; context is a Progress. True when a signal has come. */
bool progress_step(void *context, uint64_t done, uint64_t total);

/* Ends the line of the bar, before anything else is printed. */
void progress_end(Progress *progress);

/* Ends the process by the signal that came, if one came: as the shell expects it. */
void progress_raise_signal(void);

#endif
