/*
 * Values of options that people type.
 *
 * strtoull takes signs, spaces and what does not fit; these take exactly what the help text
 * promises.
 */
#include "formats/option.h"

#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"

static const char *parse_digits(const char *text, uint64_t *value)
{
    uint64_t v = 0;
    const char *p = text;
    for (; g_ascii_isdigit(*p); p++) {
        if (!mul_u64(v, 10, &v) || !add_u64(v, *p - '0', &v)) {
            return NULL;
        }
    }
    *value = v;
    return p > text ? p : NULL;
}

/* The unit's power of two, or -1. No suffix is bytes. */
static int suffix_shift(const char *suffix)
{
    static const char letters[] = "bkmgtpe";
    if (suffix[0] == '\0') {
        return 0;
    }
    const char *found = strchr(letters, g_ascii_tolower(suffix[0]));
    return found && suffix[1] == '\0' ? 10 * (int)(found - letters) : -1;
}

bool option_parse_size(const char *text, uint64_t *value)
{
    uint64_t whole;
    const char *end = parse_digits(text, &whole);
    if (!end) {
        return false;
    }
    double fraction = 0;
    bool has_fraction = *end == '.';
    if (has_fraction) {
        double digit = 0.1;
        for (end++; g_ascii_isdigit(*end); end++, digit /= 10) {
            fraction += digit * (*end - '0');
        }
    }
    int shift = suffix_shift(end);
    if (shift < 0 || (has_fraction && shift == 0)) {
        return false;
    }
    uint64_t unit = UINT64_C(1) << shift, bytes;
    if (!mul_u64(whole, unit, &bytes) || !add_u64(bytes, (uint64_t)(fraction * unit), &bytes) ||
        bytes > INT64_MAX) {
        return false;
    }
    *value = bytes;
    return true;
}

bool option_parse_switch(const char *text, bool *value)
{
    static const char *const on[] = {"on", "yes", "true", NULL};
    static const char *const off[] = {"off", "no", "false", NULL};
    if (g_strv_contains(on, text)) {
        *value = true;
        return true;
    }
    if (g_strv_contains(off, text)) {
        *value = false;
        return true;
    }
    return false;
}

bool option_parse_number(const char *text, uint64_t maximum, uint64_t *value)
{
    uint64_t v;
    const char *end = parse_digits(text, &v);
    if (!end || *end != '\0' || v > maximum) {
        return false;
    }
    *value = v;
    return true;
}

const char *option_lookup(GHashTable *options, const char *name)
{
    return options ? g_hash_table_lookup(options, name) : NULL;
}

bool option_check_preallocation(GHashTable *options, GError **error)
{
    const char *text = option_lookup(options, "preallocation");
    return !text || strcmp(text, "off") == 0 ||
           error_set(error, EINVAL,
                     "preallocation is '%s': only create and convert can make that: must be off",
                     text);
}
