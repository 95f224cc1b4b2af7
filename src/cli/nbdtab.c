/*
 * /etc/nbdtab: a line a device, "nbdN HOST EXPORT OPTIONS".
 *
 * What must stay true: lines of others are kept as they are, and the file is replaced as a whole
 * (written beside, then renamed), so that a crash leaves the old one or the new one.
 */
#include "cli/nbdtab.h"

#include <errno.h>
#include <json-glib/json-glib.h>
#include <string.h>

#include "base/errors.h"
#include "control/control.h"
#include "fastpath/attachment.h"
#include "fastpath/nbdlink.h"

#define NBDTAB   "/etc/nbdtab"
#define TCP      "nbd://"
#define UNIX     "nbd+unix:///?socket="
#define TCP_PORT "10809"

/* Where a server listens, as nbdtab says it. */
typedef struct Where {
    char *host, *options;
    char *export;
} Where;

static void where_clear(Where *where)
{
    g_free(where->host);
    g_free(where->options);
    g_free(where->export);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Where, where_clear)

/* "nbd://[::1]:10809/" or "nbd+unix:///?socket=/path" */
static bool parse_uri(const char *uri, Where *where)
{
    if (g_str_has_prefix(uri, UNIX)) {
        where->host = g_uri_unescape_string(uri + strlen(UNIX), NULL);
        where->options = g_strdup("unix,persist");
        return where->host != NULL;
    }
    g_autoptr(GUri) parsed = g_uri_parse(uri, G_URI_FLAGS_NONE, NULL);
    if (!g_str_has_prefix(uri, TCP) || parsed == NULL || g_uri_get_host(parsed) == NULL) {
        return false;
    }
    int port = g_uri_get_port(parsed);
    const char *host = g_uri_get_host(parsed);
    bool any = strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
    where->host = g_strdup(any ? "localhost" : host);
    where->options =
        port > 0 ? g_strdup_printf("port=%d,persist", port) : g_strdup("port=" TCP_PORT ",persist");
    return true;
}

static void find_export(JsonArray *exports, const char *image, Where *where)
{
    for (unsigned i = 0; i < json_array_get_length(exports); i++) {
        JsonObject *export = json_array_get_object_element(exports, i);
        const char *path = json_object_get_string_member_with_default(export, "image", "");
        if (strcmp(path, image) == 0) {
            where->export =
                g_strdup(json_object_get_string_member_with_default(export, "name", ""));
        }
    }
}

static bool has_blanks(const char *text)
{
    return text == NULL || text[0] == '\0' || strpbrk(text, " \t\n#") != NULL;
}

static bool find_where(const char *server, const char *image, Where *where, GError **error)
{
    g_autoptr(JsonObject) answer =
        server != NULL ? control_call(server, "list", NULL, error) : NULL;
    if (server != NULL && answer == NULL) {
        return false;
    }
    JsonArray *listen = answer != NULL ? json_object_get_array_member(answer, "listen") : NULL;
    if (listen == NULL || json_array_get_length(listen) == 0 ||
        !parse_uri(json_array_get_string_element(listen, 0), where)) {
        return error_set(error, EINVAL,
                         "--persist-nbdtab: no server listens for %s: run cownbd serve --listen "
                         "for it, at every boot, and attach then",
                         image);
    }
    find_export(json_object_get_array_member(answer, "exports"), image, where);
    return (!has_blanks(where->host) && !has_blanks(where->export)) ||
           error_set(error, EINVAL,
                     "--persist-nbdtab: %s cannot hold blanks: '%s', export '%s': choose other "
                     "names (serve --name)",
                     NBDTAB, where->host, where->export);
}

bool nbdtab_check(const char *server, const char *image, GError **error)
{
    g_auto(Where) where = {0};
    return find_where(server, image, &where, error);
}

/* The file without the line of this device ("nbd3"). */
static void keep_others(const char *text, const char *name, GString *kept)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line != NULL; line++) {
        const char *word = *line + strspn(*line, " \t");
        size_t length = strcspn(word, " \t");
        bool same = length == strlen(name) && strncmp(word, name, length) == 0;
        if (!same && (**line != '\0' || line[1] != NULL)) {
            g_string_append_printf(kept, "%s\n", *line);
        }
    }
}

bool nbdtab_add(const char *server, const char *image, GError **error)
{
    g_auto(Where) where = {0};
    if (!find_where(server, image, &where, error)) {
        return false;
    }
    g_autofree char *identifier = attachment_identifier(image), *text = NULL;
    int index = nbdlink_find(identifier);
    if (index < 0) {
        return error_set(error, ENODEV, "%s: has no nbd device", image);
    }
    g_autofree char *name = g_strdup_printf("nbd%d", index);
    g_autoptr(GString) file = g_string_new(NULL);
    if (g_file_get_contents(NBDTAB, &text, NULL, NULL)) {
        keep_others(text, name, file);
    }
    g_string_append_printf(file, "%s %s %s %s\n", name, where.host, where.export, where.options);
    return g_file_set_contents_full(NBDTAB, file->str, file->len,
                                    G_FILE_SET_CONTENTS_CONSISTENT | G_FILE_SET_CONTENTS_DURABLE,
                                    0644, error);
}
