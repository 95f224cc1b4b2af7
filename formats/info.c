/*
 * Entries of "format-specific" in what `info` says.
 */
#include "formats/info.h"

void info_add_text(GVariantBuilder *data, const char *key, const char *text, gssize length)
{
    g_autofree char *valid = text ? g_utf8_make_valid(text, length) : g_strdup("");
    g_variant_builder_add(data, "{sv}", key, g_variant_new_string(valid));
}
