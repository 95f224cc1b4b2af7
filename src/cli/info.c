/*
 * cownbd info: what an image is, with the keys of qemu-img info.
 *
 * The description is built once, as JSON. The text for people is printed from the same members, so
 * the two cannot say different things.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/options.h"
#include "cli/output.h"
#include "cli/snapshot-list.h"

#define SNAPSHOTS_SHOWN 4096 /* an image may claim 65536, in a file that is nearly all hole */

static JsonNode *format_specific(const Image *image)
{
    if (!image->format->info) {
        return NULL;
    }
    GVariantBuilder builder;
    g_variant_builder_init(&builder, G_VARIANT_TYPE("a{sv}"));
    image->format->info(image, &builder);
    g_autoptr(GVariant) data = g_variant_ref_sink(g_variant_builder_end(&builder));
    if (g_variant_n_children(data) == 0) {
        return NULL;
    }
    JsonObject *object = json_object_new();
    json_object_set_string_member(object, "type", image->format->name);
    json_object_set_member(object, "data", json_gvariant_serialize(data));
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);
    json_node_take_object(node, object);
    return node;
}

static void add_backing(JsonObject *object, const Image *image)
{
    if (!image->backing_name) {
        return;
    }
    g_autofree char *full = cli_name_beside(image->path, image->backing_name);
    output_add_string(object, "full-backing-filename", full);
    output_add_string(object, "backing-filename", image->backing_name);
    if (image->backing_format) {
        output_add_string(object, "backing-filename-format", image->backing_format);
    }
}

static JsonObject *describe(const Image *image)
{
    const Format *format = image->format;
    JsonObject *object = json_object_new();
    unsigned more;
    JsonArray *snapshots = snapshot_list(image, SNAPSHOTS_SHOWN, &more);
    if (snapshots) {
        json_object_set_array_member(object, "snapshots", snapshots);
    }
    if (snapshots && more > 0) {
        json_object_set_int_member(object, "snapshots-not-shown", more);
    }
    json_object_set_int_member(object, "virtual-size", image->size);
    output_add_string(object, "filename", image->path);
    uint64_t cluster_size = format->cluster_size ? format->cluster_size(image) : 0;
    if (cluster_size > 0) {
        json_object_set_int_member(object, "cluster-size", cluster_size);
    }
    json_object_set_string_member(object, "format", format->name);
    if (image->encryption) {
        json_object_set_boolean_member(object, "encrypted", TRUE);
    }
    json_object_set_int_member(object, "actual-size", image_allocated_bytes(image));
    JsonNode *specific = format_specific(image);
    if (specific) {
        json_object_set_member(object, "format-specific", specific);
    }
    add_backing(object, image);
    json_object_set_boolean_member(object, "dirty-flag",
                                   format->dirty_flag && format->dirty_flag(image));
    return object;
}

static void print_size_line(JsonObject *object, const char *member, const char *label, bool exact)
{
    uint64_t bytes = json_object_get_int_member(object, member);
    g_autofree char *size = output_size(bytes);
    if (exact) {
        printf("%s: %s (%" PRIu64 " bytes)\n", label, size, bytes);
    } else {
        printf("%s: %s\n", label, size);
    }
}

static void print_members(JsonObject *object, int indent);

/* A value that fits its line, after the label. */
static void print_scalar(JsonNode *value)
{
    if (json_node_get_value_type(value) == G_TYPE_STRING) {
        g_autofree char *text = output_harmless(json_node_get_string(value));
        printf(" %s\n", text);
    } else {
        g_autofree char *text = json_to_string(value, FALSE);
        printf(" %s\n", text);
    }
}

static void print_items(JsonArray *array, int indent)
{
    for (guint i = 0; i < json_array_get_length(array); i++) {
        JsonNode *item = json_array_get_element(array, i);
        printf("%*s[%u]:", indent, "", i);
        if (JSON_NODE_HOLDS_OBJECT(item)) {
            printf("\n");
            print_members(json_node_get_object(item), indent + 4);
        } else {
            print_scalar(item);
        }
    }
}

static void print_member(const char *name, JsonNode *value, int indent)
{
    g_autofree char *label = g_strdelimit(g_strdup(name), "-", ' ');
    printf("%*s%s:", indent, "", label);
    if (JSON_NODE_HOLDS_OBJECT(value)) {
        printf("\n");
        print_members(json_node_get_object(value), indent + 4);
    } else if (JSON_NODE_HOLDS_ARRAY(value)) {
        printf("\n");
        print_items(json_node_get_array(value), indent + 4);
    } else {
        print_scalar(value);
    }
}

static void print_members(JsonObject *object, int indent)
{
    g_autoptr(GList) names = json_object_get_members(object);
    for (GList *name = names; name; name = name->next) {
        print_member(name->data, json_object_get_member(object, name->data), indent);
    }
}

static void print_backing(JsonObject *object)
{
    if (!json_object_has_member(object, "backing-filename")) {
        return;
    }
    g_autofree char *name =
        output_harmless(json_object_get_string_member(object, "backing-filename"));
    g_autofree char *full =
        output_harmless(json_object_get_string_member(object, "full-backing-filename"));
    printf("backing file: %s", name);
    if (strcmp(name, full) != 0) {
        printf(" (actual path: %s)", full);
    }
    printf("\n");
    if (json_object_has_member(object, "backing-filename-format")) {
        g_autofree char *format =
            output_harmless(json_object_get_string_member(object, "backing-filename-format"));
        printf("backing file format: %s\n", format);
    }
}

static void print_human(JsonObject *object)
{
    printf("image: %s\n", json_object_get_string_member(object, "filename"));
    printf("file format: %s\n", json_object_get_string_member(object, "format"));
    print_size_line(object, "virtual-size", "virtual size", true);
    print_size_line(object, "actual-size", "disk size", false);
    if (json_object_has_member(object, "encrypted")) {
        printf("encrypted: yes\n");
    }
    if (json_object_has_member(object, "cluster-size")) {
        printf("cluster_size: %" PRId64 "\n", json_object_get_int_member(object, "cluster-size"));
    }
    if (json_object_get_boolean_member(object, "dirty-flag")) {
        printf("cleanly shut down: no\n");
    }
    print_backing(object);
    if (json_object_has_member(object, "snapshots")) {
        snapshot_list_print(json_object_get_array_member(object, "snapshots"));
    }
    if (json_object_has_member(object, "snapshots-not-shown")) {
        printf("and %" PRId64 " more: cownbd snapshot list shows all of them\n",
               json_object_get_int_member(object, "snapshots-not-shown"));
    }
    if (json_object_has_member(object, "format-specific")) {
        printf("Format specific information:\n");
        JsonObject *specific = json_object_get_object_member(object, "format-specific");
        print_members(json_object_get_object_member(specific, "data"), 4);
    }
}

static int print_info(const Image *image, bool chain, bool json)
{
    g_autoptr(JsonArray) all = json_array_new();
    for (const Image *one = image; one; one = chain ? one->backing : NULL) {
        json_array_add_object_element(all, describe(one));
    }
    if (!json) {
        for (guint i = 0; i < json_array_get_length(all); i++) {
            if (i > 0) {
                printf("\n");
            }
            print_human(json_array_get_object_element(all, i));
        }
    } else if (chain) {
        output_json(json_node_init_array(json_node_alloc(), all));
    } else {
        output_json(json_node_copy(json_array_get_element(all, 0)));
    }
    return output_finish(0);
}

int cli_info(int argc, char **argv)
{
    static const CliUsage usage = {
        .command = "info",
        .arguments = "IMAGE",
        .summary = "Shows the format, the sizes, the backing file and the features of an image.",
        .example = "  cownbd info --chain overlay.qcow2\n"
                   "  cownbd info --json overlay.qcow2 | jq '.\"virtual-size\"'",
        .flags = CLI_FLAG_FORMAT | CLI_FLAG_VHD_SIZE | CLI_FLAG_JSON | CLI_FLAG_SHARE |
                 CLI_FLAG_ALLOW | CLI_FLAG_SNAPSHOT,
    };
    gboolean chain = FALSE;
    const GOptionEntry own[] = {
        {"chain", 'c', 0, G_OPTION_ARG_NONE, &chain, "Show the images below it, too", NULL},
        {"backing-chain", 0, G_OPTION_FLAG_HIDDEN, G_OPTION_ARG_NONE, &chain, NULL, NULL},
        {NULL},
    };
    g_auto(CliCommon) common = {0};
    g_autoptr(GError) error = NULL;
    if (!cli_parse(&usage, own, &common, &argc, &argv, &error)) {
        return cli_fail_usage(&usage, "%s", error->message);
    }
    if (argc != 2) {
        return cli_fail_usage(&usage, "%d images given: must be one", argc - 1);
    }
    ImageOpen how = {.no_backing = !chain};
    if (!cli_image_open(&common, &how, &error)) {
        return cli_fail(error);
    }
    g_autoptr(Image) image = image_open(argv[1], &how, &error);
    return image ? print_info(image, chain, common.json) : cli_fail(error);
}
