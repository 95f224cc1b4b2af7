/*
 * What to do instead, where somebody uses an option or a command of qemu-img that is not there.
 */
#include "cli/option-hints.h"

#include <string.h>

typedef struct Hint {
    const char *name, *text;
} Hint;

static const Hint options[] = {
    {"--object", "passphrases come by --secret-file or --secret-fd"},
    {"--image-opts", "name the file, and its format by -f"},
    {"--target-image-opts", "name the file, and its format by -O"},
    {"-U", "an image that somebody uses must not be changed"},
    {"--force-share", "an image that somebody uses must not be changed"},
    {NULL, NULL},
};

static const Hint commands[] = {
    {"amend", "'cownbd convert -o' makes a new image with other options"},
    {"bench", "serve the image, and measure its clients"},
    {"dd", "'cownbd convert --range' copies a part of a disk"},
    {NULL, NULL},
};

static const char *find(const Hint *hints, const char *name)
{
    while (hints->name && strcmp(hints->name, name) != 0) {
        hints++;
    }
    return hints->text;
}

void option_hint_add(GError **error)
{
    if (!g_error_matches(*error, G_OPTION_ERROR, G_OPTION_ERROR_UNKNOWN_OPTION)) {
        return;
    }
    const char *name = strrchr((*error)->message, ' '); /* which ends with it */
    const char *hint = name ? find(options, name + 1) : NULL;
    if (hint) {
        g_autofree char *text = g_strdup_printf("%s: %s", (*error)->message, hint);
        g_clear_error(error);
        *error = g_error_new_literal(G_OPTION_ERROR, G_OPTION_ERROR_UNKNOWN_OPTION, text);
    }
}

const char *command_hint(const char *name)
{
    return find(commands, name);
}
