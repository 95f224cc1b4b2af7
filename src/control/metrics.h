/*
 * The status page: numbers of a running server over HTTP, for monitoring systems and for people.
 *
 *      GET /metrics    Prometheus' text format, version 0.0.4
 *      GET /status     JSON: what `cownbd stats --json` prints
 *      GET /           a page
 *
 * One thread of its own. Clients that are slow, silent or many are bounded: METRICS_CLIENTS_MAX at
 * once, METRICS_ASK_SECONDS each to ask, one answer a connection, heads of METRICS_HEAD_MAX bytes, no
 * body.
 */
#ifndef CONTROL_METRICS_H
#define CONTROL_METRICS_H

#include <glib.h>
#include <json-glib/json-glib.h>
#include <stdbool.h>

#define METRICS_CLIENTS_MAX    32
#define METRICS_ASK_SECONDS    10
#define METRICS_ANSWER_SECONDS 60
#define METRICS_HEAD_MAX       8192

typedef struct Metrics Metrics;

/* The answer of the verb stats; NULL: not now. Called on the thread of the status page; may block. */
typedef JsonObject *(*MetricsCollect)(void *context);

/* Binds address, HOST:PORT, [ADDRESS]:PORT or :PORT (of 127.0.0.1), and listens; nothing is answered
 * yet. Port 0: any that is free. [main] */
Metrics *metrics_new(const char *address, GError **error);

/* To hand the socket over to another process: there metrics_adopt takes its descriptor. [main] */
Metrics *metrics_adopt(int fd);
int metrics_fd(const Metrics *metrics);

bool metrics_start(Metrics *metrics, MetricsCollect collect, void *context,
                   GError **error); /* [main] */

/* Ends the thread and all connections. collect must not wait for ever. NULL is fine. [main] */
void metrics_free(Metrics *metrics);

const char *metrics_uri(const Metrics *metrics); /* "http://127.0.0.1:9809/" [any] */

/* metrics-text.c: pure. [any] */

/* The answer of stats in Prometheus' text format. */
GString *metrics_text(JsonObject *stats);
/* The same as a page for people. */
GString *metrics_page(JsonObject *stats);

#endif
