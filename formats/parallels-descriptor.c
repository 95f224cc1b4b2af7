/*
 * parallels: DiskDescriptor.xml, which says of which files a disk is made.
 *
 *     <Parallels_disk_image Version="1.0">
 *         <Disk_Parameters> Disk_size, Padding, LogicSectorSize, Encryption/Engine </Disk_Parameters>
 *         <StorageData>
 *             <Storage> Start, End, Blocksize             sectors; several storages lie one behind the other
 *                 <Image> GUID, Type, File </Image>       one for each snapshot
 *             </Storage>
 *         </StorageData>
 *         <Snapshots> TopGUID
 *             <Shot> GUID, ParentGUID </Shot>             a tree; the root's parent is all zeroes
 *         </Snapshots>
 *     </Parallels_disk_image>
 *
 * GLib takes the text apart. Texts are gathered as they come; when an element ends that they belong to, they become
 * numbers and names, and are checked. So their order does not count. What is not named above says nothing of what the
 * disk holds, and is passed over.
 *
 * What must stay true: every offset and length that leaves here is one of whole sectors, below 2^63; the storages cover
 * the disk, each byte once; whatever the text, memory is bounded by its length and the limits of parallels.h.
 */
#include "formats/parallels.h"

#include <string.h>

#include "base/errors.h"

#define ROOT         "Parallels_disk_image"
#define STORAGE      "/" ROOT "/StorageData/Storage"
#define DEPTH_MAX    16u            /* of elements in each other */
#define UTF8_MARK    "\xef\xbb\xbf" /* of a text in UTF-8, where a program wrote one */
#define TOP_DEFAULT  "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
#define NO_GUID      "{00000000-0000-0000-0000-000000000000}"
#define PLAIN        "Plain"
#define COMPRESSED   "Compressed"
#define SECTOR_COUNT (INT64_MAX / PARALLELS_SECTOR) /* at most */

typedef enum {
    TEXT_SIZE,
    TEXT_PADDING,
    TEXT_SECTOR_SIZE,
    TEXT_ENGINE,
    TEXT_START,
    TEXT_END,
    TEXT_BLOCKSIZE,
    TEXT_IMAGE,
    TEXT_TYPE,
    TEXT_FILE,
    TEXT_TOP,
    TEXT_SHOT,
    TEXT_PARENT,
    TEXT_COUNT,
} TextId;

static const char *const text_paths[TEXT_COUNT] = {
    [TEXT_SIZE] = "/" ROOT "/Disk_Parameters/Disk_size",
    [TEXT_PADDING] = "/" ROOT "/Disk_Parameters/Padding",
    [TEXT_SECTOR_SIZE] = "/" ROOT "/Disk_Parameters/LogicSectorSize",
    [TEXT_ENGINE] = "/" ROOT "/Disk_Parameters/Encryption/Engine",
    [TEXT_START] = STORAGE "/Start",
    [TEXT_END] = STORAGE "/End",
    [TEXT_BLOCKSIZE] = STORAGE "/Blocksize",
    [TEXT_IMAGE] = STORAGE "/Image/GUID",
    [TEXT_TYPE] = STORAGE "/Image/Type",
    [TEXT_FILE] = STORAGE "/Image/File",
    [TEXT_TOP] = "/" ROOT "/Snapshots/TopGUID",
    [TEXT_SHOT] = "/" ROOT "/Snapshots/Shot/GUID",
    [TEXT_PARENT] = "/" ROOT "/Snapshots/Shot/ParentGUID",
};

typedef struct Parser {
    ParallelsDescriptor *out;
    const char *image; /* its path, for messages */
    GMarkupParseContext *markup;
    GString *path; /* of the element that is open: "/Parallels_disk_image/Snapshots" */
    unsigned depth;
    char *texts[TEXT_COUNT]; /* of the elements that are open; NULL: not said */
    GString *text;           /* of an element that is one of these: so far; else NULL */
    GPtrArray *files;        /* of the storage that is open */
} Parser;

static void file_free(void *item)
{
    ParallelsFile *file = item;
    g_free(file->guid);
    g_free(file->name);
    g_free(file);
}

static void storage_free(void *item)
{
    ParallelsStorage *storage = item;
    g_ptr_array_unref(storage->files);
    g_free(storage);
}

static GPtrArray *files_new(void)
{
    return g_ptr_array_new_with_free_func(file_free);
}

/* ---- texts ---- */

/* The name of the element: what stands behind the last slash. */
static const char *text_name(TextId id)
{
    return strrchr(text_paths[id], '/') + 1;
}

static int line_of(const Parser *parser)
{
    int line;
    g_markup_parse_context_get_position(parser->markup, &line, NULL);
    return line;
}

static bool refuse(const Parser *parser, TextId id, const char *text, const char *wanted,
                   GError **error)
{
    return error_set(error, EUCLEAN, "%s: line %d: %s is '%.80s': must be %s", parser->image,
                     line_of(parser), text_name(id), text, wanted);
}

/* The text, which is the caller's from now on; NULL with *error when it was not said. */
static char *take_text(Parser *parser, TextId id, GError **error)
{
    if (!parser->texts[id]) {
        error_set(error, EUCLEAN, "%s: line %d: %s is missing", parser->image, line_of(parser),
                  text_name(id));
    }
    return g_steal_pointer(&parser->texts[id]);
}

static bool take_sectors(Parser *parser, TextId id, uint64_t most, uint64_t *bytes, GError **error)
{
    g_autofree char *text = take_text(parser, id, error);
    guint64 sectors;
    if (!text) {
        return false;
    }
    if (!g_ascii_string_to_unsigned(text, 10, 0, most, &sectors, NULL)) {
        g_autofree char *wanted = g_strdup_printf("a number of sectors, %" PRIu64 " at most", most);
        return refuse(parser, id, text, wanted, error);
    }
    *bytes = sectors * PARALLELS_SECTOR;
    return true;
}

static bool is_guid(const char *text)
{
    static const char form[] = NO_GUID;
    size_t n = 0;
    while (form[n] && (form[n] == '0' ? g_ascii_isxdigit(text[n]) : text[n] == form[n])) {
        n++;
    }
    return form[n] == '\0' && text[n] == '\0';
}

/* In small letters; NULL with *error. */
static char *take_guid(Parser *parser, TextId id, GError **error)
{
    g_autofree char *text = take_text(parser, id, error);
    if (text && !is_guid(text)) {
        refuse(parser, id, text, "like " NO_GUID, error);
        return NULL;
    }
    return text ? g_ascii_strdown(text, -1) : NULL;
}

/* Says nothing, or the one value that is supported. */
static bool check_constant(Parser *parser, TextId id, const char *supported, GError **error)
{
    const char *text = parser->texts[id];
    if (!text || strcmp(text, supported) == 0) {
        return true;
    }
    return error_set(error, ENOTSUP, "%s: %s is '%.80s': only %s is supported", parser->image,
                     text_name(id), text, supported);
}

/* ---- what ends ---- */

static bool check_count(const Parser *parser, unsigned count, unsigned most, const char *what,
                        GError **error)
{
    return count < most || error_set(error, EUCLEAN, "%s: line %d: there are more than %u %s",
                                     parser->image, line_of(parser), most, what);
}

static const ParallelsFile *find_file(const GPtrArray *files, const char *guid)
{
    for (unsigned i = 0; i < files->len; i++) {
        const ParallelsFile *file = files->pdata[i];
        if (strcmp(file->guid, guid) == 0) {
            return file;
        }
    }
    return NULL;
}

static bool end_image(Parser *parser, GError **error)
{
    g_autofree char *guid = take_guid(parser, TEXT_IMAGE, error);
    g_autofree char *type = guid ? take_text(parser, TEXT_TYPE, error) : NULL;
    g_autofree char *name = type ? take_text(parser, TEXT_FILE, error) : NULL;
    if (!name || !check_count(parser, parser->files->len, PARALLELS_FILES_MAX,
                              "images of a storage", error)) {
        return false;
    }
    bool plain = strcmp(type, PLAIN) == 0;
    if (!plain && strcmp(type, COMPRESSED) != 0) {
        return refuse(parser, TEXT_TYPE, type, COMPRESSED " or " PLAIN, error);
    }
    if (find_file(parser->files, guid)) {
        return refuse(parser, TEXT_IMAGE, guid, "of one image of the storage only", error);
    }
    ParallelsFile *file = g_new(ParallelsFile, 1);
    *file = (ParallelsFile){g_steal_pointer(&guid), g_steal_pointer(&name), plain};
    g_ptr_array_add(parser->files, file);
    return true;
}

/* Storages lie one behind the other. */
static bool check_place(const Parser *parser, uint64_t start, uint64_t end, GError **error)
{
    const ParallelsDescriptor *out = parser->out;
    if (start != out->size) {
        return error_set(error, EUCLEAN,
                         "%s: line %d: Start is %" PRIu64 ": must be %" PRIu64
                         ", where the storage before it ends",
                         parser->image, line_of(parser), start / PARALLELS_SECTOR,
                         out->size / PARALLELS_SECTOR);
    }
    return end > start ||
           error_set(error, EUCLEAN,
                     "%s: line %d: End is %" PRIu64 ": must be behind Start, which is %" PRIu64,
                     parser->image, line_of(parser), end / PARALLELS_SECTOR,
                     start / PARALLELS_SECTOR);
}

static bool end_storage(Parser *parser, GError **error)
{
    ParallelsDescriptor *out = parser->out;
    uint64_t start = 0, end = 0, cluster = 0;
    if (!take_sectors(parser, TEXT_START, SECTOR_COUNT, &start, error) ||
        !take_sectors(parser, TEXT_END, SECTOR_COUNT, &end, error) ||
        !take_sectors(parser, TEXT_BLOCKSIZE, PARALLELS_CLUSTER_MAX / PARALLELS_SECTOR, &cluster,
                      error) ||
        !check_place(parser, start, end, error) ||
        !check_count(parser, out->storages->len, PARALLELS_STORAGES_MAX, "storages", error)) {
        return false;
    }
    ParallelsStorage *storage = g_new(ParallelsStorage, 1);
    *storage = (ParallelsStorage){start, end - start, cluster, parser->files};
    g_ptr_array_add(out->storages, storage);
    out->size = end;
    parser->files = files_new();
    return true;
}

static bool end_shot(Parser *parser, GError **error)
{
    g_autofree char *guid = take_guid(parser, TEXT_SHOT, error);
    char *parent = guid ? take_guid(parser, TEXT_PARENT, error) : NULL;
    if (!parent) {
        return false;
    }
    if (g_hash_table_contains(parser->out->parents, guid)) {
        g_free(parent);
        return refuse(parser, TEXT_SHOT, guid, "of one Shot only", error);
    }
    g_ptr_array_add(parser->out->shots, guid);
    g_hash_table_insert(parser->out->parents, g_steal_pointer(&guid), parent);
    return true;
}

static bool end_disk(Parser *parser, GError **error)
{
    ParallelsDescriptor *out = parser->out;
    uint64_t size;
    if (!check_constant(parser, TEXT_PADDING, "0", error) ||
        !check_constant(parser, TEXT_SECTOR_SIZE, "512", error) ||
        !check_constant(parser, TEXT_ENGINE, NO_GUID, error) ||
        !take_sectors(parser, TEXT_SIZE, SECTOR_COUNT, &size, error)) {
        return false;
    }
    if (size != out->size || size == 0) {
        return error_set(error, EUCLEAN,
                         "%s: Disk_size is %" PRIu64 ": must be %" PRIu64
                         ", where the last storage ends, and not 0",
                         parser->image, size / PARALLELS_SECTOR, out->size / PARALLELS_SECTOR);
    }
    out->top = parser->texts[TEXT_TOP] ? take_guid(parser, TEXT_TOP, error) : g_strdup(TOP_DEFAULT);
    return out->top != NULL;
}

/* ---- the markup ---- */

static const struct {
    const char *path;
    bool (*end)(Parser *parser, GError **error);
} owners[] = {
    {STORAGE "/Image", end_image},
    {STORAGE, end_storage},
    {"/" ROOT "/Snapshots/Shot", end_shot},
    {"/" ROOT, end_disk},
};

/* Of a text that belongs to us; else TEXT_COUNT. */
static TextId find_text(const char *path)
{
    TextId id = 0;
    while (id < TEXT_COUNT && strcmp(path, text_paths[id]) != 0) {
        id++;
    }
    return id;
}

static bool check_root(const Parser *parser, const char *name, const char **keys,
                       const char **values, GError **error)
{
    if (parser->out->top) {
        return error_set(error, EUCLEAN, "%s: line %d: %.80s follows what must be the one element",
                         parser->image, line_of(parser), name);
    }
    if (strcmp(name, ROOT) != 0) {
        return error_set(error, EUCLEAN, "%s: its first element is %.80s: must be " ROOT,
                         parser->image, name);
    }
    const char *version = "";
    for (; *keys; keys++, values++) {
        version = strcmp(*keys, "Version") == 0 ? *values : version;
    }
    return strcmp(version, "1.0") == 0 ||
           error_set(error, ENOTSUP, "%s: Version is '%.80s': must be 1.0", parser->image, version);
}

static void on_start(GMarkupParseContext *context, const char *name, const char **keys,
                     const char **values, void *opaque, GError **error)
{
    Parser *parser = opaque;
    if (parser->depth == 0 && !check_root(parser, name, keys, values, error)) {
        return;
    }
    if (parser->text) {
        error_set(error, EUCLEAN, "%s: line %d: the element %.80s is in %s: that must be a text",
                  parser->image, line_of(parser), name, strrchr(parser->path->str, '/') + 1);
        return;
    }
    if (++parser->depth > DEPTH_MAX) {
        error_set(error, EUCLEAN, "%s: line %d: elements are more than %u deep in each other",
                  parser->image, line_of(parser), DEPTH_MAX);
        return;
    }
    g_string_append_c(parser->path, '/');
    g_string_append(parser->path, name);
    TextId id = find_text(parser->path->str);
    if (id < TEXT_COUNT && parser->texts[id]) {
        error_set(error, EUCLEAN, "%s: line %d: %s is said twice", parser->image, line_of(parser),
                  name);
    } else if (id < TEXT_COUNT) {
        parser->text = g_string_new(NULL);
    }
}

static void on_text(GMarkupParseContext *context, const char *text, gsize length, void *opaque,
                    GError **error)
{
    Parser *parser = opaque;
    if (parser->text) {
        g_string_append_len(parser->text, text, length);
    }
}

static void on_end(GMarkupParseContext *context, const char *name, void *opaque, GError **error)
{
    Parser *parser = opaque;
    if (parser->text) {
        char *text = g_string_free(g_steal_pointer(&parser->text), FALSE);
        parser->texts[find_text(parser->path->str)] = g_strstrip(text);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(owners); i++) {
        if (strcmp(parser->path->str, owners[i].path) == 0 && !owners[i].end(parser, error)) {
            return;
        }
    }
    g_string_truncate(parser->path, strrchr(parser->path->str, '/') - parser->path->str);
    parser->depth--;
}

static void parser_clear(Parser *parser)
{
    for (TextId id = 0; id < TEXT_COUNT; id++) {
        g_free(parser->texts[id]);
    }
    if (parser->text) {
        g_string_free(parser->text, TRUE);
    }
    g_string_free(parser->path, TRUE);
    g_ptr_array_unref(parser->files);
    g_markup_parse_context_free(parser->markup);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Parser, parser_clear)

/* What GLib finds wrong has its own code. */
static void give_error(GError *found, const char *path, GError **error)
{
    if (found->domain == COWNBD_ERROR) {
        g_propagate_error(error, found);
        return;
    }
    error_set(error, EUCLEAN, "%s: is no XML: %s", path, found->message);
    g_error_free(found);
}

static size_t utf8_mark_length(const char *text, size_t n)
{
    size_t length = strlen(UTF8_MARK);
    return n >= length && memcmp(text, UTF8_MARK, length) == 0 ? length : 0;
}

bool parallels_descriptor_probe(const uint8_t *head, size_t n)
{
    const char *text = (const char *)head;
    size_t skip = utf8_mark_length(text, n);
    return n > skip && text[skip] == '<' && g_strstr_len(text + skip, n - skip, "<" ROOT);
}

ParallelsDescriptor *parallels_descriptor_parse(const char *text, size_t n, const char *path,
                                                GError **error)
{
    static const GMarkupParser calls = {on_start, on_end, on_text, NULL, NULL};
    g_autoptr(ParallelsDescriptor) out = g_new0(ParallelsDescriptor, 1);
    out->storages = g_ptr_array_new_with_free_func(storage_free);
    out->parents = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    out->shots = g_ptr_array_new();
    g_auto(Parser) parser = {.out = out, .image = path};
    parser.markup = g_markup_parse_context_new(&calls, 0, &parser, NULL);
    parser.path = g_string_new(NULL);
    parser.files = files_new();
    size_t skip = utf8_mark_length(text, n);
    GError *found = NULL;
    if (!g_markup_parse_context_parse(parser.markup, text + skip, n - skip, &found) ||
        !g_markup_parse_context_end_parse(parser.markup, &found)) {
        give_error(found, path, error);
        return NULL;
    }
    if (!out->top) { /* a comment is XML, too */
        error_set(error, EUCLEAN, "%s: has no element: must be " ROOT, path);
        return NULL;
    }
    return g_steal_pointer(&out);
}

void parallels_descriptor_free(ParallelsDescriptor *descriptor)
{
    if (descriptor) {
        g_ptr_array_unref(descriptor->storages);
        g_hash_table_unref(descriptor->parents);
        g_ptr_array_unref(descriptor->shots);
        g_free(descriptor->top);
        g_free(descriptor);
    }
}

/* ---- the tree of snapshots ---- */

GPtrArray *parallels_descriptor_chain(const ParallelsDescriptor *descriptor, const char *guid,
                                      const char *path, GError **error)
{
    g_autoptr(GPtrArray) chain = g_ptr_array_new();
    const char *at = guid;
    do {
        if (chain->len == IMAGE_CHAIN_MAX) {
            error_set(error, ELOOP, "%s: %s has %d snapshots below it, or is below itself", path,
                      guid, IMAGE_CHAIN_MAX);
            return NULL;
        }
        g_ptr_array_add(chain, (char *)at);
        const char *parent = g_hash_table_lookup(descriptor->parents, at);
        if (!parent && g_hash_table_size(descriptor->parents) > 0) {
            error_set(error, EUCLEAN, "%s: no Shot has the GUID %s, which is %s", path, at,
                      at == guid ? "the top" : "a ParentGUID");
            return NULL;
        }
        at = parent ? parent : NO_GUID; /* with no Shot at all there is one image */
    } while (strcmp(at, NO_GUID) != 0);
    return g_steal_pointer(&chain);
}

const ParallelsFile *parallels_storage_file(const ParallelsStorage *storage, const char *guid)
{
    return find_file(storage->files, guid);
}
