/*
 * A key file, taken apart.
 *
 * GKeyFile reads such files, but it knows no lines, stops at the first mistake, and puts a section
 * or a key that stands twice together without a word. So lines are looked at here, and GKeyFile is
 * asked only what a value means. What must stay true: a section or a key that is accepted here is
 * one that GKeyFile takes, too (no control characters, no brackets).
 */
#include "control/config-scan.h"

#include <string.h>

#include "base/errors.h"

#define SHOWN_MAX    60    /* characters of a wrong line in an error */
#define SECTIONS_MAX 10000 /* each is looked for among all before it */
#define ENTRIES_MAX  100   /* of a section, likewise */

typedef struct Scanner {
    ConfigPlace place;
    GPtrArray *sections;
    ConfigErrors *errors;
    ConfigSection *current; /* NULL: before the first, or in one that is not accepted */
    bool lost;              /* entries belong to a section that is not accepted */
} Scanner;

static void entry_free(void *data)
{
    ConfigEntry *entry = data;
    g_free(entry->key);
    g_free(entry->raw);
    g_free(entry);
}

static void section_free(void *data)
{
    ConfigSection *section = data;
    g_free(section->kind);
    g_free(section->name);
    g_ptr_array_unref(section->entries);
    g_free(section);
}

GPtrArray *config_sections_new(void)
{
    return g_ptr_array_new_with_free_func(section_free);
}

const ConfigEntry *config_section_find(const ConfigSection *section, const char *key)
{
    for (unsigned i = 0; i < section->entries->len; i++) {
        const ConfigEntry *entry = g_ptr_array_index(section->entries, i);
        if (strcmp(entry->key, key) == 0) {
            return entry;
        }
    }
    return NULL;
}

static ConfigSection *find_section(const Scanner *scanner, const char *kind, const char *name)
{
    for (unsigned i = 0; i < scanner->sections->len; i++) {
        ConfigSection *section = g_ptr_array_index(scanner->sections, i);
        if (strcmp(section->kind, kind) == 0 && strcmp(section->name, name) == 0) {
            return section;
        }
    }
    return NULL;
}

/* Part of a line that cannot be read, fit to be shown. */
static char *shown(const char *line)
{
    g_autofree char *part = g_utf8_substring(line, 0, MIN(g_utf8_strlen(line, -1), SHOWN_MAX));
    return g_strescape(part, NULL);
}

static bool is_clean(const char *text)
{
    for (; *text != '\0'; text++) {
        if (g_ascii_iscntrl(*text) || *text == '[' || *text == ']') {
            return false;
        }
    }
    return true;
}

/* The parts of "[KIND NAME]" or "[KIND]"; false when the line is neither. */
static bool split_header(const char *line, char **kind, char **name)
{
    size_t length = strlen(line);
    if (line[length - 1] != ']') {
        return false;
    }
    g_autofree char *inside = g_strndup(line + 1, length - 2);
    g_strstrip(inside);
    if (inside[0] == '\0' || !is_clean(inside)) {
        return false;
    }
    size_t kind_length = strcspn(inside, " ");
    *kind = g_strndup(inside, kind_length);
    *name = g_strdup(inside + kind_length);
    g_strchug(*name);
    return true;
}

static void take_header(Scanner *scanner, const char *line)
{
    g_autofree char *kind = NULL, *name = NULL;
    scanner->current = NULL;
    scanner->lost = true;
    if (!split_header(line, &kind, &name)) {
        g_autofree char *text = shown(line);
        config_errors_add(scanner->errors, scanner->place,
                          "'%s' is no section: must be [server] or [KIND NAME]", text);
        return;
    }
    ConfigSection *before = find_section(scanner, kind, name);
    if (before != NULL && name[0] != '\0') {
        config_errors_add(scanner->errors, scanner->place,
                          "section [%s %s] stands at %s:%u already: give this one another name",
                          kind, name, before->place.file, before->place.line);
        return;
    }
    if (before == NULL && scanner->sections->len == SECTIONS_MAX) {
        config_errors_add(scanner->errors, scanner->place,
                          "this is one section too many: at most %d", SECTIONS_MAX);
        return;
    }
    scanner->lost = false;
    scanner->current = before;
    if (before == NULL) {
        ConfigSection *section = g_new(ConfigSection, 1);
        *section = (ConfigSection){.kind = g_steal_pointer(&kind),
                                   .name = g_steal_pointer(&name),
                                   .place = scanner->place,
                                   .entries = g_ptr_array_new_with_free_func(entry_free)};
        g_ptr_array_add(scanner->sections, section);
        scanner->current = section;
    }
}

static bool is_key(const char *key)
{
    return key[0] != '\0' && strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(key);
}

static void take_entry(Scanner *scanner, const char *line)
{
    const char *equals = strchr(line, '=');
    g_autofree char *key = g_strndup(line, equals != NULL ? (size_t)(equals - line) : 0);
    g_strchomp(key);
    if (!is_key(key)) {
        g_autofree char *text = shown(line);
        config_errors_add(scanner->errors, scanner->place,
                          "'%s' is no entry: must be key=value, [section] or a # comment", text);
        return;
    }
    if (scanner->current == NULL) {
        if (!scanner->lost) {
            config_errors_add(scanner->errors, scanner->place,
                              "key '%s' stands before the first section: must be below one", key);
        }
        return;
    }
    if (scanner->current->entries->len == ENTRIES_MAX) {
        config_errors_add(scanner->errors, scanner->place, "this is one key too many: at most %d",
                          ENTRIES_MAX);
        return;
    }
    const ConfigEntry *before = config_section_find(scanner->current, key);
    if (before != NULL) {
        config_errors_add(scanner->errors, scanner->place,
                          "key '%s' stands at %s:%u already: leave one of them out", key,
                          before->place.file, before->place.line);
        return;
    }
    ConfigEntry *entry = g_new(ConfigEntry, 1);
    *entry = (ConfigEntry){
        .key = g_steal_pointer(&key), .raw = g_strdup(equals + 1), .place = scanner->place};
    g_strchug(entry->raw);
    g_ptr_array_add(scanner->current->entries, entry);
}

static void take_line(Scanner *scanner, char *line)
{
    g_strstrip(line);
    if (line[0] == '\0' || line[0] == '#') {
        return;
    }
    if (line[0] == '[') {
        take_header(scanner, line);
    } else {
        take_entry(scanner, line);
    }
}

/* The line of the first byte that no text has; 0: there is none. */
static unsigned first_bad_line(const char *text, size_t length)
{
    const char *bad;
    if (g_utf8_validate(text, length, &bad)) {
        return 0;
    }
    unsigned line = 1;
    for (const char *p = text; p < bad; p++) {
        line += *p == '\n';
    }
    return line;
}

void config_scan(ConfigPlace file, const char *text, size_t length, GPtrArray *sections,
                 ConfigErrors *errors)
{
    Scanner scanner = {.place = file, .sections = sections, .errors = errors};
    scanner.place.line = first_bad_line(text, length);
    if (scanner.place.line > 0) {
        config_errors_add(errors, scanner.place,
                          "this is no text: the file must be UTF-8 without zero bytes");
        return;
    }
    for (const char *end = text + length; text < end;) {
        const char *newline = memchr(text, '\n', end - text);
        const char *line_end = newline != NULL ? newline : end;
        g_autofree char *line = g_strndup(text, line_end - text);
        scanner.place.line++;
        take_line(&scanner, line);
        text = line_end + 1;
    }
}

/* Values */

static GKeyFile *key_file_of(const ConfigEntry *entry)
{
    GKeyFile *file = g_key_file_new();
    g_key_file_set_value(file, "section", entry->key, entry->raw);
    return file;
}

char *config_entry_text(const ConfigEntry *entry, ConfigErrors *errors)
{
    g_autoptr(GKeyFile) file = key_file_of(entry);
    g_autoptr(GError) wrong = NULL;
    g_autofree char *text = g_key_file_get_string(file, "section", entry->key, &wrong);
    if (wrong != NULL) {
        config_errors_add(errors, entry->place,
                          "%s is '%s': a backslash must be written twice, or be one of \\s \\n "
                          "\\t \\r",
                          entry->key, entry->raw);
    } else if (text[0] == '\0') {
        config_errors_add(errors, entry->place, "%s is empty: leave the line out or say a value",
                          entry->key);
    } else {
        return g_steal_pointer(&text);
    }
    return NULL;
}

char **config_entry_list(const ConfigEntry *entry, ConfigErrors *errors)
{
    g_autoptr(GKeyFile) file = key_file_of(entry);
    char **list = g_key_file_get_string_list(file, "section", entry->key, NULL, NULL);
    bool ok = list != NULL && list[0] != NULL;
    for (unsigned i = 0; ok && list[i] != NULL; i++) {
        ok = g_strstrip(list[i])[0] != '\0';
    }
    if (!ok) {
        config_errors_add(errors, entry->place,
                          "%s is '%s': must be values with ';' between them, none of them empty",
                          entry->key, entry->raw);
        g_clear_pointer(&list, g_strfreev);
    }
    return list;
}

bool config_entry_flag(const ConfigEntry *entry, bool *value, ConfigErrors *errors)
{
    g_autoptr(GKeyFile) file = key_file_of(entry);
    g_autoptr(GError) wrong = NULL;
    *value = g_key_file_get_boolean(file, "section", entry->key, &wrong);
    if (wrong != NULL) {
        config_errors_add(errors, entry->place, "%s is '%s': must be true or false", entry->key,
                          entry->raw);
    }
    return wrong == NULL;
}

bool config_entry_number(const ConfigEntry *entry, int *value, ConfigErrors *errors)
{
    g_autoptr(GKeyFile) file = key_file_of(entry);
    g_autoptr(GError) wrong = NULL;
    *value = g_key_file_get_integer(file, "section", entry->key, &wrong);
    if (wrong != NULL) {
        config_errors_add(errors, entry->place, "%s is '%s': must be a whole number", entry->key,
                          entry->raw);
    }
    return wrong == NULL;
}
