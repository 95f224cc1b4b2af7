/*
 * How far a long-running tool is.
 *
 *     [=========>          ]  45%  1.8 of 4 GiB  612 MiB/s  4 s left
 *
 * The rate is that of all of the run, so that the time left does not jump.
 */
#include "cli/progress.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <glib.h>

#include "cli/output.h"

#define BAR_WIDTH  30
#define SHOW_US    G_GINT64_CONSTANT(500000)
#define SECOND_US  1e6
#define RATE_AFTER 0.5 /* seconds: before that the rate says nothing */

static volatile sig_atomic_t signal_seen;

static void note_signal(int number)
{
    signal_seen = number;
}

void progress_catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = note_signal, .sa_flags = SA_RESTART | SA_RESETHAND};
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
        struct sigaction old;
        /* nohup's decision stands */
        if (sigaction(numbers[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) {
            sigaction(numbers[i], &action, NULL);
        }
    }
}

void progress_raise_signal(void)
{
    if (signal_seen != 0) {
        signal(signal_seen, SIG_DFL);
        raise(signal_seen);
    }
}

ProgressKind progress_kind(bool wanted, bool quiet, bool json)
{
    if (json) {
        return PROGRESS_JSON;
    }
    if (quiet) {
        return PROGRESS_NONE;
    }
    return isatty(STDERR_FILENO) ? PROGRESS_BAR : wanted ? PROGRESS_JSON_STDERR : PROGRESS_NONE;
}

static double seconds_left(uint64_t done, uint64_t total, double rate)
{
    return rate > 0 ? (total - done) / rate : 0;
}

static void print_bar(uint64_t done, uint64_t total, double rate)
{
    char bar[BAR_WIDTH + 1];
    double share = total ? (double)done / total : 1;
    unsigned full = share * BAR_WIDTH;
    memset(bar, '=', full);
    memset(bar + full, ' ', BAR_WIDTH - full);
    bar[BAR_WIDTH] = '\0';
    if (full > 0 && full < BAR_WIDTH) {
        bar[full] = '>';
    }
    g_autofree char *there = output_size(done), *all = output_size(total);
    fprintf(stderr, "\r[%s] %3u%%  %s of %s", bar, (unsigned)(share * 100), there, all);
    if (rate > 0) {
        g_autofree char *speed = output_size(rate);
        fprintf(stderr, "  %s/s  %.0f s left", speed, seconds_left(done, total, rate));
    }
    fputs("\033[K", stderr);
    fflush(stderr);
}

static void print_line(FILE *out, uint64_t done, uint64_t total, double rate)
{
    fprintf(out,
            "{ \"done\": %" PRIu64 ", \"total\": %" PRIu64 ", \"bytes-per-second\": %.0f, "
            "\"seconds-left\": %.1f }\n",
            done, total, rate, seconds_left(done, total, rate));
    fflush(out);
}

static void show(Progress *progress, uint64_t done, uint64_t total, int64_t now)
{
    double seconds = (now - progress->start) / SECOND_US;
    double rate = seconds >= RATE_AFTER || (done == total && seconds > 0) ? done / seconds : 0;
    progress->shown = now;
    if (progress->kind == PROGRESS_BAR) {
        print_bar(done, total, rate);
        progress->open = true;
    } else {
        print_line(progress->kind == PROGRESS_JSON ? stdout : stderr, done, total, rate);
    }
}

bool progress_step(void *context, uint64_t done, uint64_t total)
{
    Progress *progress = context;
    int64_t now = g_get_monotonic_time();
    if (progress->start == 0) {
        progress->start = now;
    }
    bool due = done == total || now - progress->shown >= SHOW_US;
    if (progress->kind != PROGRESS_NONE && due) {
        show(progress, done, total, now);
    }
    return signal_seen != 0;
}

void progress_end(Progress *progress)
{
    if (progress->open) {
        fputc('\n', stderr);
        progress->open = false;
    }
}
