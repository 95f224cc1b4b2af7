/*
 * What is shown of the persistent dirty bitmaps of an image.
 */
#include "cli/bitmap-list.h"

#include <string.h>

#include "formats/format.h"

JsonArray *bitmap_list(const Image *image)
{
    GVariantBuilder builder;
    g_variant_builder_init(&builder, G_VARIANT_TYPE("a{sv}"));
    if (image->format->info) {
        image->format->info(image, &builder);
    }
    g_autoptr(GVariant) data = g_variant_ref_sink(g_variant_builder_end(&builder));
    g_autoptr(GVariant) bitmaps = g_variant_lookup_value(data, "bitmaps", NULL);
    if (!bitmaps) {
        return json_array_new();
    }
    g_autoptr(JsonNode) node = json_gvariant_serialize(bitmaps);
    return json_node_dup_array(node);
}

bool bitmap_has_flag(JsonObject *bitmap, const char *flag)
{
    JsonArray *flags = json_object_get_array_member(bitmap, "flags");
    for (guint i = 0; i < json_array_get_length(flags); i++) {
        if (strcmp(json_array_get_string_element(flags, i), flag) == 0) {
            return true;
        }
    }
    return false;
}
