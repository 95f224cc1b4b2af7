/*
 * Opening files that an image names.
 *
 * Whoever can write an image chooses the names in it, and must not gain the right to read (or hang
 * on) any other file of the host. So a name is resolved as the kernel would do it, the result must
 * lie beneath the directory of the image or beneath one that the administrator allowed, and is then
 * opened again *from that directory*, with openat2(RESOLVE_BENEATH) and without following any
 * symbolic link: there are none left in it, unless somebody exchanged a part meanwhile; then the
 * open fails.
 *
 * What must stay true: a descriptor that leaves here for a name in an image was opened beneath an
 * allowed directory; no FIFO, socket or character device is ever opened for reading or writing
 * (O_PATH looks first).
 */
#include "map/image-name.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "formats/format.h"
#include "store/store-replace.h"

#define NEW_FILE_MODE 0666
#define OPEN_RETRIES  16 /* openat2 answers EAGAIN when something was renamed beside it */

static const char *kind_of(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFDIR:
        return "a directory";
    case S_IFIFO:
        return "a FIFO";
    case S_IFSOCK:
        return "a socket";
    case S_IFCHR:
        return "a character device";
    case S_IFREG:
    case S_IFBLK:
        return NULL;
    default:
        return "no regular file";
    }
}

/* True when fd is something that can hold an image. */
static bool kind_allowed(int fd, const char *path, GError **error)
{
    struct stat st;
    if (fstat(fd, &st) < 0) {
        return error_set_errno(error, errno, "%s: cannot look at it", path);
    }
    const char *kind = kind_of(st.st_mode);
    if (kind) {
        return error_set(error, EINVAL, "%s: is %s: must be a regular file or a block device", path,
                         kind);
    }
    return true;
}

static int open_flags(bool write)
{
    return (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
}

/* O_NONBLOCK was for the open alone: io_uring takes it as a wish to fail rather than to wait. */
static bool set_blocking(int fd, const char *path, GError **error)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        return error_set_errno(error, errno, "%s: cannot set its flags", path);
    }
    return true;
}

int image_path_open(const char *path, bool write, GError **error)
{
    autofd int look = open(path, O_PATH | O_CLOEXEC);
    if (look < 0) {
        error_set_errno(error, errno, "%s: cannot open", path);
        return -1;
    }
    if (!kind_allowed(look, path, error)) {
        return -1;
    }
    autofd int fd = open(path, open_flags(write));
    if (fd < 0) {
        error_set_errno(error, errno, write ? "%s: cannot open for writing" : "%s: cannot open",
                        path);
        return -1;
    }
    if (!kind_allowed(fd, path, error) || !set_blocking(fd, path, error)) {
        return -1;
    }
    return fd_steal(&fd);
}

char *image_name_in_directory(int at, const char *path, const Format *format)
{
    struct stat st;
    if (fstatat(at, path, &st, 0) < 0 || !S_ISDIR(st.st_mode)) {
        return NULL;
    }
    for (const Format *const *one = formats; *one; one++) {
        if (!(*one)->directory_file || (format && format != *one)) {
            continue;
        }
        g_autofree char *file = g_build_filename(path, (*one)->directory_file, NULL);
        if (faccessat(at, file, F_OK, 0) == 0) {
            return g_steal_pointer(&file);
        }
    }
    return NULL;
}

/* The part of path behind directory, both absolute and free of "." and ".."; NULL when it does not
 * lie beneath. */
static const char *part_beneath(const char *path, const char *directory)
{
    size_t n = strlen(directory);
    while (n > 0 && directory[n - 1] == '/') {
        n--;
    }
    if (strncmp(path, directory, n) != 0 || path[n] != '/') {
        return NULL;
    }
    const char *part = path + n + strspn(path + n, "/");
    return *part ? part : NULL;
}

/* Where the kernel has no openat2: one component after the other, no links. There is no ".." in
 * path. */
static int open_by_parts(int directory, const char *path, int flags)
{
    g_auto(GStrv) parts = g_strsplit(path, "/", -1);
    autofd int at = fcntl(directory, F_DUPFD_CLOEXEC, 0);
    for (char **part = parts; *part && at >= 0; part++) {
        bool last = part[1] == NULL;
        if (strcmp(*part, "..") == 0) {
            errno = EXDEV;
            return -1;
        }
        int next = openat(at, *part, (last ? flags : O_PATH | O_DIRECTORY | O_CLOEXEC) | O_NOFOLLOW,
                          NEW_FILE_MODE);
        int open_errno = errno;
        close(at);
        at = next;
        errno = open_errno;
    }
    return fd_steal(&at);
}

int image_name_open_beneath(int directory, const char *path, int flags)
{
    struct open_how how = {
        .flags = flags | O_NOFOLLOW,
        .mode = flags & O_CREAT ? NEW_FILE_MODE : 0,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    };
    for (int i = 0; i < OPEN_RETRIES; i++) {
        int fd = syscall(SYS_openat2, directory, path, &how, sizeof how);
        if (fd >= 0) {
            return fd;
        }
        if (errno == ENOSYS || errno == EPERM) { /* an old kernel, a filter that does not know it */
            return open_by_parts(directory, path, flags);
        }
        if (errno != EAGAIN && errno != EINTR) {
            break;
        }
    }
    return -1;
}

/* The directories in which a name may lie, absolute and without links. */
static GPtrArray *allowed_roots(const Image *image)
{
    GPtrArray *roots = g_ptr_array_new_with_free_func(free);
    g_autofree char *beside = g_path_get_dirname(image->path);
    char *real = realpath(beside, NULL);
    if (real) {
        g_ptr_array_add(roots, real);
    }
    for (const char *const *allow = image->allow_paths; allow && *allow; allow++) {
        real = realpath(*allow, NULL);
        if (real) {
            g_ptr_array_add(roots, real);
        }
    }
    return roots;
}

static const char *find_root(const GPtrArray *roots, const char *path, const char **part)
{
    for (unsigned i = 0; i < roots->len; i++) {
        *part = part_beneath(path, roots->pdata[i]);
        if (*part) {
            return roots->pdata[i];
        }
    }
    return NULL;
}

static int open_in_root(const char *root, const char *part, bool write, const char *context,
                        GError **error)
{
    autofd int directory = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) {
        error_set_errno(error, errno, "%s: cannot open the directory %s", context, root);
        return -1;
    }
    autofd int look = image_name_open_beneath(directory, part, O_PATH | O_CLOEXEC);
    if (look < 0) {
        error_set_errno(error, errno, "%s", context);
        return -1;
    }
    if (!kind_allowed(look, context, error)) {
        return -1;
    }
    autofd int fd = image_name_open_beneath(directory, part, open_flags(write));
    if (fd < 0) {
        error_set_errno(error, errno, write ? "%s: cannot open for writing" : "%s", context);
        return -1;
    }
    if (!kind_allowed(fd, context, error) || !set_blocking(fd, context, error)) {
        return -1;
    }
    return fd_steal(&fd);
}

/* "nbd://host/x", "json:{...}": what qemu takes as a protocol, letters and a colon before any
 * slash. "file:" says no more than that it is a file. NULL with *error when the name is none of a
 * file. */
static const char *file_name_of(const Image *image, const char *what, const char *name,
                                GError **error)
{
    const char *plain = g_str_has_prefix(name, "file:") ? name + strlen("file:") : name;
    size_t scheme = strcspn(plain, ":/");
    if (plain == name && plain[scheme] == ':') {
        error_set(error, ENOTSUP,
                  "%s: %s '%s': names with '%.*s:' are not opened: must be the name of a file",
                  image->path, what, name, (int)scheme, plain);
        return NULL;
    }
    if (*plain == '\0') {
        error_set(error, EUCLEAN, "%s: the name of its %s is empty", image->path, what);
        return NULL;
    }
    return plain;
}

/* The path as qemu would write it: name itself when absolute, else the image's path up to its last
 * slash, then name. */
static char *combine(const char *image_path, const char *name)
{
    const char *slash = strrchr(image_path, '/');
    if (name[0] == '/' || !slash) {
        return g_strdup(name);
    }
    return g_strdup_printf("%.*s%s", (int)(slash + 1 - image_path), image_path, name);
}

static void refuse_outside(const Image *image, const char *context, const char *path,
                           GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);
    error_set(error, EACCES,
              "%s: lies outside the directory of the image: allow it with --allow-path %s", context,
              directory);
}

/* Where path, as written in image, leads: absolute. *why is 0, or the errno that says why it leads
 * nowhere; then the answer is where it would be if there were no links in it. */
static char *resolve(const Image *image, const char *path, const char *name, int *why)
{
    char *real = realpath(path, NULL);
    *why = real ? 0 : errno;
    if (!real) {
        g_autofree char *beside = g_path_get_dirname(image->path);
        char *real_beside = realpath(beside, NULL);
        char *lexical = g_canonicalize_filename(name, real_beside ? real_beside : "/");
        free(real_beside);
        return lexical;
    }
    char *copy = g_strdup(real);
    free(real);
    return copy;
}

int image_name_open(const Image *image, const char *what, const char *name, bool write,
                    char **resolved, GError **error)
{
    *resolved = NULL;
    const char *plain = file_name_of(image, what, name, error);
    if (!plain) {
        return -1;
    }
    if (image->no_names) {
        error_set(error, EACCES, "%s: %s '%s': this image was not opened by its path", image->path,
                  what, name);
        return -1;
    }
    int why;
    g_autofree char *path = combine(image->path, plain);
    g_autofree char *context = g_strdup_printf("%s: %s '%s' (%s)", image->path, what, name, path);
    g_autofree char *target = resolve(image, path, plain, &why);
    g_autoptr(GPtrArray) roots = allowed_roots(image);
    *resolved = g_strdup(path);

    const char *part;
    const char *root = find_root(roots, target, &part);
    if (!root) { /* said before whether it exists: an image must not learn what there is on the host
                  */
        refuse_outside(image, context, target, error);
        return -1;
    }
    if (why) {
        error_set_errno(error, why, "%s", context);
        return -1;
    }
    return open_in_root(root, part, write, context, error);
}

int image_name_make(const Image *image, const char *what, const char *name, char **resolved,
                    GError **error)
{
    int why;
    const char *part;
    g_autofree char *path = combine(image->path, name);
    g_autofree char *context = g_strdup_printf("%s: new %s '%s'", image->path, what, path);
    g_autofree char *target = resolve(image, path, name, &why);
    g_autoptr(GPtrArray) roots = allowed_roots(image);
    const char *root = image->no_names ? NULL : find_root(roots, target, &part);
    if (!root) {
        error_set(error, EACCES, "%s: must lie in the directory of the image", context);
        return -1;
    }
    autofd int directory = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int flags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC;
    autofd int fd = directory < 0 ? -1 : image_name_open_beneath(directory, part, flags);
    if (fd < 0) {
        error_set_errno(error, errno, "%s", context);
        return -1;
    }
    int r = store_sync_name(target);
    if (r < 0) {
        (void)unlinkat(directory, part, 0);
        error_set_errno(error, -r, "%s", context);
        return -1;
    }
    *resolved = g_strdup(path);
    return fd_steal(&fd);
}
