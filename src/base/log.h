/*
 * The log: one line an event, "cownbd: LEVEL: text", with the client and its export where the event
 * is one of a client. It goes to stderr, or to what log_open chose. [any]; a call may wait for that.
 *
 * log_limited() is for what may repeat without end (I/O errors, hostile clients): each call site
 * gets at most ten lines a second, then one line that says how many were left out.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG } LogLevel;

typedef struct LogLimit { /* static zero-initialized state of one call site */
    int64_t window;
    unsigned count;
} LogLimit;

/* Of whom the events of this thread are for now. */
typedef struct LogContext {
    uint64_t client;    /* its number */
    const char *export; /* NULL: it uses none yet. A client chooses among names: nothing hostile */
} LogContext;

/* Before the first thread. where: "stderr", "journal", "syslog", "syslog:FACILITY" or a path; NULL:
 * the journal where stderr is its, otherwise stderr. [main] */
bool log_open(const char *where, GError **error);
/* Opens a file again, which somebody has moved away; the old one stays where that fails. [any] */
bool log_reopen(GError **error);
const char *log_file(void); /* the path of the file; NULL: it is none. [any] */
bool log_parse_level(const char *text, LogLevel *level); /* false: it is no level [any] */

/* Until it is said otherwise; NULL: of nobody. context stays the caller's. Cheap. */
void log_set_context(const LogContext *context);
const LogContext *log_context(void);

void log_set_level(LogLevel level); /* default LOG_LEVEL_WARNING */
LogLevel log_level(void);
void log_line(LogLevel level, const char *format, ...) G_GNUC_PRINTF(2, 3);
void log_line_limited(LogLimit *limit, LogLevel level, const char *format, ...) G_GNUC_PRINTF(3, 4);

#define log_error(...)   log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...)    log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...)                              \
    do {                                            \
        if (log_level() >= LOG_LEVEL_DEBUG) {       \
            log_line(LOG_LEVEL_DEBUG, __VA_ARGS__); \
        }                                           \
    } while (0)
#define log_limited(level, ...)                                \
    do {                                                       \
        static LogLimit log_limit_here;                        \
        log_line_limited(&log_limit_here, level, __VA_ARGS__); \
    } while (0)

#endif
