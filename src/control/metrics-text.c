/*
 * The numbers of a server as text: for Prometheus, and as a page.
 *
 * Both are made from the answer of the verb stats, so all three say the same. In Prometheus' text a
 * family of samples is one block below its HELP and TYPE; so this goes over all exports for each
 * family, not over all families for each export. What is missing, or of another type, is left out.
 */
#include <string.h>

#include "control/metrics.h"

/* Reading the answer */

static JsonObject *object_of(JsonObject *object, const char *member)
{
    JsonNode *node = object != NULL ? json_object_get_member(object, member) : NULL;
    return node != NULL && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

static JsonArray *array_of(JsonObject *object, const char *member)
{
    JsonNode *node = object != NULL ? json_object_get_member(object, member) : NULL;
    return node != NULL && JSON_NODE_HOLDS_ARRAY(node) ? json_node_get_array(node) : NULL;
}

static double number_of(JsonObject *object, const char *member)
{
    JsonNode *node = object != NULL ? json_object_get_member(object, member) : NULL;
    return node != NULL && JSON_NODE_HOLDS_VALUE(node) ? json_node_get_double(node) : 0;
}

static const char *string_of(JsonObject *object, const char *member)
{
    JsonNode *node = json_object_get_member(object, member);
    const char *text =
        node != NULL && JSON_NODE_HOLDS_VALUE(node) ? json_node_get_string(node) : NULL;
    return text != NULL ? text : "";
}

/* The label of an export; NULL: the object is none. */
static const char *name_of(JsonObject *object)
{
    return json_object_has_member(object, "name") ? string_of(object, "name") : NULL;
}

/* Samples */

typedef struct Sample {
    const char *suffix;       /* of the family's name, or NULL */
    const char *export;       /* label, or NULL */
    const char *label, *text; /* another one, or NULL */
    const char *le;           /* and another one */
    double value;
} Sample;

/* Whole numbers without a fraction, others with the digits that they need; never a comma. */
static void append_number(GString *out, double value)
{
    char text[G_ASCII_DTOSTR_BUF_SIZE];
    g_string_append(out, g_ascii_formatd(text, sizeof text, "%.16g", value));
}

static void append_label(GString *out, const char *name, const char *value, const char **separator)
{
    if (name == NULL || value == NULL) {
        return;
    }
    g_string_append_printf(out, "%s%s=\"", *separator, name);
    for (; *value != '\0'; value++) {
        if (*value == '\\' || *value == '"' || *value == '\n') {
            g_string_append_c(out, '\\');
        }
        g_string_append_c(out, *value == '\n' ? 'n' : *value);
    }
    g_string_append_c(out, '"');
    *separator = ",";
}

static void append_sample(GString *out, const char *family, const Sample *sample)
{
    const char *separator = "{";
    g_string_append_printf(out, "cownbd_%s%s", family,
                           sample->suffix != NULL ? sample->suffix : "");
    append_label(out, "export", sample->export, &separator);
    append_label(out, sample->label, sample->text, &separator);
    append_label(out, "le", sample->le, &separator);
    g_string_append(out, *separator == ',' ? "} " : " ");
    append_number(out, sample->value);
    g_string_append_c(out, '\n');
}

typedef struct Family Family;

struct Family {
    const char *name, *type, *help;
    void (*append)(GString *out, const Family *family, JsonObject *export, JsonObject *stats);
    const char *object, *member; /* where append finds it in the export */
    const char *label;           /* NULL: member is one number, else object is one for each label */
};

static void append_value(GString *out, const Family *family, JsonObject *export, JsonObject *stats)
{
    JsonObject *from = family->object != NULL ? object_of(export, family->object) : export;
    if (from != NULL && json_object_has_member(from, family->member)) {
        append_sample(
            out, family->name,
            &(Sample){.export = name_of(export), .value = number_of(from, family->member)});
    }
}

static void append_by_label(GString *out, const Family *family, JsonObject *export,
                            JsonObject *stats)
{
    JsonObject *numbers = object_of(export, family->object);
    JsonObjectIter iter;
    const char *key;
    if (numbers == NULL) {
        return;
    }
    json_object_iter_init_ordered(&iter, numbers);
    while (json_object_iter_next_ordered(&iter, &key, NULL)) {
        append_sample(out, family->name,
                      &(Sample){.export = name_of(export),
                                .label = family->label,
                                .text = key,
                                .value = number_of(numbers, key)});
    }
}

/* A mode is one of a few: the one that it is has the value 1. */
static void append_mode(GString *out, const Family *family, JsonObject *export, JsonObject *stats)
{
    static const char *const modes[] = {"normal", "read-only", "failed"};
    for (unsigned i = 0; i < G_N_ELEMENTS(modes); i++) {
        append_sample(out, family->name,
                      &(Sample){.export = name_of(export),
                                .label = "mode",
                                .text = modes[i],
                                .value = strcmp(string_of(export, "mode"), modes[i]) == 0});
    }
}

/* One histogram; the buckets of the answer are each for itself, those of Prometheus add up. */
static void append_histogram(GString *out, const char *family, Sample sample, JsonObject *latency,
                             JsonArray *bounds)
{
    JsonArray *buckets = array_of(latency, "buckets");
    unsigned count = bounds != NULL ? json_array_get_length(bounds) : 0;
    if (buckets == NULL || json_array_get_length(buckets) != count + 1) {
        return;
    }
    sample.suffix = "_bucket";
    sample.value = 0;
    for (unsigned i = 0; i <= count; i++) {
        char text[G_ASCII_DTOSTR_BUF_SIZE];
        sample.le = i < count ? g_ascii_formatd(text, sizeof text, "%.16g",
                                                json_array_get_int_element(bounds, i) / 1e6)
                              : "+Inf";
        sample.value += json_array_get_int_element(buckets, i);
        append_sample(out, family, &sample);
    }
    sample.le = NULL;
    sample.suffix = "_count";
    append_sample(out, family, &sample);
    sample.suffix = "_sum";
    sample.value = number_of(latency, "seconds");
    append_sample(out, family, &sample);
}

static void append_latencies(GString *out, const Family *family, JsonObject *export,
                             JsonObject *stats)
{
    JsonObject *latencies = object_of(export, "latency");
    JsonArray *bounds = array_of(stats, "latency-bounds-us");
    JsonObjectIter iter;
    const char *command;
    if (latencies == NULL) {
        return;
    }
    json_object_iter_init_ordered(&iter, latencies);
    while (json_object_iter_next_ordered(&iter, &command, NULL)) {
        Sample sample = {.export = name_of(export), .label = "command", .text = command};
        append_histogram(out, family->name, sample, object_of(latencies, command), bounds);
    }
}

static const Family families[] = {
    {"requests_total", "counter",
     "Requests that came back from the disk, with or without an error.", append_by_label,
     "requests", NULL, "command"},
    {"bytes_total", "counter", "Bytes of requests that went well.", append_by_label, "bytes", NULL,
     "command"},
    {"errors_total", "counter", "Requests answered with an error, refused ones included.",
     append_by_label, "errors-by-kind", NULL, "kind"},
    {"request_duration_seconds", "histogram",
     "From a request that is there whole to a reply that is given to the socket.",
     append_latencies},
    {"requests_in_flight", "gauge", "Requests that the disk works on.", append_value, NULL,
     "in-flight"},
    {"connections", "gauge", "Clients that use the export.", append_value, NULL, "connections"},
    {"mode", "gauge", "1 for the mode that the disk is in, after errors a worse one than normal.",
     append_mode},
    {"map_cache_hits_total", "counter", "Maps of a request's range that were known.", append_value,
     "map-cache", "hits"},
    {"map_cache_misses_total", "counter", "Maps that tables had to be read for.", append_value,
     "map-cache", "misses"},
    {"allocated_bytes_total", "counter", "Bytes of the disk that became allocated.", append_value,
     NULL, "allocated"},
    {"flushes_total", "counter", "Times that all was brought to stable storage.", append_value,
     "flush", "count"},
    {"flush_seconds_total", "counter", "Time that this took.", append_value, "flush", "seconds"},
};

static void append_head(GString *out, const char *name, const char *type, const char *help)
{
    g_string_append_printf(out, "# HELP cownbd_%s %s\n# TYPE cownbd_%s %s\n", name, help, name,
                           type);
}

/* Of the server as a whole. */
static const Family server_families[] = {
    {"uptime_seconds", "gauge", "Time since the start.", append_value, NULL, "seconds"},
    {"clients", "gauge", "Connections, those that choose an export included.", append_value, NULL,
     "clients"},
    {"memory_bytes", "gauge", "What requests of all connections hold.", append_value, "memory",
     "held"},
    {"memory_limit_bytes", "gauge", "What they may hold.", append_value, "memory", "limit"},
    {"clients_waiting", "gauge", "Connections that wait for memory which others hold.",
     append_value, "memory", "waiting"},
    {"clients_dropped_total", "counter", "Those that stalled while others waited.", append_value,
     "memory", "dropped"},
};

/* Of all exports, those that are no longer served included. */
static const Family total_families[] = {
    {"server_requests_total", "counter",
     "Requests of all exports, also of those that are no longer served.", append_by_label,
     "requests", NULL, "command"},
    {"server_bytes_total", "counter", "Bytes, likewise.", append_by_label, "bytes", NULL,
     "command"},
    {"server_errors_total", "counter", "Errors, likewise.", append_by_label, "errors-by-kind", NULL,
     "kind"},
};

static void append_families(GString *out, const Family *list, unsigned count, JsonObject *object,
                            JsonObject *stats)
{
    for (unsigned i = 0; i < count && object != NULL; i++) {
        append_head(out, list[i].name, list[i].type, list[i].help);
        list[i].append(out, &list[i], object, stats);
    }
}

static void append_server(GString *out, JsonObject *stats)
{
    append_head(out, "build_info", "gauge", "The version that runs.");
    append_sample(out, "build_info",
                  &(Sample){.label = "version", .text = COWNBD_VERSION, .value = 1});
    append_families(out, server_families, G_N_ELEMENTS(server_families), stats, stats);
    append_families(out, total_families, G_N_ELEMENTS(total_families), object_of(stats, "total"),
                    stats);
}

GString *metrics_text(JsonObject *stats)
{
    GString *out = g_string_new(NULL);
    JsonArray *exports = array_of(stats, "exports");
    append_server(out, stats);
    for (unsigned i = 0; i < G_N_ELEMENTS(families); i++) {
        const Family *family = &families[i];
        append_head(out, family->name, family->type, family->help);
        for (unsigned j = 0; exports != NULL && j < json_array_get_length(exports); j++) {
            family->append(out, family, json_array_get_object_element(exports, j), stats);
        }
    }
    return out;
}

/* The page */

static double sum_of(JsonObject *numbers)
{
    double sum = 0;
    g_autoptr(GList) members = numbers != NULL ? json_object_get_members(numbers) : NULL;
    for (GList *member = members; member != NULL; member = member->next) {
        sum += number_of(numbers, member->data);
    }
    return sum;
}

static void append_row(GString *out, JsonObject *export)
{
    g_autofree char *name = g_markup_escape_text(string_of(export, "name"), -1);
    g_autofree char *mode = g_markup_escape_text(string_of(export, "mode"), -1);
    g_autofree char *bytes =
        g_format_size_full(sum_of(object_of(export, "bytes")), G_FORMAT_SIZE_IEC_UNITS);
    g_string_append_printf(out, "<tr><td>%s<td>%s<td>%.0f<td>%.0f<td>%.0f<td>%s<td>%.0f\n", name,
                           mode, number_of(export, "connections"), number_of(export, "in-flight"),
                           sum_of(object_of(export, "requests")), bytes,
                           number_of(export, "errors"));
}

GString *metrics_page(JsonObject *stats)
{
    GString *out = g_string_new(
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>cownbd</title><style>"
        "body{font-family:sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}</style>\n<h1>cownbd " COWNBD_VERSION
        "</h1>\n");
    JsonArray *exports = array_of(stats, "exports");
    g_string_append_printf(out, "<p>up for %.0f s, %.0f clients\n", number_of(stats, "seconds"),
                           number_of(stats, "clients"));
    g_string_append(out, "<table><tr><th>export<th>mode<th>connections<th>in flight<th>requests"
                         "<th>bytes<th>errors\n");
    for (unsigned i = 0; exports != NULL && i < json_array_get_length(exports); i++) {
        append_row(out, json_array_get_object_element(exports, i));
    }
    g_string_append(out, "</table>\n<p><a href=metrics>metrics</a> <a href=status>status</a>\n");
    return out;
}
