/*
 * Rescue: takes our devices down whatever state they are in.
 *
 *      disconnect nbd     what waits for the server fails with EIO
 *      error              every table becomes one line that fails all: nothing new can hang, and
 *                         the loop devices below are let go
 *      remove             now, or when the last one closes it
 *
 * The nbd device goes first: a table is swapped only after the requests under way have ended, and
 * those that hang are the ones that wait for the server.
 *
 * What must stay true: this process never waits for the kernel without a limit. Each step runs in a
 * child, which is left behind when it does not come back; nothing is flushed, nothing is opened.
 */
#include "fastpath/rescue.h"

#include <errno.h>
#include <libdevmapper.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "fastpath/attachment-impl.h"
#include "fastpath/dm.h"

#define STEP_MS    5000
#define SETTLE_MS  2000
#define POLL_US    20000
#define REASON_MAX 512

typedef struct Rescue {
    char *hash;        /* of the image's path */
    int index;         /* of its nbd device, or -1 */
    GPtrArray *mapped; /* names of its device-mapper devices */
    RescueSay *say;
    void *context;
    bool failed;
} Rescue;

static void rescue_clear(Rescue *rescue)
{
    g_free(rescue->hash);
    if (rescue->mapped != NULL) {
        g_ptr_array_unref(rescue->mapped);
    }
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Rescue, rescue_clear)

/* Steps */

typedef bool Step(const void *argument, GError **error);

/* In the child: tells the reason, if there is one, and ends without cleaning up. */
static G_GNUC_NORETURN void run_step(Step *step, const void *argument, int out)
{
    GError *error = NULL;
    bool done = step(argument, &error);
    if (!done && write(out, error->message, strlen(error->message)) < 0) {
        _exit(2);
    }
    _exit(done ? 0 : 1);
}

/* Waits for the child; its reason comes through in. */
static bool wait_for_step(pid_t child, int in, GError **error)
{
    char reason[REASON_MAX] = "";
    struct pollfd look = {.fd = in, .events = POLLIN};
    int status = 0;
    if (poll(&look, 1, STEP_MS) <= 0) {
        kill(child, SIGKILL); /* helps only where it does not wait in the kernel */
        return error_set(error, ETIMEDOUT, "did not end in %d s", STEP_MS / 1000);
    }
    ssize_t got = read(in, reason, sizeof reason - 1);
    waitpid(child, &status, 0); /* it has said all, or closed the pipe by ending */
    return (WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
           error_set(error, EIO, "%s", got > 0 ? reason : "failed");
}

static bool bounded(Step *step, const void *argument, GError **error)
{
    int ends[2];
    if (pipe(ends) != 0) {
        return error_set_errno(error, errno, "cannot make a pipe");
    }
    autofd int in = ends[0], out = ends[1];
    pid_t child = fork();
    if (child == 0) {
        run_step(step, argument, out);
    }
    close(fd_steal(&out));
    return child < 0 ? error_set_errno(error, errno, "cannot start a process")
                     : wait_for_step(child, in, error);
}

static void do_step(Rescue *rescue, Step *step, const void *argument, const char *what)
{
    g_autoptr(GError) error = NULL;
    bool done = bounded(step, argument, &error);
    g_autofree char *text = done ? g_strdup(what) : g_strdup_printf("%s: %s", what, error->message);
    rescue->failed = rescue->failed || !done;
    rescue->say(rescue->context, done, text);
}

/* What the steps do */

static bool disconnect_step(const void *argument, GError **error)
{
    return nbdlink_disconnect(*(const int *)argument, 0, error);
}

static bool run_task(struct dm_task *task, const char *what, GError **error)
{
    bool done = task != NULL && dm_task_run(task);
    int err = task != NULL ? dm_task_get_errno(task) : ENOMEM;
    if (task != NULL) {
        dm_task_destroy(task);
    }
    return done || error_set_errno(error, err, "%s", what);
}

static struct dm_task *task_for(int type, const char *name)
{
    struct dm_task *task = dm_task_create(type);
    if (task != NULL && !dm_task_set_name(task, name)) {
        dm_task_destroy(task);
        return NULL;
    }
    return task;
}

static bool device_sectors(const char *name, uint64_t *sectors, GError **error)
{
    DmInfo info;
    if (!dm_info(name, &info, error)) {
        return false;
    }
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/size", major(info.device), minor(info.device));
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, error)) {
        return false;
    }
    *sectors = g_ascii_strtoull(text, NULL, 10);
    return true;
}

/* Neither flushes nor freezes a filesystem on it. */
static bool error_step(const void *argument, GError **error)
{
    const char *name = argument;
    uint64_t sectors = 0;
    if (!device_sectors(name, &sectors, error)) {
        return false;
    }
    struct dm_task *load = task_for(DM_DEVICE_RELOAD, name);
    struct dm_task *suspend = task_for(DM_DEVICE_SUSPEND, name);
    struct dm_task *resume = task_for(DM_DEVICE_RESUME, name);
    bool made = load != NULL && suspend != NULL && resume != NULL &&
                dm_task_add_target(load, 0, sectors, "error", "") && dm_task_no_flush(suspend) &&
                dm_task_skip_lockfs(suspend) && dm_task_no_flush(resume);
    return made ? run_task(load, "load", error) && run_task(suspend, "suspend", error) &&
                      run_task(resume, "resume", error)
                : error_set(error, ENOMEM, "device-mapper: no task");
}

static bool remove_step(const void *argument, GError **error)
{
    struct dm_task *task = task_for(DM_DEVICE_REMOVE, argument);
    bool done = task != NULL && dm_task_deferred_remove(task) && run_task(task, "remove", error);
    dm_task_update_nodes(); /* where no udev does */
    return done || *error != NULL || error_set(error, ENOMEM, "device-mapper: no task");
}

/* What there is */

/* Names of all device-mapper devices whose UUID is ours and has the hash. */
static GPtrArray *find_mapped(const char *hash)
{
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    g_autoptr(GDir) directory = g_dir_open("/sys/block", 0, NULL);
    const char *block;
    while (directory != NULL && (block = g_dir_read_name(directory)) != NULL) {
        g_autofree char *uuid = attachment_block_attribute(block, "dm/uuid");
        if (uuid != NULL && g_str_has_prefix(uuid, ATTACHMENT_UUID_PREFIX) &&
            strstr(uuid, hash) != NULL) {
            g_ptr_array_add(names, attachment_block_attribute(block, "dm/name"));
        }
    }
    return names;
}

static int find_nbd(const char *hash)
{
    g_autoptr(GDir) directory = g_dir_open("/sys/block", 0, NULL);
    const char *block;
    while (directory != NULL && (block = g_dir_read_name(directory)) != NULL) {
        int index = nbdlink_index(block);
        g_autofree char *identifier = index >= 0 ? nbdlink_identifier(index) : NULL;
        const char *path = identifier != NULL ? attachment_identified_path(identifier) : NULL;
        g_autofree char *its_hash = path != NULL ? attachment_path_hash(path) : NULL;
        if (its_hash != NULL && strcmp(its_hash, hash) == 0 && nbdlink_is_connected(index)) {
            return index;
        }
    }
    return -1;
}

/* The hash in the UUID of a device of ours whose nbd device may be gone; NULL when it is none. */
static char *hash_of_uuid(const char *device)
{
    g_autofree char *uuid = attachment_device_uuid(device);
    const char *mode_end = uuid != NULL && g_str_has_prefix(uuid, ATTACHMENT_UUID_PREFIX)
                               ? strchr(uuid + strlen(ATTACHMENT_UUID_PREFIX), '-')
                               : NULL;
    return mode_end != NULL ? g_strndup(mode_end + 1, strcspn(mode_end + 1, "-")) : NULL;
}

static bool find_all(Rescue *rescue, const char *device, GError **error)
{
    if (g_str_has_prefix(device, "/dev/")) {
        rescue->hash = hash_of_uuid(device);
        g_autofree char *path = rescue->hash == NULL ? attachment_image_of(device, error) : NULL;
        if (rescue->hash == NULL && path == NULL) {
            return false;
        }
        rescue->hash = rescue->hash != NULL ? rescue->hash : attachment_path_hash(path);
    } else {
        rescue->hash = attachment_path_hash(device);
    }
    rescue->index = find_nbd(rescue->hash);
    rescue->mapped = find_mapped(rescue->hash);
    return rescue->index >= 0 || rescue->mapped->len > 0 ||
           error_set(error, ENODEV, "%s: is not attached", device);
}

/* True when nothing is left; waits for it for a moment. */
static bool all_gone(const Rescue *rescue)
{
    for (unsigned ms = 0; ms < SETTLE_MS; ms += POLL_US / 1000) {
        g_autoptr(GPtrArray) mapped = find_mapped(rescue->hash);
        if (mapped->len == 0 && find_nbd(rescue->hash) < 0) {
            return true;
        }
        g_usleep(POLL_US);
    }
    return false;
}

bool rescue_device(const char *device, RescueSay *say, void *context, GError **error)
{
    g_auto(Rescue) rescue = {.say = say, .context = context, .index = -1};
    if (!find_all(&rescue, device, error)) {
        return false;
    }
    if (rescue.index >= 0) {
        g_autofree char *what = g_strdup_printf("/dev/nbd%d: disconnect", rescue.index);
        do_step(&rescue, disconnect_step, &rescue.index, what);
    }
    for (unsigned i = 0; i < rescue.mapped->len; i++) {
        const char *name = g_ptr_array_index(rescue.mapped, i);
        g_autofree char *what = g_strdup_printf("/dev/mapper/%s: fail all requests", name);
        do_step(&rescue, error_step, name, what);
    }
    for (unsigned i = 0; i < rescue.mapped->len; i++) {
        const char *name = g_ptr_array_index(rescue.mapped, i);
        g_autofree char *what = g_strdup_printf("/dev/mapper/%s: remove", name);
        do_step(&rescue, remove_step, name, what);
    }
    if (rescue.failed) {
        return error_set(error, EBUSY, "%s: not all could be done: see above", device);
    }
    if (!all_gone(&rescue)) {
        say(context, true,
            "it fails every request now, and goes when it is closed: unmount it (umount -l), or "
            "end who has it open");
    }
    return true;
}
