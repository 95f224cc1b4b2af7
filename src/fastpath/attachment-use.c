/*
 * Who uses a block device.
 *
 * The kernel tells only whether somebody claims it (a mount, device-mapper, swap): a claim of our
 * own is refused then. A plain opener (dd, fio, a virtual machine) claims nothing; such are found
 * by their open files in /proc. That look can miss one that opens in the same moment; then its
 * requests fail, as with any device that is taken away.
 */
#include "fastpath/attachment-impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"

#define PATIENCE_US 1000000 /* udev looks into every device that changes, for a moment */

/* True when a descriptor in /proc/PID/fd is the block device. */
static bool process_has_open(const char *pid, dev_t device)
{
    g_autofree char *path = g_strdup_printf("/proc/%s/fd", pid);
    g_autoptr(GDir) directory = g_dir_open(path, 0, NULL);
    const char *name;
    while (directory != NULL && (name = g_dir_read_name(directory)) != NULL) {
        g_autofree char *link = g_build_filename(path, name, NULL);
        struct stat st;
        if (stat(link, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device) {
            return true;
        }
    }
    return false;
}

/* "fio (process 123)" for one that has the device open; NULL when there is none. */
static char *find_opener(dev_t device)
{
    g_autoptr(GDir) directory = g_dir_open("/proc", 0, NULL);
    const char *pid;
    while (directory != NULL && (pid = g_dir_read_name(directory)) != NULL) {
        if (!g_ascii_isdigit(pid[0]) || atoi(pid) == getpid() || !process_has_open(pid, device)) {
            continue;
        }
        g_autofree char *path = g_strdup_printf("/proc/%s/comm", pid);
        g_autofree char *command = NULL;
        bool named = g_file_get_contents(path, &command, NULL, NULL);
        return g_strdup_printf("%s (process %s)", named ? g_strchomp(command) : "?", pid);
    }
    return NULL;
}

/* One try. */
static int claim_once(const char *device, GError **error)
{
    autofd int fd = open(device, O_RDONLY | O_EXCL | O_CLOEXEC);
    if (fd < 0 && errno == EBUSY) {
        error_set(error, EBUSY,
                  "%s: is in use (mounted, swap, or below another device): end that first", device);
        return -1;
    }
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        error_set_errno(error, errno, "%s", device);
        return -1;
    }
    g_autofree char *opener = find_opener(st.st_rdev);
    if (opener != NULL) {
        error_set(error, EBUSY, "%s: %s has it open: end that first", device, opener);
        return -1;
    }
    return fd_steal(&fd);
}

int attachment_claim(const char *device, GError **error)
{
    gint64 deadline = g_get_monotonic_time() + PATIENCE_US;
    for (;;) {
        g_autoptr(GError) refusal = NULL;
        autofd int fd = claim_once(device, &refusal);
        if (fd >= 0 && fsync(fd) != 0) {
            error_set_errno(error, errno, "%s: the last flush failed", device);
            return -1;
        }
        if (fd >= 0) {
            return fd_steal(&fd);
        }
        if (refusal->code != EBUSY || g_get_monotonic_time() > deadline) {
            g_propagate_error(error, g_steal_pointer(&refusal));
            return -1;
        }
        g_usleep(PATIENCE_US / 20);
    }
}
