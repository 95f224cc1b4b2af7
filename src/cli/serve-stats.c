/*
 * What a server has done since it was started, as JSON: the answer of the verb stats, and what the
 * status page shows.
 */
#include "base/log.h"
#include "cli/output.h"
#include "cli/serve-impl.h"
#include "cli/serve-process.h"
#include "control/metrics.h"
#include "nbd/nbd-wire.h"

static const struct {
    NbdCommand command;
    const char *name;
} commands[] = {
    {NBD_CMD_READ, "read"},
    {NBD_CMD_WRITE, "write"},
    {NBD_CMD_FLUSH, "flush"},
    {NBD_CMD_TRIM, "trim"},
    {NBD_CMD_CACHE, "cache"},
    {NBD_CMD_WRITE_ZEROES, "write-zeroes"},
    {NBD_CMD_BLOCK_STATUS, "block-status"},
    {NBD_CMD_RESIZE, "resize"},
};

static JsonObject *latency_of(const NbdLatency *latency)
{
    JsonObject *object = json_object_new();
    JsonArray *buckets = json_array_new();
    for (unsigned i = 0; i <= NBD_LATENCY_BOUNDS; i++) {
        json_array_add_int_element(buckets, latency->buckets[i]);
    }
    json_object_set_double_member(object, "seconds", latency->nanoseconds / 1e9);
    json_object_set_array_member(object, "buckets", buckets);
    return object;
}

static void add_requests(JsonObject *object, const NbdCounts *counts)
{
    JsonObject *requests = json_object_new(), *bytes = json_object_new(),
               *latencies = json_object_new();
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        NbdCommand command = commands[i].command;
        const char *name = commands[i].name;
        json_object_set_int_member(requests, name, counts->requests[command]);
        if (command != NBD_CMD_FLUSH) {
            json_object_set_int_member(bytes, name, counts->bytes[command]);
        }
        if (counts->requests[command] > 0) {
            json_object_set_object_member(latencies, name, latency_of(&counts->latency[command]));
        }
    }
    json_object_set_object_member(object, "requests", requests);
    json_object_set_object_member(object, "bytes", bytes);
    json_object_set_object_member(object, "latency", latencies);
}

static void add_errors(JsonObject *object, const NbdCounts *counts)
{
    JsonObject *kinds = json_object_new();
    for (NbdErrorKind kind = 0; kind < NBD_ERROR_KINDS; kind++) {
        json_object_set_int_member(kinds, nbd_error_kind_name(kind), counts->errors_by_kind[kind]);
    }
    json_object_set_int_member(object, "errors", counts->errors);
    json_object_set_object_member(object, "errors-by-kind", kinds);
}

static void add_disk(JsonObject *object, const Disk *disk)
{
    JsonObject *cache = json_object_new(), *flush = json_object_new();
    DiskCounts counts;
    disk_get_counts(disk, &counts);
    json_object_set_int_member(cache, "hits", counts.map_hits);
    json_object_set_int_member(cache, "misses", counts.map_misses);
    json_object_set_int_member(flush, "count", counts.flushes);
    json_object_set_double_member(flush, "seconds", counts.flush_microseconds / 1e6);
    json_object_set_object_member(object, "map-cache", cache);
    json_object_set_int_member(object, "allocated", counts.allocated);
    json_object_set_object_member(object, "flush", flush);
}

static JsonObject *image_stats(const Serve *serve, const ServedImage *image)
{
    JsonObject *object = json_object_new();
    NbdCounts counts;
    nbd_server_get_counts(serve->server, image->export, &counts);
    output_add_string(object, "name", image->export->name);
    json_object_set_string_member(object, "mode", serve_mode_name(disk_mode(image->disk)));
    json_object_set_int_member(object, "connections", counts.connections);
    json_object_set_int_member(object, "in-flight", counts.in_flight);
    add_errors(object, &counts);
    add_requests(object, &counts);
    add_disk(object, image->disk);
    if (serve->describe != NULL) {
        serve->describe(image, true, object, serve->describe_context);
    }
    return object;
}

static JsonArray *latency_bounds(void)
{
    JsonArray *bounds = json_array_new();
    for (unsigned i = 0; i < NBD_LATENCY_BOUNDS; i++) {
        json_array_add_int_element(bounds, nbd_latency_bounds[i] / 1000);
    }
    return bounds;
}

void serve_stats_keep(Serve *serve, const ServedImage *image)
{
    NbdCounts counts;
    if (serve->server != NULL) {
        nbd_server_get_counts(serve->server, image->export, &counts);
        nbd_counts_add(&serve->gone, &counts);
    }
}

static JsonObject *total_stats(const Serve *serve)
{
    JsonObject *object = json_object_new();
    NbdCounts total = serve->gone;
    for (unsigned i = 0; i < serve->images->len; i++) {
        const ServedImage *image = g_ptr_array_index(serve->images, i);
        NbdCounts counts;
        nbd_server_get_counts(serve->server, image->export, &counts);
        nbd_counts_add(&total, &counts);
    }
    json_object_set_int_member(object, "connections", total.connections);
    json_object_set_int_member(object, "in-flight", total.in_flight);
    add_errors(object, &total);
    add_requests(object, &total);
    return object;
}

static JsonObject *memory_stats(const Serve *serve)
{
    JsonObject *object = json_object_new();
    NbdMemoryCounts counts;
    nbd_server_get_memory(serve->server, &counts);
    json_object_set_int_member(object, "held", counts.held);
    json_object_set_int_member(object, "limit", counts.limit);
    json_object_set_int_member(object, "waiting", counts.waiting);
    json_object_set_int_member(object, "dropped", counts.dropped);
    return object;
}

void serve_stats_job(Serve *serve, void *argument)
{
    JsonObject *answer = argument;
    JsonArray *exports = json_array_new();
    for (unsigned i = 0; i < serve->images->len; i++) {
        json_array_add_object_element(exports,
                                      image_stats(serve, g_ptr_array_index(serve->images, i)));
    }
    json_object_set_int_member(answer, "seconds",
                               (g_get_monotonic_time() - serve->started) / G_USEC_PER_SEC);
    json_object_set_int_member(answer, "clients", nbd_server_connections(serve->server));
    json_object_set_array_member(answer, "latency-bounds-us", latency_bounds());
    json_object_set_object_member(answer, "memory", memory_stats(serve));
    json_object_set_object_member(answer, "total", total_stats(serve));
    json_object_set_array_member(answer, "exports", exports);
}

/* The status page */

static JsonObject *collect(void *context)
{
    JsonObject *answer = json_object_new();
    if (!serve_on_main(context, serve_stats_job, answer)) {
        json_object_unref(answer);
        return NULL;
    }
    return answer;
}

bool serve_metrics_open(Serve *serve, GError **error)
{
    const char *address = serve->options.status;
    if (address == NULL || serve->metrics != NULL) { /* none, or taken over */
        return true;
    }
    serve->metrics = metrics_new(address, error);
    return serve->metrics != NULL;
}

bool serve_metrics_start(Serve *serve, GError **error)
{
    return serve->metrics == NULL || metrics_start(serve->metrics, collect, serve, error);
}
