/*
 * The names by which attached devices are known to be ours, and whose.
 *
 * The identifier of an nbd device holds the image's path itself, so that it can be found back from
 * a device. A device-mapper UUID has room for 128 bytes only: it holds a hash of the path.
 */
#include "fastpath/attachment-impl.h"

#include <string.h>

#define IDENTIFIER_PREFIX "cownbd:"

#define HASH_LENGTH       32 /* hexadecimal digits kept of a SHA-256 */
#define NAME_MAX_LENGTH   64 /* device-mapper has room for 127 */

static const char *const mode_names[] = {
    [ATTACH_AUTO] = "auto",
    [ATTACH_OFF] = "off",
    [ATTACH_LINEAR] = "linear",
    [ATTACH_SNAPSHOT] = "snapshot",
};

const char *attachment_mode_name(AttachMode mode)
{
    return mode_names[mode];
}

bool attachment_parse_mode(const char *name, AttachMode *mode)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(mode_names); i++) {
        if (strcmp(mode_names[i], name) == 0) {
            *mode = i;
            return true;
        }
    }
    return false;
}

char *attachment_identifier(const char *path)
{
    return g_strconcat(IDENTIFIER_PREFIX, path, NULL);
}

const char *attachment_identified_path(const char *identifier)
{
    return g_str_has_prefix(identifier, IDENTIFIER_PREFIX) ? identifier + strlen(IDENTIFIER_PREFIX)
                                                           : NULL;
}

char *attachment_path_hash(const char *path)
{
    g_autofree char *hash = g_compute_checksum_for_string(G_CHECKSUM_SHA256, path, -1);
    return g_strndup(hash, HASH_LENGTH);
}

char *attachment_uuid(AttachMode mode, const char *path)
{
    g_autofree char *hash = attachment_path_hash(path);
    return g_strdup_printf(ATTACHMENT_UUID_PREFIX "%s-%s", mode_names[mode], hash);
}

/* What device-mapper would write as \xNN, and what a shell would take for something else, becomes
 * '_'. */
char *attachment_safe_name(const char *path)
{
    char *name = g_path_get_basename(path);
    if (strlen(name) > NAME_MAX_LENGTH) {
        name[NAME_MAX_LENGTH] = '\0';
    }
    for (char *p = name; *p != '\0'; p++) {
        bool safe = g_ascii_isalnum(*p) || strchr("._+", *p) != NULL || (*p == '-' && p > name);
        if (!safe || (*p == '.' && p == name)) {
            *p = '_';
        }
    }
    return name;
}
