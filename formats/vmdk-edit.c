/*
 * vmdk: a descriptor's text with other lines, all else as it stands.
 *
 * The lines that change are replaced as a whole, from the last one to the first, so that what the parser has noted of
 * their places stays true. The result is parsed again: a text in which a line stands twice does not say what was meant.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/errors.h"
#include "formats/vmdk-impl.h"

typedef struct Splice {
    VmdkSpan span;
    char *text;
} Splice;

typedef struct Splices {
    GArray *list; /* of Splice */
    const char *text;
    uint64_t length;
} Splices;

static void splice_clear(void *splice)
{
    g_free(((Splice *)splice)->text);
}

static void replace(Splices *splices, VmdkSpan span, char *text)
{
    Splice splice = {span, text};
    g_array_append_val(splices->list, splice);
}

static const char *line_end(const Splices *splices, VmdkSpan after)
{
    uint64_t end = after.at + after.length;
    return end < splices->length && splices->text[end] == '\r' ? "\r\n" : "\n";
}

/* Behind a line. Takes over text. */
static void insert(Splices *splices, VmdkSpan after, char *text)
{
    VmdkSpan place = {after.at + after.length, 0};
    replace(splices, place, g_strconcat(line_end(splices, after), text, NULL));
    g_free(text);
}

static void drop(Splices *splices, VmdkSpan line)
{
    line.length += strlen(line_end(splices, line));
    line.length = MIN(line.length, splices->length - line.at);
    replace(splices, line, g_strdup(""));
}

static char *line_text(const VmdkLine *line)
{
    GString *text = g_string_new(NULL);
    vmdk_line_append(text, line);
    return g_string_free(text, FALSE);
}

static void edit_lines(Splices *splices, const GArray *old, const GArray *new)
{
    g_autoptr(GString) more = g_string_new(NULL);
    VmdkSpan last = g_array_index(old, VmdkLine, old->len - 1).span;
    for (guint i = 0; i < new->len; i++) {
        const VmdkLine *line = &g_array_index(new, VmdkLine, i);
        g_autofree char *text = line_text(line);
        if (i >= old->len) {
            g_string_append_printf(more, "%s%s", line_end(splices, last), text);
        } else if (line->length != g_array_index(old, VmdkLine, i).length) {
            replace(splices, g_array_index(old, VmdkLine, i).span, g_steal_pointer(&text));
        }
    }
    if (more->len > 0) {
        VmdkSpan place = {last.at + last.length, 0};
        replace(splices, place, g_strdup(more->str));
    }
}

static void edit_parent(Splices *splices, const VmdkDescriptor *old, const VmdkEdit *edit)
{
    VmdkSpan hint = old->parent_name_line, parent = old->parent_cid_line;
    g_autofree char *cid = g_strdup_printf("parentCID=%08x", edit->parent_cid);
    g_autofree char *name =
        edit->parent_name ? g_strdup_printf("parentFileNameHint=\"%s\"", edit->parent_name) : NULL;
    if (name && hint.length > 0) {
        replace(splices, hint, g_steal_pointer(&name));
    } else if (!name && hint.length > 0) {
        drop(splices, hint);
    }
    g_autofree char *both =
        name ? g_strconcat(cid, line_end(splices, old->cid_line), name, NULL) : g_strdup(cid);
    if (parent.length > 0) {
        replace(splices, parent, g_steal_pointer(&both));
    } else {
        insert(splices, old->cid_line, g_steal_pointer(&both));
    }
}

/* The last place first; of two at one place the one that was asked for first comes first in the text. */
static int compare_splices(const void *a, const void *b)
{
    const Splice *x = a, *y = b;
    return x->span.at > y->span.at ? -1 : x->span.at < y->span.at;
}

static GString *apply(const Splices *splices)
{
    GString *text = g_string_new_len(splices->text, splices->length);
    g_array_sort(splices->list, compare_splices);
    for (guint i = 0; i < splices->list->len; i++) {
        const Splice *splice = &g_array_index(splices->list, Splice, i);
        g_string_erase(text, splice->span.at, splice->span.length);
        g_string_insert(text, splice->span.at, splice->text);
    }
    return text;
}

static bool says(const VmdkDescriptor *new, const VmdkDescriptor *old, const VmdkEdit *edit)
{
    const GArray *lines = edit->lines ? edit->lines : old->lines;
    const char *parent = edit->parent ? edit->parent_name : old->parent_name;
    uint32_t parent_cid = edit->parent ? edit->parent_cid : old->parent_cid;
    bool same = new->lines->len == lines->len &&new->cid == old->cid &&new->parent_cid ==
                parent_cid &&g_strcmp0(new->parent_name, parent) == 0;
    for (guint i = 0; same && i < lines->len; i++) {
        const VmdkLine *a = &g_array_index(new->lines, VmdkLine, i);
        const VmdkLine *b = &g_array_index(lines, VmdkLine, i);
        same = a->length == b->length && a->offset == b->offset && a->type == b->type &&
               a->access == b->access && g_strcmp0(a->name, b->name) == 0;
    }
    return same;
}

GString *vmdk_descriptor_edit(const GString *text, const VmdkDescriptor *old, const VmdkEdit *edit,
                              const char *path, GError **error)
{
    g_autoptr(GArray) list = g_array_new(false, false, sizeof(Splice));
    g_array_set_clear_func(list, splice_clear);
    Splices splices = {list, text->str, text->len};
    if (edit->lines && old->lines->len > 0) {
        edit_lines(&splices, old->lines, edit->lines);
    }
    if (edit->parent) {
        edit_parent(&splices, old, edit);
    }
    g_autoptr(GString) edited = apply(&splices);
    g_autoptr(VmdkDescriptor) new = vmdk_descriptor_parse(edited->str, edited->len, path, error);
    if (!new) {
        return NULL;
    }
    if (!says(new, old, edit)) {
        error_set(error, EUCLEAN,
                  "%s: the descriptor has a line twice: must have each of CID, parentCID and "
                  "parentFileNameHint once",
                  path);
        return NULL;
    }
    return g_steal_pointer(&edited);
}
