/*
 * Device-mapper through libdevmapper: one ioctl a task, the tasks of a change in the right order.
 *
 *      load ──> suspend ──> confirm? ──yes──> resume: the new table ──> done
 *       │          │            │no              │ refused by the kernel
 *       v          v            v                v
 *     error      clear ──────> clear ─────────> resume: the old table ──> error
 *
 * What must stay true: whoever suspends resumes; nothing between the two waits for memory or for
 * the device. So the tasks that come after the suspend are made before it.
 *
 * The kernel compares sizes only when it resumes, and leaves the device suspended then; a second
 * resume brings the old table back. The caller checks sizes before all the same.
 *
 * Where udev runs it makes the nodes, and create and remove wait for it; elsewhere libdevmapper
 * makes them itself.
 */
#include "fastpath/dm.h"

#include <fcntl.h>
#include <libdevmapper.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"
#include "base/log.h"

#define CONTROL    "/dev/mapper/control"
#define BUSY_TRIES 50
/* One path, regions as large as they can be (1 TiB), no options. */
#define SWITCH_HEAD "1 2147483648 0 "
#define BUSY_US     20000

/* What libdevmapper said last on this thread; it tells reasons in no other way. */
static _Thread_local char last_words[256];

static G_GNUC_PRINTF(5, 6) void hear(int level, const char *file, int line, int code,
                                     const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if ((level & 7) <= 4) { /* as in syslog: an error or a warning */
        vsnprintf(last_words, sizeof last_words, format, arguments);
    }
    va_end(arguments);
}

static void prepare_library(void)
{
    dm_log_with_errno_init(hear);
    dm_lib_init();
}

typedef struct dm_task DmTask;

static void task_destroy(DmTask **task)
{
    if (*task != NULL) {
        dm_task_destroy(*task);
    }
}
#define autotask __attribute__((cleanup(task_destroy))) DmTask *

/* NULL with *error. name may be NULL. */
static DmTask *task_new(int type, const char *name, GError **error)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, prepare_library);
    last_words[0] = '\0';
    DmTask *task = dm_task_create(type);
    if (task == NULL || (name != NULL && !dm_task_set_name(task, name))) {
        error_set(error, EINVAL, "%s: device-mapper: %s", name != NULL ? name : CONTROL,
                  last_words[0] != '\0' ? last_words : "no task");
        task_destroy(&task);
        return NULL;
    }
    return task;
}

/* libdevmapper keeps lists of its own for all threads: one at a time. */
static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;

/* For tasks that wait for a device or that come while one is suspended; they touch nothing that is
 * shared. */
static bool task_run_alone(DmTask *task, const char *name, const char *what, GError **error)
{
    last_words[0] = '\0';
    if (dm_task_run(task)) {
        return true;
    }
    int err = dm_task_get_errno(task);
    return error_set(error, err != 0 ? err : EIO, "%s: device-mapper: cannot %s: %s", name, what,
                     last_words[0] != '\0' ? last_words : g_strerror(err));
}

static bool task_run(DmTask *task, const char *name, const char *what, GError **error)
{
    with_mutex(&library_lock);
    return task_run_alone(task, name, what, error);
}

static void update_nodes(void)
{
    with_mutex(&library_lock);
    dm_task_update_nodes();
}

DmLine dm_line(uint64_t start, uint64_t length, const char *target, const char *params)
{
    DmLine line = {.start = start, .length = length, .target = target};
    g_strlcpy(line.params, params, sizeof line.params);
    return line;
}

DmLine dm_line_linear(uint64_t start, uint64_t length, dev_t device, uint64_t offset)
{
    DmLine line = {.start = start, .length = length, .target = "linear"};
    snprintf(line.params, sizeof line.params, "%u:%u %" G_GUINT64_FORMAT, major(device),
             minor(device), offset / DM_SECTOR);
    return line;
}

DmLine dm_line_switch(uint64_t start, uint64_t length, dev_t device, uint64_t offset)
{
    DmLine line = {.start = start, .length = length, .target = "switch"};
    snprintf(line.params, sizeof line.params, SWITCH_HEAD "%u:%u %" G_GUINT64_FORMAT, major(device),
             minor(device), offset / DM_SECTOR);
    return line;
}

bool dm_line_parse(const DmLine *line, dev_t *device, uint64_t *offset)
{
    unsigned major_number, minor_number;
    uint64_t sector;
    const char *place = line->params;
    if (strcmp(line->target, "switch") == 0 && g_str_has_prefix(place, SWITCH_HEAD)) {
        place += strlen(SWITCH_HEAD);
    } else if (strcmp(line->target, "linear") != 0) {
        return false;
    }
    if (sscanf(place, "%u:%u %" G_GUINT64_FORMAT, &major_number, &minor_number, &sector) != 3 ||
        sector > UINT64_MAX / DM_SECTOR) {
        return false;
    }
    *device = makedev(major_number, minor_number);
    *offset = sector * DM_SECTOR;
    return true;
}

static void load_module(const char *name)
{
    const char *const argv[] = {"modprobe", "-q", name, NULL};
    g_spawn_sync(NULL, (char **)argv, NULL,
                 G_SPAWN_SEARCH_PATH | G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL,
                 NULL, NULL, NULL, NULL, NULL, NULL);
}

static bool control_opens(void)
{
    int fd = open(CONTROL, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

static bool has_target(const char *name, GError **error)
{
    autotask task = task_new(DM_DEVICE_LIST_VERSIONS, NULL, error);
    if (task == NULL || !task_run(task, name, "list targets", error)) {
        return false;
    }
    const struct dm_versions *target = dm_task_get_versions(task);
    for (;;) {
        if (strcmp(target->name, name) == 0) {
            return true;
        }
        if (target->next == 0) {
            return error_set(error, ENODEV,
                             "device-mapper has no target '%s': load the module dm-%s", name, name);
        }
        target = (const struct dm_versions *)((const char *)target + target->next);
    }
}

static bool no_device_mapper(GError **error)
{
    return error_set(error, ENODEV,
                     "this kernel has no device-mapper: load the module dm-mod, or attach with "
                     "--fast-path=off");
}

bool dm_available(const char *target, GError **error)
{
    if (!control_opens()) {
        load_module("dm-mod");
    }
    if (!control_opens()) {
        return errno == ENOENT || errno == ENODEV /* no node; no module */
                   ? no_device_mapper(error)
                   : error_set_errno(error, errno, CONTROL ": cannot open");
    }
    autotask task = task_new(DM_DEVICE_VERSION, NULL, error);
    if (task == NULL) {
        return false;
    }
    if (!dm_task_run(task)) {
        return no_device_mapper(error);
    }
    if (target == NULL || has_target(target, NULL)) {
        return true;
    }
    g_autofree char *module = g_strdup_printf("dm-%s", target);
    load_module(module);
    return has_target(target, error);
}

static bool add_lines(DmTask *task, const DmLines *lines, const char *name, GError **error)
{
    for (unsigned i = 0; i < lines->count; i++) {
        const DmLine *line = &lines->items[i];
        if (!dm_task_add_target(task, line->start / DM_SECTOR, line->length / DM_SECTOR,
                                line->target, line->params)) {
            return error_set(error, EINVAL, "%s: device-mapper: cannot add the line '%s %s': %s",
                             name, line->target, line->params, last_words);
        }
    }
    return true;
}

bool dm_info(const char *name, DmInfo *info, GError **error)
{
    autotask task = task_new(DM_DEVICE_INFO, name, error);
    struct dm_info found;
    *info = (DmInfo){0};
    if (task == NULL || !task_run(task, name, "look at it", error)) {
        return false;
    }
    if (!dm_task_get_info(task, &found)) {
        return error_set(error, EIO, "%s: device-mapper: no answer", name);
    }
    if (found.exists) {
        *info = (DmInfo){
            .exists = true,
            .suspended = found.suspended,
            .read_only = found.read_only,
            .has_inactive = found.inactive_table,
            .device = makedev(found.major, found.minor),
            .open_count = found.open_count,
        };
        g_strlcpy(info->name, dm_task_get_name(task), sizeof info->name);
        g_strlcpy(info->uuid, dm_task_get_uuid(task), sizeof info->uuid);
    }
    return true;
}

bool dm_find(const char *uuid, DmInfo *info, GError **error)
{
    autotask task = task_new(DM_DEVICE_INFO, NULL, error);
    struct dm_info found;
    *info = (DmInfo){0};
    if (task == NULL) {
        return false;
    }
    if (!dm_task_set_uuid(task, uuid)) {
        return error_set(error, EINVAL, "device-mapper: '%s' is no UUID for a device", uuid);
    }
    if (!task_run(task, uuid, "look for it", error) || !dm_task_get_info(task, &found)) {
        return false;
    }
    if (!found.exists) {
        return true;
    }
    g_autofree char *name = g_strdup(dm_task_get_name(task));
    return dm_info(name, info, error);
}

static bool create(const char *name, const char *uuid, const DmLines *lines, bool read_only,
                   uint32_t *cookie, GError **error)
{
    autotask task = task_new(DM_DEVICE_CREATE, name, error);
    if (task == NULL || !add_lines(task, lines, name, error)) {
        return false;
    }
    if (!dm_task_set_uuid(task, uuid) || !dm_task_set_add_node(task, DM_ADD_NODE_ON_CREATE) ||
        (read_only && !dm_task_set_ro(task)) || !dm_task_set_cookie(task, cookie, 0)) {
        return error_set(error, EINVAL, "%s: device-mapper: cannot prepare the device: %s", name,
                         last_words);
    }
    return task_run(task, name, "make the device", error);
}

bool dm_create(const char *name, const char *uuid, const DmLines *lines, bool read_only,
               GError **error)
{
    DmInfo info;
    if (!dm_find(uuid, &info, error)) {
        return false;
    }
    if (info.exists) {
        return error_set(error, EEXIST, "/dev/mapper/%s: is made of the same image already: use it",
                         info.name);
    }
    if (!dm_info(name, &info, error)) {
        return false;
    }
    if (info.exists) {
        return error_set(error, EEXIST,
                         "/dev/mapper/%s: there is a device of this name: give another with --name",
                         name);
    }
    uint32_t cookie = 0;
    bool done = create(name, uuid, lines, read_only, &cookie, error);
    dm_udev_wait(cookie);
    update_nodes();
    return done;
}

/* udev and others look at a device now and then, and have it open for a moment. */
static bool wait_until_closed(const char *name, bool *exists, GError **error)
{
    DmInfo info;
    for (unsigned tries = 0; tries < BUSY_TRIES; tries++) {
        if (!dm_info(name, &info, error)) {
            return false;
        }
        *exists = info.exists;
        if (!info.exists || info.open_count == 0) {
            return true;
        }
        g_usleep(BUSY_US);
    }
    return error_set(error, EBUSY, "/dev/mapper/%s: is in use: unmount or close it first", name);
}

bool dm_remove(const char *name, GError **error)
{
    bool exists = false;
    if (!wait_until_closed(name, &exists, error)) {
        return false;
    }
    if (!exists) {
        return true;
    }
    autotask task = task_new(DM_DEVICE_REMOVE, name, error);
    uint32_t cookie = 0;
    if (task == NULL) {
        return false;
    }
    if (!dm_task_set_cookie(task, &cookie, 0)) {
        return error_set(error, EINVAL, "%s: device-mapper: %s", name, last_words);
    }
    bool done = task_run(task, name, "remove it", error);
    dm_udev_wait(cookie);
    update_nodes();
    return done;
}

static const char *known_target(const char *type)
{
    static const char *const known[] = {"linear", "switch", "zero", "error", "snapshot", NULL};
    for (unsigned i = 0; known[i] != NULL; i++) {
        if (type != NULL && strcmp(type, known[i]) == 0) {
            return known[i];
        }
    }
    return "";
}

bool dm_table(const char *name, DmLines *lines, GError **error)
{
    autotask task = task_new(DM_DEVICE_TABLE, name, error);
    *lines = (DmLines){0};
    if (task == NULL || !task_run(task, name, "read its table", error)) {
        return false;
    }
    struct dm_info found;
    if (!dm_task_get_info(task, &found) || !found.exists) {
        return error_set(error, ENODEV, "/dev/mapper/%s: there is no such device", name);
    }
    GArray *items = g_array_new(false, false, sizeof(DmLine));
    void *next = NULL;
    do {
        uint64_t start = 0, length = 0;
        char *type = NULL, *params = NULL;
        next = dm_get_next_target(task, next, &start, &length, &type, &params);
        if (type != NULL) {
            DmLine line = dm_line(start * DM_SECTOR, length * DM_SECTOR, known_target(type),
                                  params != NULL ? params : "");
            g_array_append_val(items, line);
        }
    } while (next != NULL);
    lines->count = items->len;
    lines->items = (DmLine *)(void *)g_array_free(items, false);
    return true;
}

char *dm_status(const char *name, GError **error)
{
    autotask task = task_new(DM_DEVICE_STATUS, name, error);
    uint64_t start, length;
    char *type = NULL, *params = NULL;
    if (task == NULL || !task_run(task, name, "read its status", error)) {
        return NULL;
    }
    dm_get_next_target(task, NULL, &start, &length, &type, &params);
    if (params == NULL) {
        error_set(error, ENODEV, "/dev/mapper/%s: has no table", name);
        return NULL;
    }
    return g_strdup(params);
}

bool dm_resume(const char *name, GError **error)
{
    autotask task = task_new(DM_DEVICE_RESUME, name, error);
    return task != NULL && dm_task_set_add_node(task, DM_ADD_NODE_ON_CREATE) &&
           task_run(task, name, "resume it", error);
}

bool dm_clear(const char *name, GError **error)
{
    autotask task = task_new(DM_DEVICE_CLEAR, name, error);
    return task != NULL && task_run(task, name, "drop the table that is not in use", error);
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * UINT64_C(1000000) + now.tv_nsec / 1000;
}

static bool load(const char *name, const DmLines *lines, bool read_only, GError **error)
{
    autotask task = task_new(DM_DEVICE_RELOAD, name, error);
    if (task == NULL || !add_lines(task, lines, name, error)) {
        return false;
    }
    if (read_only && !dm_task_set_ro(task)) {
        return error_set(error, EINVAL, "%s: device-mapper: %s", name, last_words);
    }
    return task_run(task, name, "load a table", error);
}

/* The tasks of a change after the load; made before the device is suspended. */
typedef struct Swap {
    DmTask *suspend, *clear, *resume, *resume_old;
} Swap;

static bool swap_prepare(Swap *swap, const char *name, GError **error)
{
    swap->suspend = task_new(DM_DEVICE_SUSPEND, name, error);
    swap->clear = swap->suspend != NULL ? task_new(DM_DEVICE_CLEAR, name, error) : NULL;
    swap->resume = swap->clear != NULL ? task_new(DM_DEVICE_RESUME, name, error) : NULL;
    swap->resume_old = swap->resume != NULL ? task_new(DM_DEVICE_RESUME, name, error) : NULL;
    if (swap->resume_old == NULL) {
        return false;
    }
    /* No filesystem is frozen: its writes may be what the suspend waits for. No node is touched. */
    if (!dm_task_skip_lockfs(swap->suspend) || !dm_task_no_flush(swap->suspend) ||
        !dm_task_set_add_node(swap->resume, DM_ADD_NODE_ON_CREATE) ||
        !dm_task_set_add_node(swap->resume_old, DM_ADD_NODE_ON_CREATE)) {
        return error_set(error, EINVAL, "%s: device-mapper: %s", name, last_words);
    }
    return true;
}

static void swap_clear(Swap *swap)
{
    task_destroy(&swap->suspend);
    task_destroy(&swap->clear);
    task_destroy(&swap->resume);
    task_destroy(&swap->resume_old);
}

/* The device goes on with what it had. The first error is the one to tell. */
static void swap_back(const Swap *swap, const char *name)
{
    g_autoptr(GError) error = NULL;
    task_run_alone(swap->clear, name, "drop the new table", NULL);
    if (!task_run_alone(swap->resume_old, name, "resume it with the old table", &error)) {
        log_error("%s: the device may be suspended: say dmsetup resume %s", error->message, name);
    }
}

static bool swap_run(const Swap *swap, const char *name, DmConfirm *confirm, void *argument,
                     DmTiming *timing, GError **error)
{
    uint64_t start = now_us();
    bool done = task_run_alone(swap->suspend, name, "suspend it", error);
    uint64_t still = now_us();
    if (done && confirm != NULL && !confirm(argument)) {
        done = error_set(error, ECANCELED, "%s: the new table is not wanted any more", name);
    }
    done = done && task_run_alone(swap->resume, name, "resume it with the new table", error);
    if (!done) {
        swap_back(swap, name);
    }
    timing->drain_us = still - start;
    timing->still_us = now_us() - still;
    return done;
}

bool dm_swap_table(const char *name, const DmLines *lines, bool read_only, DmConfirm *confirm,
                   void *argument, DmTiming *timing, GError **error)
{
    Swap swap = {0};
    uint64_t start = now_us();
    *timing = (DmTiming){0};
    bool done = swap_prepare(&swap, name, error) && load(name, lines, read_only, error);
    timing->load_us = now_us() - start;
    done = done && swap_run(&swap, name, confirm, argument, timing, error);
    swap_clear(&swap);
    return done;
}
