/*
 * What is shown of the internal snapshots of an image.
 */
#include "cli/snapshot-list.h"

#include <inttypes.h>
#include <stdio.h>

#include "cli/output.h"
#include "formats/format.h"

JsonArray *snapshot_list(const Image *image, unsigned most, unsigned *more)
{
    if (!image->format->snapshots) {
        return NULL;
    }
    GVariantBuilder builder;
    g_variant_builder_init(&builder, G_VARIANT_TYPE("aa{sv}"));
    unsigned count = image->format->snapshots(image, most, &builder);
    if (more) {
        *more = count - MIN(count, most);
    }
    g_autoptr(GVariant) list = g_variant_ref_sink(g_variant_builder_end(&builder));
    if (g_variant_n_children(list) == 0) {
        return NULL;
    }
    g_autoptr(JsonNode) node = json_gvariant_serialize(list);
    return json_node_dup_array(node);
}

/* What the format says nothing of stays empty. The caller frees it. */
static char *date_of(JsonObject *snapshot)
{
    if (!json_object_has_member(snapshot, "date-sec")) {
        return g_strdup("");
    }
    g_autoptr(GDateTime) date =
        g_date_time_new_from_unix_local(json_object_get_int_member(snapshot, "date-sec"));
    return date ? g_date_time_format(date, "%Y-%m-%d %H:%M:%S") : g_strdup("?");
}

static char *clock_of(JsonObject *snapshot)
{
    if (!json_object_has_member(snapshot, "vm-clock-sec")) {
        return g_strdup("");
    }
    int64_t clock = json_object_get_int_member(snapshot, "vm-clock-sec");
    return g_strdup_printf("%02" PRId64 ":%02" PRId64 ":%02" PRId64 ".%03" PRId64, clock / 3600,
                           clock / 60 % 60, clock % 60,
                           json_object_get_int_member(snapshot, "vm-clock-nsec") / 1000000);
}

static char *number_of(JsonObject *snapshot, const char *key)
{
    return json_object_has_member(snapshot, key)
               ? g_strdup_printf("%" PRId64, json_object_get_int_member(snapshot, key))
               : g_strdup("");
}

static void print_one(JsonObject *snapshot)
{
    g_autofree char *day = date_of(snapshot), *time = clock_of(snapshot);
    g_autofree char *size = json_object_has_member(snapshot, "vm-state-size")
                                ? output_size(json_object_get_int_member(snapshot, "vm-state-size"))
                                : g_strdup("");
    g_autofree char *icount = number_of(snapshot, "icount");
    g_autofree char *id = output_harmless(json_object_get_string_member(snapshot, "id"));
    g_autofree char *name = output_harmless(json_object_get_string_member(snapshot, "name"));
    printf("%-9s %-16s %8s%20s%13s%11s\n", id, name, size, day, time, icount);
}

void snapshot_list_print(JsonArray *snapshots)
{
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
           "VM CLOCK", "ICOUNT");
    for (guint i = 0; i < json_array_get_length(snapshots); i++) {
        print_one(json_array_get_object_element(snapshots, i));
    }
}
