/* The sandbox: each case closes it in a child, which then tries what is not allowed. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/errors.h"
#include "base/sandbox.h"
#include "base/thread.h"
#include "tests/unit/suite.h"

/* Runs function in a child, with its stderr on a pipe. Returns what it returned; *said, to free: what
 * it wrote. */
static int in_child(int (*function)(const char *argument), const char *argument, char **said)
{
    int ends[2];
    ck_assert(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        _exit(function(argument));
    }
    close(ends[1]);
    GString *text = g_string_new(NULL);
    char piece[512];
    for (ssize_t got; (got = read(ends[0], piece, sizeof piece)) > 0;) {
        g_string_append_len(text, piece, got);
    }
    close(ends[0]);
    int status;
    ck_assert(waitpid(pid, &status, 0) == pid);
    ck_assert_msg(WIFEXITED(status), "ended by signal %d", WTERMSIG(status));
    if (said != NULL) {
        *said = g_string_free(text, FALSE);
    } else {
        g_string_free(text, TRUE);
    }
    return WEXITSTATUS(status);
}

/* 0: a call was denied; else what it did instead. */
static int expect_denied(long result)
{
    return result < 0 && errno == EPERM ? 0 : result < 0 ? errno : 255;
}

static int denied_calls(const char *unused)
{
    struct sched_param idle = {0};
    if (!sandbox_calls_close(false, NULL)) {
        return 254;
    }
    const int tries[] = {
        expect_denied(socket(AF_PACKET, SOCK_RAW, 0)),
        expect_denied(syscall(SYS_bpf, 0, NULL, 0)),
        expect_denied(mount("none", "/nonexistent", "tmpfs", 0, NULL)),
        expect_denied(unshare(CLONE_NEWUSER)),
        expect_denied(syscall(SYS_setns, -1, 0)),
        expect_denied(syscall(SYS_keyctl, 0, 0, 0, 0, 0)),
        expect_denied(syscall(SYS_perf_event_open, NULL, 0, 0, 0, 0)),
        expect_denied(syscall(SYS_init_module, NULL, 0, "")),
        expect_denied(syscall(SYS_mknodat, AT_FDCWD, "/nonexistent/x", S_IFCHR, 0)),
        expect_denied(sched_setscheduler(0, SCHED_IDLE, &idle)),
        expect_denied(ioctl(0, 0x5412 /* TIOCSTI */, "x")),
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(tries); i++) {
        if (tries[i] != 0) {
            return 1 + i;
        }
    }
    return 0;
}

START_TEST(calls_that_a_server_does_not_need_are_denied_and_said)
{
    g_autofree char *said = NULL;
    ck_assert_int_eq(in_child(denied_calls, NULL, &said), 0);
#if defined(__x86_64__) || defined(__aarch64__)
    g_autofree char *line =
        g_strdup_printf("cownbd: warning: sandbox: denied system call %d\n", (int)SYS_bpf);
    ck_assert_msg(strstr(said, line) != NULL, "%s", said);
#endif
}
END_TEST

#if !defined(__clang__) /* clang builds are those of the sanitizers, which start programs */
static int start_program(const char *programs)
{
    char *const none[] = {NULL};
    if (!sandbox_calls_close(*programs == 'y', NULL)) {
        return 254;
    }
    execve("/nonexistent/program", none, none);
    return errno;
}

START_TEST(programs_are_started_only_where_that_was_allowed)
{
    ck_assert_int_eq(in_child(start_program, "no", NULL), EPERM);
    ck_assert_int_eq(in_child(start_program, "yes", NULL), ENOENT);
}
END_TEST
#endif

static void *try_in_thread(void *result)
{
    *(int *)result = expect_denied(syscall(SYS_bpf, 0, NULL, 0));
    return NULL;
}

static pthread_mutex_t closed = PTHREAD_MUTEX_INITIALIZER;

static void *try_when_closed(void *result)
{
    pthread_mutex_lock(&closed);
    pthread_mutex_unlock(&closed);
    return try_in_thread(result);
}

static int threads_too(const char *unused)
{
    pthread_t before, after;
    int results[2] = {253, 253};
    pthread_mutex_lock(&closed);
    if (thread_start(&before, "before", try_when_closed, &results[0]) != 0 ||
        !sandbox_calls_close(false, NULL) ||
        thread_start(&after, "after", try_in_thread, &results[1]) != 0) {
        return 254;
    }
    pthread_mutex_unlock(&closed);
    pthread_join(before, NULL);
    pthread_join(after, NULL);
    return results[0] != 0 ? results[0] : results[1];
}

START_TEST(threads_that_block_signals_get_the_error_as_well)
{
    ck_assert_int_eq(in_child(threads_too, NULL, NULL), 0);
}
END_TEST

/* Files */

static bool can_open(const char *path, int flags)
{
    int fd = open(path, flags, 0600);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

static bool beneath(const char *directory, const char *name, int flags)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);
    return can_open(path, flags);
}

/* 0 also where the kernel has no Landlock: then the error says so, and nothing is restricted. */
static int files_of(const char *directory)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(SandboxFiles) files = sandbox_files_new();
    g_autofree char *written = g_build_filename(directory, "written", NULL);
    g_autofree char *read = g_build_filename(directory, "read", NULL);
    g_autofree char *single = g_build_filename(directory, "outside", "single", NULL);
    sandbox_files_allow(files, written, SANDBOX_WRITE);
    sandbox_files_allow(files, read, SANDBOX_READ);
    sandbox_files_allow(files, single, SANDBOX_WRITE);
    sandbox_files_allow(files, "/nonexistent", SANDBOX_WRITE);
    sandbox_files_allow(files, NULL, SANDBOX_WRITE);
    if (!sandbox_files_close(files, &error)) {
        bool none = error->code == ENOSYS || error->code == EOPNOTSUPP;
        return none && beneath(directory, "outside/other", O_RDONLY) ? 0 : 100;
    }
    const bool tries[] = {
        beneath(directory, "written/new", O_RDWR | O_CREAT),
        beneath(directory, "read/file", O_RDONLY),
        beneath(directory, "outside/single", O_RDWR),
        !beneath(directory, "read/file", O_RDWR) && errno == EACCES,
        !beneath(directory, "read/new", O_RDWR | O_CREAT) && errno == EACCES,
        !beneath(directory, "outside/other", O_RDONLY) && errno == EACCES,
        !beneath(directory, "written/../outside/other", O_RDONLY) && errno == EACCES,
        !beneath(directory, "written/link", O_RDONLY) && errno == EACCES,
        !can_open("/etc/passwd", O_RDONLY) && errno == EACCES,
        !can_open("/", O_RDONLY | O_DIRECTORY) && errno == EACCES,
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(tries); i++) {
        if (!tries[i]) {
            return 1 + i;
        }
    }
    return 0;
}

START_TEST(files_that_were_not_named_cannot_be_opened)
{
    g_autofree char *directory = g_dir_make_tmp("cownbd-sandbox.XXXXXX", NULL);
    g_autofree char *script = g_strdup_printf(
        "cd '%s' && mkdir written read outside && echo >read/file && echo >outside/single && "
        "echo >outside/other && ln -s ../outside/other written/link",
        directory);
    ck_assert_int_eq(system(script), 0);
    int result = in_child(files_of, directory, NULL);
    g_autofree char *remove = g_strdup_printf("rm -rf '%s'", directory);
    ck_assert_int_eq(system(remove), 0);
    ck_assert_int_eq(result, 0);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("sandbox");
    tcase_add_test(tcase, calls_that_a_server_does_not_need_are_denied_and_said);
#if !defined(__clang__)
    tcase_add_test(tcase, programs_are_started_only_where_that_was_allowed);
#endif
    tcase_add_test(tcase, threads_that_block_signals_get_the_error_as_well);
    tcase_add_test(tcase, files_that_were_not_named_cannot_be_opened);
    return suite_run("sandbox", tcase);
}
