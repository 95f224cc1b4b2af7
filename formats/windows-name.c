/*
 * The names of parents in vhd and vhdx. A path of Windows says nothing here but for its last part;
 * that the right file was found, only the parent's identity tells.
 */
#include "formats/windows-name.h"

#include <string.h>

#include "base/errors.h"

char *windows_name_decode(const void *bytes, gsize length, const char *encoding)
{
    g_autofree char *text =
        g_convert(bytes, length & ~(gsize)1, "UTF-8", encoding, NULL, NULL, NULL);
    return text && *text ? g_steal_pointer(&text) : NULL;
}

char *windows_name_to_local(char *name)
{
    if (!name) {
        return NULL;
    }
    g_strdelimit(name, "\\", '/');
    size_t skip = 0;
    while (name[skip] == '.' && name[skip + 1] == '/') {
        skip += 2 + strspn(name + skip + 2, "/");
    }
    memmove(name, name + skip, strlen(name + skip) + 1);
    if (!*name) {
        g_clear_pointer(&name, g_free);
    }
    return name;
}

char *windows_name_from_local(const char *name, GError **error)
{
    if (strchr(name, '\\')) {
        error_set(error, EINVAL,
                  "the name of the backing file '%s' has a backslash, which the format takes for a "
                  "slash: must be a name without",
                  name);
        return NULL;
    }
    char *windows = name[0] == '/' ? g_strdup(name) : g_strconcat("./", name, NULL);
    return g_strdelimit(windows, "/", '\\');
}

char *windows_name_substitute(const char *local)
{
    const char *slash = strrchr(local, '/');
    const char *base = slash ? slash + 1 : local;
    bool elsewhere = local[0] == '/' || strchr(local, ':');
    return elsewhere && *base ? g_strdup(base) : NULL;
}
