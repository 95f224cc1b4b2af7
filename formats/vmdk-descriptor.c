/*
 * The vmdk descriptor: a text that says who the image is and of which extents it is made.
 *
 *     # Disk DescriptorFile
 *     version=1
 *     CID=735fc49a                           changes with the first write of a session
 *     parentCID=ffffffff                     the CID that the parent must have; ffffffff: no parent
 *     createType="twoGbMaxExtentFlat"
 *     parentFileNameHint="base.vmdk"
 *     # Extent description
 *     RW 4192256 FLAT "disk-f001.vmdk" 0     access, sectors, type, name, offset in sectors
 *     # The Disk Data Base
 *     ddb.adapterType = "ide"                of no use here
 *
 * Written by hand and by many programs: lines end in LF or CRLF, blanks and tabs go anywhere, keys
 * in any case, values with quotes or without, in an encoding that we keep as it is.
 *
 * What must stay true: whatever the text, every length and offset that leaves here is a number of
 * whole sectors, and their sum is below 2^63. What is not understood is ignored where it cannot
 * change what the disk holds, else refused.
 */
#include "formats/vmdk.h"

#include <string.h>

#include "base/bytes.h"
#include "base/errors.h"

#define CID_DIGITS 8u

static const char descriptor_title[] = "# Disk DescriptorFile";

static const char *const create_types[] = {
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
    "streamOptimized",
    "vmfs",
    "vmfsSparse",
    "seSparse",
    "custom",
    NULL,
};

static const char *const access_names[] = {
    [VMDK_ACCESS_RW] = "RW",
    [VMDK_ACCESS_RDONLY] = "RDONLY",
    [VMDK_ACCESS_NOACCESS] = "NOACCESS",
};

const char *const vmdk_type_names[] = {
    [VMDK_TYPE_FLAT] = "FLAT",
    [VMDK_TYPE_VMFS] = "VMFS",
    [VMDK_TYPE_ZERO] = "ZERO",
    [VMDK_TYPE_SPARSE] = "SPARSE",
    [VMDK_TYPE_VMFSSPARSE] = "VMFSSPARSE",
    [VMDK_TYPE_SESPARSE] = "SESPARSE",
};

/* What is being parsed, for messages. */
typedef struct Parser {
    VmdkDescriptor *out;
    const char *path;
    unsigned line;   /* from 1 */
    const char *raw; /* the line as the text has it, without a NUL at its end */
    size_t raw_length;
    size_t raw_at; /* where it begins there */
    bool has_version, has_cid;
} Parser;

bool vmdk_descriptor_probe(const uint8_t *head, size_t n)
{
    const char *text = (const char *)head;
    while (n > 0 && g_ascii_isspace(*text)) {
        text++;
        n--;
    }
    size_t length = sizeof descriptor_title - 1;
    return n >= length && g_ascii_strncasecmp(text, descriptor_title, length) == 0;
}

static bool parse_hex(const Parser *parser, const char *key, const char *value, uint32_t *out,
                      GError **error)
{
    guint64 number;
    if (!g_ascii_string_to_unsigned(value, 16, 0, UINT32_MAX, &number, NULL)) {
        return error_set(error, EUCLEAN,
                         "%s: line %u: %s is '%s': must be up to 8 hexadecimal digits",
                         parser->path, parser->line, key, value);
    }
    *out = number;
    return true;
}

static bool parse_create_type(Parser *parser, const char *value, GError **error)
{
    for (const char *const *type = create_types; *type; type++) {
        if (g_ascii_strcasecmp(*type, value) == 0) {
            g_free(parser->out->create_type);
            parser->out->create_type = g_strdup(*type);
            return true;
        }
    }
    g_autofree char *known = g_strjoinv(", ", (char **)create_types);
    return error_set(error, ENOTSUP, "%s: createType '%s' is not supported: must be one of %s",
                     parser->path, value, known);
}

static bool parse_version(Parser *parser, const char *value, GError **error)
{
    guint64 number;
    parser->has_version = true;
    if (!g_ascii_string_to_unsigned(value, 10, 1, 3, &number, NULL)) {
        return error_set(error, ENOTSUP, "%s: descriptor version is '%s': must be 1, 2 or 3",
                         parser->path, value);
    }
    return true;
}

/* Cuts blanks, then one pair of quotes, off a value. */
static char *unquote(char *value)
{
    g_strstrip(value);
    size_t n = strlen(value);
    if (n >= 2 && value[0] == '"' && value[n - 1] == '"') {
        value[n - 1] = '\0';
        value++;
    }
    return value;
}

/* The number is changed in place by writers, so they must know where it is. */
static void note_cid_place(const Parser *parser, const char *value)
{
    const char *end = parser->raw + parser->raw_length;
    const char *digits = (const char *)memchr(parser->raw, '=', parser->raw_length) + 1;
    while (digits < end && (g_ascii_isspace(*digits) || *digits == '"')) {
        digits++;
    }
    size_t count = strlen(value), shown = min_u64(count, CID_DIGITS);
    parser->out->cid_at = parser->raw_at + (digits - parser->raw) + (count - shown);
    parser->out->cid_digits = shown;
}

/* The line that is being parsed. */
static VmdkSpan line_span(const Parser *parser)
{
    size_t n = parser->raw_length;
    return (VmdkSpan){parser->raw_at, n > 0 && parser->raw[n - 1] == '\r' ? n - 1 : n};
}

static bool parse_setting(Parser *parser, char *key, char *value, GError **error)
{
    g_strstrip(key);
    value = unquote(value);
    if (g_ascii_strcasecmp(key, "version") == 0) {
        return parse_version(parser, value, error);
    }
    if (g_ascii_strcasecmp(key, "CID") == 0) {
        parser->has_cid = true;
        parser->out->cid_line = line_span(parser);
        note_cid_place(parser, value);
        return parse_hex(parser, "CID", value, &parser->out->cid, error);
    }
    if (g_ascii_strcasecmp(key, "parentCID") == 0) {
        parser->out->parent_cid_line = line_span(parser);
        return parse_hex(parser, "parentCID", value, &parser->out->parent_cid, error);
    }
    if (g_ascii_strcasecmp(key, "createType") == 0) {
        return parse_create_type(parser, value, error);
    }
    if (g_ascii_strcasecmp(key, "parentFileNameHint") == 0) {
        parser->out->parent_name_line = line_span(parser);
        g_free(parser->out->parent_name);
        parser->out->parent_name = *value ? g_strdup(value) : NULL;
    }
    return true; /* encoding, ddb.*, changeTrackPath, ...: nothing that says what the disk holds */
}

/* The next word of *text, or what stands in quotes when it begins with one. NULL at the end. */
static char *next_word(char **text)
{
    char *word = *text + strspn(*text, " \t");
    if (*word == '\0') {
        return NULL;
    }
    char *end;
    if (*word == '"') {
        word++;
        end = word + strcspn(word, "\"");
    } else {
        end = word + strcspn(word, " \t");
    }
    *text = *end ? end + 1 : end;
    *end = '\0';
    return word;
}

static int find_name(const char *const *names, unsigned count, const char *name)
{
    for (unsigned i = 0; name && i < count; i++) {
        if (g_ascii_strcasecmp(names[i], name) == 0) {
            return i;
        }
    }
    return -1;
}

static bool parse_sectors(const Parser *parser, const char *field, const char *word,
                          uint64_t *bytes, GError **error)
{
    guint64 sectors;
    if (!word ||
        !g_ascii_string_to_unsigned(word, 10, 0, INT64_MAX / VMDK_SECTOR, &sectors, NULL)) {
        return error_set(error, EUCLEAN,
                         "%s: line %u: the %s of the extent is '%s': must be a number of sectors "
                         "below 2^54",
                         parser->path, parser->line, field, word ? word : "");
    }
    *bytes = sectors * VMDK_SECTOR;
    return true;
}

static bool add_line(Parser *parser, const VmdkLine *line, GError **error)
{
    VmdkDescriptor *out = parser->out;
    uint64_t size;
    if (line->length == 0) {
        return error_set(error, EUCLEAN, "%s: line %u: the extent has 0 sectors", parser->path,
                         parser->line);
    }
    if (!add_u64(out->size, line->length, &size) || size > INT64_MAX) {
        return error_set(error, EUCLEAN,
                         "%s: line %u: the sum of the extents is 2^63 bytes or more", parser->path,
                         parser->line);
    }
    if (out->lines->len == VMDK_EXTENTS_MAX) {
        return error_set(error, EUCLEAN, "%s: line %u: there are more than %u extents",
                         parser->path, parser->line, VMDK_EXTENTS_MAX);
    }
    VmdkLine copy = *line;
    copy.name = g_strdup(line->name);
    g_array_append_val(out->lines, copy);
    out->size = size;
    return true;
}

/* The rest of a line that began with an access word. */
static bool parse_extent(Parser *parser, VmdkAccess access, char *text, GError **error)
{
    VmdkLine line = {.access = access, .span = line_span(parser)};
    if (!parse_sectors(parser, "size", next_word(&text), &line.length, error)) {
        return false;
    }
    const char *type_name = next_word(&text);
    int type = find_name(vmdk_type_names, G_N_ELEMENTS(vmdk_type_names), type_name);
    if (type < 0) {
        return error_set(error, ENOTSUP,
                         "%s: line %u: extents of type '%s' are not supported: must be FLAT, VMFS, "
                         "ZERO, SPARSE, VMFSSPARSE or SESPARSE",
                         parser->path, parser->line, type_name ? type_name : "");
    }
    line.type = type;
    if (line.type == VMDK_TYPE_ZERO) {
        return add_line(parser, &line, error);
    }
    line.name = next_word(&text);
    if (!line.name || !*line.name) {
        return error_set(error, EUCLEAN, "%s: line %u: the extent names no file", parser->path,
                         parser->line);
    }
    const char *offset = next_word(&text);
    bool flat = line.type == VMDK_TYPE_FLAT || line.type == VMDK_TYPE_VMFS;
    if (offset && flat && !parse_sectors(parser, "offset", offset, &line.offset, error)) {
        return false;
    }
    return add_line(parser, &line, error);
}

void vmdk_line_append(GString *text, const VmdkLine *line)
{
    g_string_append_printf(text, "%s %" G_GUINT64_FORMAT " %s", access_names[line->access],
                           line->length / VMDK_SECTOR, vmdk_type_names[line->type]);
    if (line->name) {
        g_string_append_printf(text, " \"%s\"", line->name);
    }
    if (line->type == VMDK_TYPE_FLAT || line->type == VMDK_TYPE_VMFS) {
        g_string_append_printf(text, " %" G_GUINT64_FORMAT, line->offset / VMDK_SECTOR);
    }
}

static bool parse_line(Parser *parser, char *text, GError **error)
{
    g_strstrip(text);
    if (*text == '\0' || *text == '#') {
        return true;
    }
    char *rest = text;
    size_t first = strcspn(text, " \t");
    g_autofree char *word = g_strndup(text, first);
    int access = find_name(access_names, G_N_ELEMENTS(access_names), word);
    if (access >= 0) {
        rest += first;
        return parse_extent(parser, access, rest, error);
    }
    char *equals = strchr(text, '=');
    if (equals) {
        *equals = '\0';
        return parse_setting(parser, text, equals + 1, error);
    }
    return error_set(
        error, EUCLEAN,
        "%s: line %u: '%.40s' is neither an extent (RW, RDONLY, NOACCESS) nor a setting",
        parser->path, parser->line, text);
}

/* What the lines say together. */
static bool check_whole(const Parser *parser, GError **error)
{
    const VmdkDescriptor *out = parser->out;
    const char *missing = !parser->has_version ? "version"
                          : !parser->has_cid   ? "CID"
                          : !out->create_type  ? "createType"
                                               : NULL;
    if (missing) {
        return error_set(error, EUCLEAN, "%s: the descriptor has no %s", parser->path, missing);
    }
    if (out->parent_cid != VMDK_NO_PARENT && !out->parent_name) {
        return error_set(error, EUCLEAN,
                         "%s: parentCID is %08x, but there is no parentFileNameHint", parser->path,
                         out->parent_cid);
    }
    if (out->parent_cid == VMDK_NO_PARENT && out->parent_name) {
        return error_set(error, EUCLEAN,
                         "%s: parentFileNameHint is '%s', but parentCID is %08x (no parent)",
                         parser->path, out->parent_name, VMDK_NO_PARENT);
    }
    return true;
}

static void line_clear(void *line)
{
    g_free(((VmdkLine *)line)->name);
}

VmdkDescriptor *vmdk_descriptor_new(const char *create_type)
{
    VmdkDescriptor *descriptor = g_new0(VmdkDescriptor, 1);
    descriptor->create_type = g_strdup(create_type);
    descriptor->parent_cid = VMDK_NO_PARENT;
    descriptor->lines = g_array_new(false, false, sizeof(VmdkLine));
    g_array_set_clear_func(descriptor->lines, line_clear);
    return descriptor;
}

VmdkDescriptor *vmdk_descriptor_parse(const char *text, size_t n, const char *path, GError **error)
{
    g_autoptr(VmdkDescriptor) out = vmdk_descriptor_new(NULL);

    Parser parser = {.out = out, .path = path};
    const char *start = text, *end = text + strnlen(text, n);
    out->text = g_strndup(text, end - text);
    while (text < end) {
        const char *newline = memchr(text, '\n', end - text);
        size_t length = (newline ? newline : end) - text;
        g_autofree char *line = g_strndup(text, length);
        parser.raw = text;
        parser.raw_length = length;
        parser.raw_at = text - start;
        parser.line++;
        if (!parse_line(&parser, line, error)) {
            return NULL;
        }
        text += length + (newline ? 1 : 0);
    }
    return check_whole(&parser, error) ? g_steal_pointer(&out) : NULL;
}

void vmdk_descriptor_free(VmdkDescriptor *descriptor)
{
    if (descriptor) {
        g_array_unref(descriptor->lines);
        g_free(descriptor->create_type);
        g_free(descriptor->parent_name);
        g_free(descriptor->text);
        g_free(descriptor);
    }
}
