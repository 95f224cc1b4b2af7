/*
 * The table of formats, and how one is found: by name, or by what the first bytes of a file look
 * like.
 *
 * Every format says how sure it is; the surest wins, and raw, which takes anything, is what is
 * left.
 */
#include "formats/format.h"

#include <string.h>

const Format *const formats[] = {
    &format_qcow2, &format_vmdk, &format_vhd,       &format_vhdx,  &format_vdi,
    &format_qcow,  &format_qed,  &format_parallels, &format_bochs, &format_cloop,
    &format_dmg,   &format_luks, &format_raw,       NULL,
};

/* qemu's name of a format, where we call it otherwise: images say it of their backing, and other programs read that. */
static const struct {
    const char *own, *of_qemu;
} other_names[] = {{"vhd", "vpc"}};

static const char *own_name(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(other_names); i++) {
        if (strcmp(name, other_names[i].of_qemu) == 0) {
            return other_names[i].own;
        }
    }
    return name;
}

const char *format_name_in_images(const char *name)
{
    for (size_t i = 0; name && i < G_N_ELEMENTS(other_names); i++) {
        if (strcmp(name, other_names[i].own) == 0) {
            return other_names[i].of_qemu;
        }
    }
    return name;
}

const Format *format_find(const char *name)
{
    name = own_name(name);
    for (const Format *const *format = formats; *format; format++) {
        if (strcmp((*format)->name, name) == 0) {
            return *format;
        }
    }
    return NULL;
}

char *format_names(void)
{
    GString *names = g_string_new(NULL);
    for (const Format *const *format = formats; *format; format++) {
        g_string_append_printf(names, "%s%s", names->len ? ", " : "", (*format)->name);
    }
    return g_string_free(names, FALSE);
}

const Format *format_probe(const uint8_t *head, size_t n, const char *path)
{
    const Format *best = &format_raw;
    int best_score = 0;
    for (const Format *const *format = formats; *format; format++) {
        int score = (*format)->probe(head, n, path);
        if (score > best_score) {
            best = *format;
            best_score = score;
        }
    }
    return best;
}
