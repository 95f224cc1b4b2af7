/*
 * The log: each event is formatted into one line; log-sink.c brings it where it belongs. Text may carry names that a client or an image chose: what
 * is not printable is shown as '?', so that nobody can forge a line or talk to the terminal.
 */
#include "base/log.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/log-sink.h"

#define LINES_A_SECOND 10

static atomic_int current_level = LOG_LEVEL_WARNING;
static _Thread_local const LogContext *current_context;
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

void log_set_context(const LogContext *context)
{
    current_context = context;
}

const LogContext *log_context(void)
{
    return current_context;
}

/* By character of UTF-8: what no terminal shows as itself (controls of both kinds, marks that turn the direction of text), and by
 * byte what is no character at all. */
void log_make_harmless(char *text)
{
    for (char *p = text; *p != '\0';) {
        gunichar character = g_utf8_get_char_validated(p, -1);
        bool whole = character < (gunichar)-2;
        size_t length = whole ? (size_t)(g_utf8_next_char(p) - p) : 1;
        if (!whole || !g_unichar_isprint(character)) {
            memset(p, '?', length);
        }
        p += length;
    }
}

static void emit(LogLevel level, char *text)
{
    log_make_harmless(text);
    log_sink_put(&(LogEvent){level, text, current_context});
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

/* Counts one more line; true when it may be shown. *left_out: lines that the last second swallowed. */
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
