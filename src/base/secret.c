/*
 * Secrets. Each piece of secret memory is a mapping of its own, so that what concerns pages (locked,
 * not dumped) concerns nothing else:
 *
 *     +--------------+------------------- ... ------+
 *     | SecretHead   | the caller's bytes           |
 *     +--------------+------------------- ... ------+
 *
 * Memory that cannot be locked (RLIMIT_MEMLOCK) is used all the same: a server that refuses its
 * disks helps nobody. A warning says so, once.
 */
#include "base/secret.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"

#define HEAD            64 /* bytes in front of the caller's, which stay aligned */
#define CREDENTIAL      "cownbd-secret"
#define CREDENTIAL_FOR  CREDENTIAL "."
#define FD_NUMBER_LIMIT 1048576

typedef struct SecretHead {
    size_t size; /* of the mapping */
    struct SecretHead *next, **previous;
} SecretHead;

G_STATIC_ASSERT(sizeof(SecretHead) <= HEAD);

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static SecretHead *list; /* list_lock */

void *secret_memory_new(size_t size)
{
    static atomic_bool warned;
    if (size > SIZE_MAX - HEAD) {
        return NULL;
    }
    SecretHead *head =
        mmap(NULL, size + HEAD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (head == MAP_FAILED) {
        return NULL;
    }
    madvise(head, size + HEAD, MADV_DONTDUMP);
    if (mlock(head, size + HEAD) < 0 && !atomic_exchange(&warned, true)) {
        log_warning("keys may be paged out: memory cannot be locked: %s", g_strerror(errno));
    }
    head->size = size + HEAD;
    with_mutex(&list_lock);
    head->next = list;
    head->previous = &list;
    if (list) {
        list->previous = &head->next;
    }
    list = head;
    return (uint8_t *)head + HEAD;
}

static SecretHead *head_of(void *memory)
{
    return (SecretHead *)((uint8_t *)memory - HEAD);
}

void secret_memory_free(void *memory)
{
    if (!memory) {
        return;
    }
    SecretHead *head = head_of(memory);
    {
        with_mutex(&list_lock);
        *head->previous = head->next;
        if (head->next) {
            head->next->previous = head->previous;
        }
    }
    size_t size = head->size;
    explicit_bzero(head, size);
    munmap(head, size);
}

bool secret_memory_owns(const void *memory)
{
    with_mutex(&list_lock);
    for (const SecretHead *head = list; head; head = head->next) {
        if (memory == (const uint8_t *)head + HEAD) {
            return true;
        }
    }
    return false;
}

void secret_free(Secret *secret)
{
    if (secret) {
        secret_memory_free(secret->bytes);
        g_free(secret);
    }
}

/* ---- where they come from ------------------------------------------------------------------- */

static Secret *read_all(int fd, const char *what, GError **error)
{
    g_autoptr(Secret) secret = g_new0(Secret, 1);
    secret->bytes = secret_memory_new(SECRET_MAX + 1);
    if (!secret->bytes) {
        error_set_errno(error, ENOMEM, "%s", what);
        return NULL;
    }
    while (secret->length <= SECRET_MAX) {
        ssize_t n = read(fd, secret->bytes + secret->length, SECRET_MAX + 1 - secret->length);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            error_set_errno(error, errno, "%s: cannot read the secret", what);
            return NULL;
        }
        if (n == 0) {
            break;
        }
        secret->length += n;
    }
    if (secret->length == 0 || secret->length > SECRET_MAX) {
        error_set(error, EINVAL, "%s: %s: a secret must have 1 to %u bytes", what,
                  secret->length == 0 ? "is empty" : "is too long", SECRET_MAX);
        return NULL;
    }
    return g_steal_pointer(&secret);
}

Secret *secret_read_file(const char *path, GError **error)
{
    autofd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) {
        error_set_errno(error, errno, "%s: cannot open the secret", path);
        return NULL;
    }
    return read_all(fd, path, error);
}

Secret *secret_read_fd(int fd, GError **error)
{
    g_autofree char *what = g_strdup_printf("descriptor %d", fd);
    return read_all(fd, what, error);
}

/* ---- the list ------------------------------------------------------------------------------- */

typedef struct Entry {
    char *image; /* NULL: every image */
    Secret *secret;
} Entry;

struct Secrets {
    GArray *entries; /* Entry */
    const Secrets *otherwise;
};

static void entry_clear(void *item)
{
    Entry *entry = item;
    g_free(entry->image);
    secret_free(entry->secret);
}

Secrets *secrets_new(const Secrets *otherwise)
{
    Secrets *secrets = g_new(Secrets, 1);
    secrets->otherwise = otherwise;
    secrets->entries = g_array_new(false, false, sizeof(Entry));
    g_array_set_clear_func(secrets->entries, entry_clear);
    return secrets;
}

void secrets_free(Secrets *secrets)
{
    if (secrets) {
        g_array_unref(secrets->entries);
        g_free(secrets);
    }
}

/* A path with its '..' taken out, so that it is found however it was written; a name as it is. */
static char *image_key(const char *image, const char *folder)
{
    g_autofree char *absolute = folder ? g_canonicalize_filename(folder, NULL) : NULL;
    return strchr(image, '/') ? g_canonicalize_filename(image, absolute) : g_strdup(image);
}

static bool add(Secrets *secrets, const char *image, size_t image_length, Secret *secret)
{
    if (secret) {
        g_autofree char *name = image ? g_strndup(image, image_length) : NULL;
        Entry entry = {name ? image_key(name, NULL) : NULL, secret};
        g_array_append_val(secrets->entries, entry);
    }
    return secret != NULL;
}

/* An image's name may hold '=', a source's not. */
const char *secret_text_source(const char *text)
{
    const char *equals = strrchr(text, '=');
    return equals ? equals + 1 : text;
}

char *secret_text_absolute(const char *text, const char *folder)
{
    const char *source = secret_text_source(text);
    g_autofree char *absolute = folder ? g_canonicalize_filename(folder, NULL) : NULL;
    g_autofree char *file = g_canonicalize_filename(source, absolute);
    if (source == text) {
        return g_steal_pointer(&file);
    }
    g_autofree char *image = g_strndup(text, source - text - 1);
    g_autofree char *key = image_key(image, folder);
    return g_strconcat(key, "=", file, NULL);
}

static bool add_text(Secrets *secrets, const char *text, Secret *secret)
{
    const char *source = secret_text_source(text);
    return source == text ? add(secrets, NULL, 0, secret)
                          : add(secrets, text, source - text - 1, secret);
}

bool secrets_add_file(Secrets *secrets, const char *text, GError **error)
{
    return add_text(secrets, text, secret_read_file(secret_text_source(text), error));
}

bool secrets_add_fd(Secrets *secrets, const char *text, GError **error)
{
    const char *source = secret_text_source(text);
    guint64 number;
    if (!g_ascii_string_to_unsigned(source, 10, 0, FD_NUMBER_LIMIT, &number, NULL)) {
        return error_set(error, EINVAL,
                         "--secret-fd is '%s': must be [IMAGE=]N, N being an open descriptor",
                         text);
    }
    return add_text(secrets, text, secret_read_fd((int)number, error));
}

bool secrets_add_credentials(Secrets *secrets, GError **error)
{
    const char *directory = g_getenv("CREDENTIALS_DIRECTORY");
    g_autoptr(GDir) dir = directory ? g_dir_open(directory, 0, NULL) : NULL;
    bool ok = true;
    for (const char *name; ok && dir && (name = g_dir_read_name(dir));) {
        g_autofree char *path = g_build_filename(directory, name, NULL);
        if (strcmp(name, CREDENTIAL) == 0) {
            ok = add(secrets, NULL, 0, secret_read_file(path, error));
        } else if (g_str_has_prefix(name, CREDENTIAL_FOR)) {
            const char *image = name + strlen(CREDENTIAL_FOR);
            ok = add(secrets, image, strlen(image), secret_read_file(path, error));
        }
    }
    return ok;
}

const Secret *secrets_find(const Secrets *secrets, const char *path)
{
    const Secret *by_name = NULL, *for_all = NULL;
    g_autofree char *name = g_path_get_basename(path);
    g_autofree char *absolute = g_canonicalize_filename(path, NULL);
    for (guint i = 0; secrets && i < secrets->entries->len; i++) {
        const Entry *entry = &g_array_index(secrets->entries, Entry, i);
        if (!entry->image) {
            for_all = for_all ? for_all : entry->secret;
        } else if (strcmp(entry->image, absolute) == 0) {
            return entry->secret;
        } else if (!by_name && strcmp(entry->image, name) == 0) {
            by_name = entry->secret;
        }
    }
    const Secret *found = by_name ? by_name : for_all;
    return found || !secrets ? found : secrets_find(secrets->otherwise, path);
}
