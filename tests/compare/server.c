/*
 * Starting and stopping the server under test. The child dies with us, whatever happens.
 */
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config.h"

#define STEP_US     (5 * 1000)
#define START_STEPS (60 * 1000 * 1000 / STEP_US) /* a minute; the sanitizers are slow to start */
#define STOP_STEPS  (120 * 1000 * 1000 / STEP_US)

static GPtrArray *server_arguments(const Server *server, const char *program, const char *directory,
                                   const char *format, char *const *images, unsigned count)
{
    GPtrArray *argv = g_ptr_array_new_with_free_func(g_free);
    g_ptr_array_add(argv, g_strdup(program));
    if (g_str_has_suffix(program, "qemu-nbd")) {
        g_autofree char *name = g_path_get_basename(images[0]);
        const char *const rest[] = {"-t", "-e",   "128", "--discard=unmap",
                                    "-f", format, "-k",  server->socket,
                                    "-x", name,   NULL};
        for (unsigned i = 0; rest[i] != NULL; i++) {
            g_ptr_array_add(argv, g_strdup(rest[i]));
        }
    } else {
        g_ptr_array_add(argv, g_strdup("serve"));
        g_ptr_array_add(argv, g_strdup("-l"));
        g_ptr_array_add(argv, g_strconcat("unix:", server->socket, NULL));
        g_ptr_array_add(argv, g_strdup("--control"));
        g_ptr_array_add(argv, g_strconcat(directory, "/control", NULL));
        g_ptr_array_add(argv, g_strdup("-f"));
        g_ptr_array_add(argv, g_strdup(format));
        g_ptr_array_add(argv, g_strdup("--secret-file"));
        g_ptr_array_add(argv, g_strconcat(directory, "/secret", NULL));
    }
    for (unsigned i = 0; i < count; i++) {
        g_ptr_array_add(argv, g_strdup(images[i]));
    }
    g_ptr_array_add(argv, NULL);
    return argv;
}

static bool server_answers(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    g_strlcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool answers = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    return answers;
}

/* Waits a moment; dies when the server has ended, unless that is what status is for. */
static bool server_has_ended(Server *server, int *status)
{
    g_usleep(STEP_US);
    pid_t pid = waitpid(server->pid, status, WNOHANG);
    return pid == server->pid || (pid < 0 && errno != EINTR);
}

void server_start(Server *server, const char *program, const char *directory, const char *format,
                  char *const *images, unsigned count)
{
    server->socket = g_build_filename(directory, "socket", NULL);
    unlink(server->socket);
    g_autoptr(GPtrArray) argv = server_arguments(server, program, directory, format, images, count);
    server->pid = fork();
    if (server->pid < 0) {
        die("fork: %s", strerror(errno));
    }
    if (server->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
        execvp(program, (char **)argv->pdata);
        _exit(127);
    }
    for (unsigned i = 0; i < START_STEPS; i++) {
        int status;
        if (server_answers(server->socket)) {
            return;
        }
        if (server_has_ended(server, &status)) {
            die("the server ended before it could be reached, status 0x%x", (unsigned)status);
        }
    }
    die("the server cannot be reached");
}

void server_ask_to_end(Server *server)
{
    if (kill(server->pid, SIGTERM) != 0) {
        die("the server is gone");
    }
}

void server_wait(Server *server)
{
    int status;
    for (unsigned i = 0; i < STOP_STEPS; i++) {
        if (server_has_ended(server, &status)) {
            if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
                die("the server ended badly, status 0x%x", (unsigned)status);
            }
            g_free(server->socket);
            return;
        }
    }
    die("the server does not end");
}

void server_stop(Server *server)
{
    server_ask_to_end(server);
    server_wait(server);
}
