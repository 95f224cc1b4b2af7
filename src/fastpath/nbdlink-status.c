/*
 * What the kernel tells of its nbd devices in sysfs and by their nodes. Nothing here changes one.
 *
 * A device that was never used, one that is free and one that is gone look alike: no "pid" in
 * sysfs. The identifier ends with the newline that the kernel adds; one inside it is the path's own.
 */
#include "fastpath/nbdlink.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"

#define SECTOR  512
#define POLL_US 5000

int nbdlink_index(const char *name)
{
    const char *digits = g_str_has_prefix(name, "/dev/") ? name + strlen("/dev/") : name;
    if (!g_str_has_prefix(digits, "nbd")) {
        return -1;
    }
    digits += strlen("nbd");
    size_t length = strspn(digits, "0123456789");
    bool plain = length > 0 && length < 8 && digits[length] == '\0';
    return plain && (digits[0] != '0' || length == 1) ? atoi(digits) : -1;
}

char *nbdlink_node(int index)
{
    return g_strdup_printf("/dev/nbd%d", index);
}

/* The contents of /sys/block/nbdN/NAME; NULL when there is no such file. */
static char *read_attribute(int index, const char *name)
{
    g_autofree char *path = g_strdup_printf("/sys/block/nbd%d/%s", index, name);
    char *text = NULL;
    return g_file_get_contents(path, &text, NULL, NULL) ? text : NULL;
}

static uint64_t read_number(int index, const char *name)
{
    g_autofree char *text = read_attribute(index, name);
    return text != NULL ? g_ascii_strtoull(text, NULL, 10) : 0;
}

bool nbdlink_is_connected(int index)
{
    g_autofree char *pid = read_attribute(index, "pid");
    return pid != NULL;
}

char *nbdlink_identifier(int index)
{
    char *text = read_attribute(index, "backend");
    size_t length = text != NULL ? strlen(text) : 0;
    if (length > 0 && text[length - 1] == '\n') {
        text[length - 1] = '\0';
    }
    return text;
}

uint64_t nbdlink_size(int index)
{
    return read_number(index, "size") * SECTOR;
}

bool nbdlink_is_read_only(int index)
{
    return read_number(index, "ro") != 0;
}

int nbdlink_find(const char *identifier)
{
    g_autoptr(GDir) directory = g_dir_open("/sys/block", 0, NULL);
    const char *name;
    while (directory != NULL && (name = g_dir_read_name(directory)) != NULL) {
        int index = nbdlink_index(name);
        if (index < 0 || !nbdlink_is_connected(index)) {
            continue;
        }
        g_autofree char *found = nbdlink_identifier(index);
        if (found != NULL && strcmp(found, identifier) == 0) {
            return index;
        }
    }
    return -1;
}

/* The size of the device that the node opens; false when it cannot be opened. */
static bool node_size(const char *node, uint64_t *size)
{
    autofd int fd = open(node, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && ioctl(fd, BLKGETSIZE64, size) == 0;
}

bool nbdlink_wait_ready(int index, uint64_t size, unsigned seconds, GError **error)
{
    g_autofree char *node = nbdlink_node(index);
    gint64 deadline = g_get_monotonic_time() + (gint64)seconds * G_USEC_PER_SEC;
    bool open = false;
    uint64_t seen = 0;
    while (g_get_monotonic_time() < deadline) {
        open = node_size(node, &seen);
        if (open && seen == size) {
            return true;
        }
        g_usleep(POLL_US);
    }
    return open ? error_set(error, ETIMEDOUT,
                            "%s: has %" PRIu64 " bytes after %u s: must have %" PRIu64, node, seen,
                            seconds, size)
                : error_set_errno(error, errno, "%s: cannot be opened after %u s", node, seconds);
}
