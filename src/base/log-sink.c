/*
 * Where the lines of the log go: standard error, a file, syslog or the journal.
 *
 *      stderr, FILE    cownbd: LEVEL: text [client 3, export 'disk']      (a file: with the time before)
 *      syslog          LEVEL: text [...]
 *      journal         text, and PRIORITY, COWNBD_CLIENT, COWNBD_EXPORT as fields of their own
 *
 * Each line leaves in one write, so that lines of different threads never mix. What must stay true: a
 * place that takes no line (a full disk, a dead journal) costs that line and nothing else.
 */
#include "base/log-sink.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <syslog.h>
#include <systemd/sd-journal.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"

typedef enum { SINK_STDERR, SINK_FILE, SINK_SYSLOG, SINK_JOURNAL } Sink;

/* Chosen before the first thread; of a file, the descriptor may be exchanged later. */
static Sink sink = SINK_STDERR;
static char *file_path;
static int file_fd = -1; /* file_lock */
static pthread_mutex_t file_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *const words[] = {"error", "warning", "info", "debug"};
static const int priorities[] = {LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG};

static void write_all(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, text, length);
        if (n <= 0) {
            return; /* nobody to tell */
        }
        text += n;
        length -= n;
    }
}

static void append_context(GString *line, const LogContext *context)
{
    if (context == NULL) {
        return;
    }
    g_string_append_printf(line, " [client %" G_GUINT64_FORMAT, (guint64)context->client);
    if (context->export != NULL) {
        size_t start = line->len;
        g_string_append_printf(line, ", export '%s'", context->export);
        log_make_harmless(line->str + start);
    }
    g_string_append_c(line, ']');
}

static void append_time(GString *line)
{
    struct timespec now;
    struct tm parts;
    char text[32], zone[8];
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
    strftime(zone, sizeof zone, "%z", &parts);
    g_string_append_printf(line, "%s.%03ld%s ", text, now.tv_nsec / 1000000, zone);
}

static void put_line(const LogEvent *event)
{
    GString *line = g_string_new(NULL);
    if (sink == SINK_FILE) {
        append_time(line);
    }
    g_string_append_printf(line, "cownbd: %s: %s", words[event->level], event->text);
    append_context(line, event->context);
    g_string_append_c(line, '\n');
    if (sink == SINK_FILE) {
        with_mutex(&file_lock);
        write_all(file_fd, line->str, line->len);
    } else {
        write_all(STDERR_FILENO, line->str, line->len);
    }
    g_string_free(line, TRUE);
}

static void put_syslog(const LogEvent *event)
{
    GString *line = g_string_new(event->text);
    append_context(line, event->context);
    syslog(priorities[event->level], "%s: %s", words[event->level], line->str);
    g_string_free(line, TRUE);
}

/* A field of the journal: "NAME=value". */
static struct iovec field(char *text)
{
    return (struct iovec){text, strlen(text)};
}

static void put_journal(const LogEvent *event)
{
    const LogContext *context = event->context;
    g_autofree char *message = g_strdup_printf("MESSAGE=%s", event->text);
    g_autofree char *priority = g_strdup_printf("PRIORITY=%d", priorities[event->level]);
    g_autofree char *client = NULL, *export = NULL;
    char name[] = "SYSLOG_IDENTIFIER=cownbd";
    struct iovec fields[5] = {field(message), field(priority), field(name)};
    unsigned count = 3;
    if (context != NULL) {
        client = g_strdup_printf("COWNBD_CLIENT=%" G_GUINT64_FORMAT, (guint64)context->client);
        fields[count++] = field(client);
    }
    if (context != NULL && context->export != NULL) {
        export = g_strdup_printf("COWNBD_EXPORT=%s", context->export);
        fields[count++] = field(export);
    }
    sd_journal_sendv(fields, count);
}

void log_sink_put(const LogEvent *event)
{
    switch (sink) {
    case SINK_SYSLOG:
        put_syslog(event);
        return;
    case SINK_JOURNAL:
        put_journal(event);
        return;
    default:
        put_line(event);
    }
}

/* Choosing */

/* JOURNAL_STREAM names the device and inode of the stream that the service manager gave us; who has
 * redirected stderr since then means what he has done. */
static bool stderr_is_the_journal(void)
{
    const char *stream = g_getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    return stream != NULL && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
           fstat(STDERR_FILENO, &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

static bool open_file(const char *path, GError **error)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0640);
    if (fd < 0) {
        return error_set_errno(error, errno, "log: cannot open %s", path);
    }
    with_mutex(&file_lock);
    if (file_fd >= 0) {
        close(file_fd);
    }
    file_fd = fd;
    return true;
}

static bool open_syslog(const char *facility, GError **error)
{
    static const struct {
        const char *name;
        int facility;
    } facilities[] = {{"daemon", LOG_DAEMON}, {"user", LOG_USER},     {"local0", LOG_LOCAL0},
                      {"local1", LOG_LOCAL1}, {"local2", LOG_LOCAL2}, {"local3", LOG_LOCAL3},
                      {"local4", LOG_LOCAL4}, {"local5", LOG_LOCAL5}, {"local6", LOG_LOCAL6},
                      {"local7", LOG_LOCAL7}};
    for (unsigned i = 0; i < G_N_ELEMENTS(facilities); i++) {
        if (strcmp(facility, facilities[i].name) == 0) {
            openlog("cownbd", LOG_PID | LOG_NDELAY, facilities[i].facility);
            sink = SINK_SYSLOG;
            return true;
        }
    }
    return error_set(error, EINVAL,
                     "log: syslog facility '%s' is not known: must be daemon, user or local0 to "
                     "local7",
                     facility);
}

bool log_open(const char *where, GError **error)
{
    if (where == NULL) {
        sink = stderr_is_the_journal() ? SINK_JOURNAL : SINK_STDERR;
        return true;
    }
    if (strcmp(where, "stderr") == 0) {
        sink = SINK_STDERR;
        return true;
    }
    if (strcmp(where, "journal") == 0) {
        sink = SINK_JOURNAL;
        return true;
    }
    if (strcmp(where, "syslog") == 0 || g_str_has_prefix(where, "syslog:")) {
        return open_syslog(where[6] == ':' ? where + 7 : "daemon", error);
    }
    if (strchr(where, '/') == NULL) {
        return error_set(error, EINVAL,
                         "log: '%s': must be stderr, journal, syslog, syslog:FACILITY or the path "
                         "of a file with a slash in it",
                         where);
    }
    file_path = g_canonicalize_filename(where, NULL);
    sink = SINK_FILE;
    return open_file(file_path, error);
}

bool log_reopen(GError **error)
{
    return sink != SINK_FILE || open_file(file_path, error);
}

const char *log_file(void)
{
    return sink == SINK_FILE ? file_path : NULL;
}

bool log_parse_level(const char *text, LogLevel *level)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(words); i++) {
        if (strcmp(text, words[i]) == 0) {
            *level = i;
            return true;
        }
    }
    return false;
}
