/*
 * The log: one line an event on stderr, "cownbd: LEVEL: text". [any]; a call may wait for stderr.
 *
 * log_limited() is for what may repeat without end (I/O errors, hostile clients): each call site
 * gets at most ten lines a second, then one line that says how many were left out.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <glib.h>

typedef enum { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG } LogLevel;

typedef struct LogLimit { /* static zero-initialized state of one call site */
    int64_t window;
    unsigned count;
} LogLimit;

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
