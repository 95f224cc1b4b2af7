/*
 * Loop devices by ioctl.
 *
 * A free device is asked for and then configured in one call, which fails when somebody else was
 * quicker; then the next one is asked for. LO_FLAGS_AUTOCLEAR: the device goes when its last user
 * does, so that nothing is left over after a crash but what a device-mapper table still uses.
 *
 * Direct I/O is asked for wherever the file's filesystem has it: a page of the image is then not
 * cached twice. It is coherent with the server's own buffered I/O either way.
 */
#include "fastpath/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"

#define CONTROL    "/dev/loop-control"
#define LOOP_MAJOR 7
#define TRIES      64

static int64_t attribute(dev_t device, const char *name)
{
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/%s", major(device), minor(device), name);
    g_autofree char *text = NULL;
    return g_file_get_contents(path, &text, NULL, NULL) ? g_ascii_strtoll(text, NULL, 10) : -1;
}

/* Reads what the device is like now. */
static bool look_at(Loop *loop, GError **error)
{
    int block_size = 0, read_only = 0;
    if (ioctl(loop->fd, BLKGETSIZE64, &loop->size) != 0 ||
        ioctl(loop->fd, BLKSSZGET, &block_size) != 0 ||
        ioctl(loop->fd, BLKROGET, &read_only) != 0) {
        return error_set_errno(error, errno, "%s: cannot be examined", loop->path);
    }
    loop->block_size = block_size;
    loop->read_only = read_only != 0;
    loop->direct_io = loop->is_loop && attribute(loop->device, "loop/dio") == 1;
    return true;
}

/* The loop driver looks only at the filesystem in which the file seems to lie; it takes overlayfs
 * above a tmpfs for one that has direct I/O, and then every request fails. Opening asks them all. */
static bool takes_direct_io(int file)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    autofd int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    return fd >= 0;
}

static bool configure(int device, int file, uint64_t offset, bool read_only)
{
    struct loop_config config = {.fd = file};
    config.info.lo_offset = offset;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR | (takes_direct_io(file) ? LO_FLAGS_DIRECT_IO : 0) |
                           (read_only ? LO_FLAGS_READ_ONLY : 0);
    if (ioctl(device, LOOP_CONFIGURE, &config) == 0) {
        return true;
    }
    if (errno != EINVAL) {
        return false;
    }
    config.info.lo_flags &= ~LO_FLAGS_DIRECT_IO; /* later kernels refuse what they cannot do */
    return ioctl(device, LOOP_CONFIGURE, &config) == 0;
}

/* Without udev a device that was just made may have no node yet. */
static int open_device(const char *path, unsigned number, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT &&
        mknod(path, S_IFBLK | 0600, makedev(LOOP_MAJOR, number)) == 0) {
        fd = open(path, flags | O_CLOEXEC);
    }
    return fd;
}

static bool is_read_only(int file)
{
    return (fcntl(file, F_GETFL) & O_ACCMODE) == O_RDONLY;
}

static bool take_free(Loop *loop, int file, uint64_t offset, const char *name, GError **error)
{
    autofd int control = open(CONTROL, O_RDWR | O_CLOEXEC);
    if (control < 0) {
        return error_set_errno(error, errno,
                               CONTROL ": cannot open (is there a loop driver? modprobe loop)");
    }
    bool read_only = is_read_only(file);
    for (unsigned tries = 0; tries < TRIES; tries++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0) {
            return error_set_errno(error, errno, "%s: no loop device is free", name);
        }
        snprintf(loop->path, sizeof loop->path, "/dev/loop%d", number);
        autofd int fd = open_device(loop->path, number, read_only ? O_RDONLY : O_RDWR);
        if (fd >= 0 && configure(fd, file, offset, read_only)) {
            loop->fd = fd_steal(&fd);
            loop->device = makedev(LOOP_MAJOR, number);
            loop->is_loop = true;
            return true;
        }
        if (errno != EBUSY && errno != ENXIO) {
            return error_set_errno(error, errno, "%s: cannot make a loop device of %s", loop->path,
                                   name);
        }
    }
    return error_set(error, EBUSY, "%s: no loop device stays free long enough", name);
}

static bool open_block_device(Loop *loop, int file, dev_t device, GError **error)
{
    snprintf(loop->path, sizeof loop->path, "block device %u:%u", major(device), minor(device));
    loop->fd = fcntl(file, F_DUPFD_CLOEXEC, 0);
    if (loop->fd < 0) {
        return error_set_errno(error, errno, "%s: cannot open", loop->path);
    }
    loop->device = device;
    return true;
}

/* What goes to a block device by device-mapper passes its page cache by, in which the server reads
 * and writes. A loop device does not. */
static bool is_usable_itself(const struct stat *st, int file, uint64_t offset)
{
    return S_ISBLK(st->st_mode) && offset == 0 && is_read_only(file);
}

bool loop_open(Loop *loop, int file, uint64_t offset, const char *name, GError **error)
{
    *loop = (Loop){.fd = -1, .offset = offset};
    struct stat st;
    if (fstat(file, &st) != 0) {
        return error_set_errno(error, errno, "%s: cannot be examined", name);
    }
    bool done = is_usable_itself(&st, file, offset)
                    ? open_block_device(loop, file, st.st_rdev, error)
                    : take_free(loop, file, offset, name, error);
    if (done && !look_at(loop, error)) {
        loop_close(loop);
        return false;
    }
    return done;
}

/* The kernel packs device numbers in its own way. */
static dev_t unpack_device(uint64_t packed)
{
    return makedev((packed & 0xfff00) >> 8, (packed & 0xff) | ((packed >> 12) & 0xfff00));
}

/* True when the open loop device lies on the file. */
static bool lies_on(const Loop *loop, const struct stat *file)
{
    struct loop_info64 info;
    if (ioctl(loop->fd, LOOP_GET_STATUS64, &info) != 0 || info.lo_offset != loop->offset ||
        info.lo_sizelimit != 0) {
        return false;
    }
    if (S_ISBLK(file->st_mode)) {
        return unpack_device(info.lo_rdevice) == file->st_rdev;
    }
    return info.lo_inode == file->st_ino && unpack_device(info.lo_device) == file->st_dev;
}

bool loop_adopt(Loop *loop, dev_t device, int file, uint64_t offset, GError **error)
{
    *loop = (Loop){.fd = -1, .offset = offset};
    struct stat st;
    if (fstat(file, &st) != 0) {
        return error_set_errno(error, errno, "device %u:%u: its file cannot be examined",
                               major(device), minor(device));
    }
    if (is_usable_itself(&st, file, offset) && st.st_rdev == device) {
        return open_block_device(loop, file, device, error) && look_at(loop, error);
    }
    bool found = false;
    if (major(device) == LOOP_MAJOR) {
        snprintf(loop->path, sizeof loop->path, "/dev/loop%u", minor(device));
        loop->fd = open_device(loop->path, minor(device), is_read_only(file) ? O_RDONLY : O_RDWR);
        loop->device = device;
        loop->is_loop = true;
        found = loop->fd >= 0 && lies_on(loop, &st);
    }
    if (!found) {
        loop_close(loop);
        return error_set(error, ENODEV, "device %u:%u: lies on another file", major(device),
                         minor(device));
    }
    if (!look_at(loop, error)) {
        loop_close(loop);
        return false;
    }
    return true;
}

bool loop_grow(Loop *loop, GError **error)
{
    if (loop->is_loop && ioctl(loop->fd, LOOP_SET_CAPACITY) != 0) {
        return error_set_errno(error, errno, "%s: cannot be made as large as its file", loop->path);
    }
    return look_at(loop, error);
}

bool loop_set_direct_io(Loop *loop, bool direct_io, GError **error)
{
    if (loop->is_loop && loop->direct_io != direct_io &&
        ioctl(loop->fd, LOOP_SET_DIRECT_IO, (unsigned long)direct_io) != 0) {
        return error_set_errno(error, errno, "%s: cannot %s the page cache", loop->path,
                               direct_io ? "go past" : "use");
    }
    return look_at(loop, error);
}

void loop_close(Loop *loop)
{
    if (loop->fd >= 0) {
        close(loop->fd);
        loop->fd = -1;
    }
}

int64_t loop_discards(const Loop *loop)
{
    g_autofree char *path =
        g_strdup_printf("/sys/dev/block/%u:%u/stat", major(loop->device), minor(loop->device));
    g_autofree char *text = NULL;
    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return -1;
    }
    int64_t discards;
    /* Eleven numbers of reads and writes, then those of discards, the first of which counts them. */
    return sscanf(text, "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %" G_GINT64_FORMAT,
                  &discards) == 1
               ? discards
               : -1;
}
