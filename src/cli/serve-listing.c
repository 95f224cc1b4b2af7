/*
 * What LIST says of directories: the images below them that a client could ask for.
 *
 * A client may ask as often as it likes, so what was found stays good for a second, and a walk is
 * bounded: so many files looked at, so deep, so many images listed. What is left out can be asked for
 * all the same. What must stay true: nothing is listed that serve-directory.c would not open, as far as
 * its first bytes tell; no link is followed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "cli/serve-impl.h"
#include "formats/format.h"
#include "map/image-name.h"
#include "map/image.h"

#define LOOKED_AT_MAX 10000
#define LISTED_MAX    1000
#define DEPTH_MAX     16
#define GOOD_FOR      G_USEC_PER_SEC

typedef struct Walk {
    const ConfigDirectory *directory;
    AccessRules *rules;
    GPtrArray *listed; /* NbdListed * */
    unsigned looked_at;
} Walk;

static void listed_free(void *data)
{
    NbdListed *listed = data;
    g_free(listed->name);
    g_clear_pointer(&listed->access, access_rules_unref);
    g_free(listed);
}

static NbdListed *listed_new(const char *name, AccessRules *access)
{
    NbdListed *listed = g_new(NbdListed, 1);
    *listed = (NbdListed){g_strdup(name), access != NULL ? access_rules_ref(access) : NULL};
    return listed;
}

static void *listed_copy(const void *data, void *unused)
{
    const NbdListed *listed = data;
    return listed_new(listed->name, listed->access);
}

static bool is_full(const Walk *walk)
{
    return walk->looked_at >= LOOKED_AT_MAX || walk->listed->len >= LISTED_MAX;
}

/* As the file would be opened: with one format declared it is taken for that, and must look so. */
static bool has_format(const Walk *walk, int parent, const char *name)
{
    char *const *declared = walk->directory->formats;
    uint8_t head[IMAGE_PROBE_SIZE];
    if (declared != NULL && declared[1] == NULL && strcmp(declared[0], "raw") == 0) {
        return true;
    }
    autofd int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    ssize_t got = fd >= 0 ? pread(fd, head, sizeof head, 0) : -1;
    return got >= 0 &&
           serve_directory_declares(walk->directory, format_probe(head, got, name)->name);
}

static void look_at_file(Walk *walk, int parent, const char *name, const char *path)
{
    if (strlen(path) <= EXPORT_NAME_MAX && has_format(walk, parent, name)) {
        g_ptr_array_add(walk->listed, listed_new(path, walk->rules));
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* What is in the folder, in the order of names; those that no client could say are left out. */
static GPtrArray *names_in(Walk *walk, int folder)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    DIR *stream = fdopendir(fcntl(folder, F_DUPFD_CLOEXEC, 0));
    const struct dirent *entry;
    while (stream != NULL && !is_full(walk) && (entry = readdir(stream)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && g_utf8_validate(name, -1, NULL)) {
            g_ptr_array_add(names, g_strdup(name));
        }
        walk->looked_at++;
    }
    if (stream != NULL) {
        closedir(stream);
    }
    g_ptr_array_sort(names, by_name);
    return names;
}

/* path: by which clients know the folder. */
static void walk_folder(Walk *walk, int folder, const char *path, unsigned depth)
{
    g_autoptr(GPtrArray) names = names_in(walk, folder);
    for (unsigned i = 0; i < names->len && walk->listed->len < LISTED_MAX; i++) {
        const char *name = g_ptr_array_index(names, i);
        g_autofree char *below = g_strdup_printf("%s/%s", path, name);
        struct stat st;
        if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) != 0) {
            continue;
        }
        g_autofree char *in_directory =
            S_ISDIR(st.st_mode) ? image_name_in_directory(folder, name, NULL) : NULL;
        if (S_ISREG(st.st_mode) || in_directory) {
            look_at_file(walk, folder, in_directory ? in_directory : name, below);
        } else if (S_ISDIR(st.st_mode) && depth < DEPTH_MAX) {
            autofd int next = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (next >= 0) {
                walk_folder(walk, next, below, depth + 1);
            }
        }
    }
}

static void list_directory(Serve *serve, const ConfigDirectory *directory, GPtrArray *listed)
{
    g_autoptr(AccessRules) rules = serve_tls_rules(&serve->options, &directory->access);
    Walk walk = {.directory = directory, .rules = rules, .listed = listed};
    autofd int top = open(directory->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (top < 0) {
        log_limited(LOG_LEVEL_WARNING, "%s: cannot be listed: %s", directory->path,
                    g_strerror(errno));
        return;
    }
    walk_folder(&walk, top, directory->name, 0);
    if (is_full(&walk)) {
        log_limited(LOG_LEVEL_INFO, "%s: has more than LIST shows: %u images, %u files looked at",
                    directory->path, LISTED_MAX, LOOKED_AT_MAX);
    }
}

GPtrArray *serve_listing(Serve *serve)
{
    const Config *config = serve_config(serve);
    int64_t now = g_get_monotonic_time();
    if (serve->listing == NULL || now - serve->listed_at > GOOD_FOR) {
        serve_listing_forget(serve);
        serve->listing = g_ptr_array_new_with_free_func(listed_free);
        for (unsigned i = 0; config != NULL && i < config->directories->len; i++) {
            list_directory(serve, g_ptr_array_index(config->directories, i), serve->listing);
        }
        serve->listed_at = now;
    }
    return g_ptr_array_copy(serve->listing, listed_copy, NULL);
}

void serve_listing_forget(Serve *serve)
{
    g_clear_pointer(&serve->listing, g_ptr_array_unref);
}
