/*
 * The log: each event is formatted into one line and leaves in one write, so that lines of
 * different threads never mix. Text may carry names that a client or an image chose: control
 * characters are shown as '?', so that nobody can forge a line or talk to the terminal.
 */
#include "base/log.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

#define LINES_A_SECOND 10

static atomic_int current_level = LOG_LEVEL_WARNING;
static pthread_mutex_t limit_lock =
    PTHREAD_MUTEX_INITIALIZER; /* of every LogLimit: they are rare and short */

void log_set_level(LogLevel level)
{
    atomic_store_explicit(&current_level, level, memory_order_relaxed);
}

LogLevel log_level(void)
{
    return atomic_load_explicit(&current_level, memory_order_relaxed);
}

static void write_all(const char *text, size_t length)
{
    while (length > 0) {
        ssize_t n = write(STDERR_FILENO, text, length);
        if (n <= 0) {
            return; /* nobody to tell */
        }
        text += n;
        length -= n;
    }
}

static void emit(LogLevel level, const char *text)
{
    static const char *const words[] = {"error", "warning", "info", "debug"};
    g_autofree char *line = g_strdup_printf("cownbd: %s: %s", words[level], text);
    size_t length = strlen(line);
    for (size_t i = 0; i < length; i++) {
        if (g_ascii_iscntrl(line[i])) {
            line[i] = '?';
        }
    }
    line[length] = '\n'; /* in place of the terminator: the line is written by its length */
    write_all(line, length + 1);
}

static void G_GNUC_PRINTF(2, 0) log_va(LogLevel level, const char *format, va_list args)
{
    g_autofree char *text = g_strdup_vprintf(format, args);
    emit(level, text);
}

void log_line(LogLevel level, const char *format, ...)
{
    if (level > log_level()) {
        return;
    }
    va_list args;
    va_start(args, format);
    log_va(level, format, args);
    va_end(args);
}

/* Counts one more line; true when it may be shown. *left_out: lines that the last second swallowed.
 */
static bool limit_admit(LogLimit *limit, unsigned *left_out)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    with_mutex(&limit_lock);
    if (limit->window != now.tv_sec) {
        *left_out = limit->count > LINES_A_SECOND ? limit->count - LINES_A_SECOND : 0;
        limit->window = now.tv_sec;
        limit->count = 0;
    }
    limit->count++;
    return limit->count <= LINES_A_SECOND;
}

void log_line_limited(LogLimit *limit, LogLevel level, const char *format, ...)
{
    unsigned left_out = 0;
    if (level > log_level() || !limit_admit(limit, &left_out)) {
        return;
    }
    if (left_out > 0) {
        log_line(level, "%u more lines like the next one were left out", left_out);
    }
    va_list args;
    va_start(args, format);
    log_va(level, format, args);
    va_end(args);
}
