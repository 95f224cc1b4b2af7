/* src/map/image-name.c: which files an image may name */
#include <fcntl.h>
#include <glib/gstdio.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "map/image-name.h"
#include "tests/unit/suite.h"

/*
 *     top/images/disk         the image
 *     top/images/beside       top/images/sub/below
 *     top/images/out -> ../secret        in -> sub/below        far -> ../other
 *     top/secret              top/other/base
 */
static char *top;
static char *image_path;

static char *in_top(const char *name)
{
    return g_build_filename(top, name, NULL);
}

static void make_file(const char *name)
{
    g_autofree char *path = in_top(name);
    ck_assert(g_file_set_contents(path, name, -1, NULL));
}

static void make_folder(const char *name)
{
    g_autofree char *path = in_top(name);
    ck_assert_int_eq(g_mkdir(path, 0700), 0);
}

static void make_link(const char *name, const char *target)
{
    g_autofree char *path = in_top(name);
    ck_assert_int_eq(symlink(target, path), 0);
}

static void tree_make(void)
{
    top = g_dir_make_tmp("cownbd-name-XXXXXX", NULL);
    make_folder("images");
    make_folder("images/sub");
    make_folder("images-too");
    make_folder("other");
    make_file("images/disk");
    make_file("images/beside");
    make_file("images/sub/below");
    make_file("images-too/near");
    make_file("secret");
    make_file("other/base");
    make_link("images/out", "../secret");
    make_link("images/in", "sub/below");
    make_link("images/far", "../other");
    make_link("images/nowhere", "gone");
    make_link("images/round", "round");
    image_path = in_top("images/disk");
}

static void tree_remove(void)
{
    const char *argv[] = {"rm", "-rf", top, NULL};
    g_spawn_sync(NULL, (char **)argv, NULL, G_SPAWN_SEARCH_PATH, NULL, NULL, NULL, NULL, NULL,
                 NULL);
    g_clear_pointer(&top, g_free);
    g_clear_pointer(&image_path, g_free);
}

/* Opens name as a name in the image; *text is what the file says, or the error. Returns 0 or the
 * error's code. */
static int open_name(const char *name, const char *allow, char **text)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *resolved = NULL;
    const char *allow_paths[] = {allow, NULL};
    Image image = {.path = image_path, .allow_paths = allow_paths};
    autofd int fd = image_name_open(&image, "part", name, false, &resolved, &error);
    if (fd < 0) {
        *text = g_strdup(error->message);
        return error->code;
    }
    ck_assert_ptr_nonnull(resolved);
    ck_assert_int_eq(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    ck_assert_int_ne(fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
    char buffer[64] = "";
    ck_assert_int_ge(read(fd, buffer, sizeof buffer - 1), 0);
    *text = g_strdup(buffer);
    return 0;
}

static void assert_opens(const char *name, const char *allow, const char *expected)
{
    g_autofree char *text = NULL;
    int code = open_name(name, allow, &text);
    ck_assert_msg(code == 0, "'%s': %s", name, text);
    ck_assert_str_eq(text, expected);
}

static void assert_refused(const char *name, const char *allow, int code, const char *words)
{
    g_autofree char *text = NULL;
    int got = open_name(name, allow, &text);
    ck_assert_msg(got == code, "'%s': %d: %s", name, got, text);
    ck_assert_msg(strstr(text, image_path) && strstr(text, words), "'%s' is not in: %s", words,
                  text);
}

START_TEST(name_beside_or_below_the_image_is_opened)
{
    assert_opens("beside", NULL, "images/beside");
    assert_opens("./beside", NULL, "images/beside");
    assert_opens("sub/below", NULL, "images/sub/below");
    assert_opens("sub/../beside", NULL, "images/beside");
    assert_opens("in", NULL, "images/sub/below");
    assert_opens("file:beside", NULL, "images/beside");
    g_autofree char *absolute = in_top("images/sub/below");
    assert_opens(absolute, NULL, "images/sub/below");
    g_autofree char *prefixed = g_strconcat("file:", absolute, NULL);
    assert_opens(prefixed, NULL, "images/sub/below");
}
END_TEST

START_TEST(name_outside_is_refused_with_the_option_that_allows_it)
{
    g_autofree char *option = g_strdup_printf("--allow-path %s", top);
    assert_refused("../secret", NULL, EACCES, option);
    assert_refused("sub/../../secret", NULL, EACCES, option);
    assert_refused("out", NULL, EACCES, option);
    assert_refused("far/base", NULL, EACCES, "--allow-path");
    assert_refused("/etc/passwd", NULL, EACCES, "--allow-path /etc");
    assert_refused("file:/etc/passwd", NULL, EACCES, "--allow-path /etc");
    assert_refused("/proc/self/root/etc/passwd", NULL, EACCES, "--allow-path");
    g_autofree char *near = in_top("images-too/near");
    assert_refused(near, NULL, EACCES, "--allow-path");
    g_autofree char *above = in_top("images/../secret");
    assert_refused(above, NULL, EACCES, "--allow-path");
}
END_TEST

START_TEST(name_in_an_allowed_directory_is_opened)
{
    g_autofree char *other = in_top("other"), *base = in_top("other/base");
    assert_opens(base, other, "other/base");
    assert_opens("../other/base", other, "other/base");
    assert_opens("far/base", other, "other/base");
    assert_opens("out", top, "secret");
    assert_refused("../secret", other, EACCES, "--allow-path");
    g_autofree char *slashes = g_strconcat(other, "//", NULL);
    assert_opens(base, slashes, "other/base");
    assert_opens(base, "/", "other/base");
}
END_TEST

START_TEST(name_that_is_not_there_says_so_only_where_it_might_be)
{
    assert_refused("gone", NULL, ENOENT, "images/gone");
    assert_refused("nowhere", NULL, ENOENT, "images/nowhere");
    assert_refused("round", NULL, ELOOP, "images/round");
    assert_refused("../gone", NULL, EACCES, "--allow-path");
    assert_refused("/etc/no-such-file", NULL, EACCES, "--allow-path /etc");
    assert_refused("beside/x", NULL, ENOTDIR, "beside/x");
}
END_TEST

START_TEST(name_with_a_protocol_is_refused)
{
    static const char *const names[] = {
        "nbd://localhost/x",
        "nbd:unix:/run/x",
        "http://example.org/x",
        "json:{}",
        "json:{\"driver\":\"file\"}",
        "fat:rw:/etc",
        "NBD://x",
        "C:disk",
        "file:json:{}",
        "host_device:/dev/x",
        NULL,
    };
    for (const char *const *name = names; *name; name++) {
        g_autofree char *text = NULL;
        int code = open_name(*name, "/", &text);
        bool plain = g_str_has_prefix(*name, "file:");
        ck_assert_msg(code == (plain ? ENOENT : ENOTSUP), "%s: %d: %s", *name, code, text);
    }
    assert_refused("", NULL, EUCLEAN, "empty");
    assert_refused("file:", NULL, EUCLEAN, "empty");
}
END_TEST

START_TEST(name_of_a_directory_or_fifo_is_refused_without_waiting)
{
    g_autofree char *fifo = in_top("images/fifo");
    ck_assert_int_eq(mkfifo(fifo, 0600), 0);
    assert_refused("fifo", NULL, EINVAL, "FIFO");
    assert_refused("sub", NULL, EINVAL, "directory");
    assert_refused(".", NULL, EACCES, "--allow-path");
    assert_refused("/dev/zero", "/dev", EINVAL, "character device");
}
END_TEST

START_TEST(name_is_resolved_from_where_the_image_lies)
{
    g_autofree char *before = g_get_current_dir();
    g_autofree char *images = in_top("images");
    ck_assert_int_eq(chdir(images), 0);
    char *path = image_path;
    image_path = g_strdup("disk");
    assert_opens("beside", NULL, "images/beside");
    assert_refused("../secret", NULL, EACCES, "--allow-path");
    g_free(image_path);
    image_path = path;
    ck_assert_int_eq(chdir(before), 0);
}
END_TEST

/* As an old kernel, or a container that does not know the call, would answer. For the rest of the
 * process. */
static void take_openat2_away(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = G_N_ELEMENTS(code), .filter = code};
    ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ck_assert_int_eq(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
    ck_assert_int_eq(syscall(SYS_openat2, AT_FDCWD, "/", NULL, 0), -1);
    ck_assert_int_eq(errno, ENOSYS);
}

/* Must be the last test. */
START_TEST(name_rules_hold_without_openat2)
{
    take_openat2_away();
    assert_opens("beside", NULL, "images/beside");
    assert_opens("in", NULL, "images/sub/below");
    assert_opens("sub/../beside", NULL, "images/beside");
    assert_refused("out", NULL, EACCES, "--allow-path");
    assert_refused("../secret", NULL, EACCES, "--allow-path");
    assert_refused("gone", NULL, ENOENT, "images/gone");
    assert_refused("sub", NULL, EINVAL, "directory");
    g_autofree char *other = in_top("other");
    assert_opens("far/base", other, "other/base");
    assert_opens("far/base", "/", "other/base");
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("image_name");
    tcase_add_checked_fixture(tcase, tree_make, tree_remove);
    tcase_add_test(tcase, name_beside_or_below_the_image_is_opened);
    tcase_add_test(tcase, name_outside_is_refused_with_the_option_that_allows_it);
    tcase_add_test(tcase, name_in_an_allowed_directory_is_opened);
    tcase_add_test(tcase, name_that_is_not_there_says_so_only_where_it_might_be);
    tcase_add_test(tcase, name_with_a_protocol_is_refused);
    tcase_add_test(tcase, name_of_a_directory_or_fifo_is_refused_without_waiting);
    tcase_add_test(tcase, name_is_resolved_from_where_the_image_lies);
    tcase_add_test(tcase, name_rules_hold_without_openat2);
    return suite_run("image_name", tcase);
}
