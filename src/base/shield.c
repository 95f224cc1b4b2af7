/*
 * Kept out of the kernel's way: see shield.h.
 *
 * PR_SET_IO_FLUSHER is a thread's own, and passed on to what it starts, also to the threads that
 * the kernel makes for io_uring. With it, memory is taken without writing pages of any device
 * first, and a write to the page cache waits only for the device that it goes to: without it, the
 * server waits among all writers for dirty pages to become fewer, which they do not while the
 * device that they belong to waits for the server.
 */
#include "base/shield.h"

#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <link.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/log.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/* Not -1000: a process that must not be killed at all can make its group of processes hang. */
#define OOM_SCORE (-900)

/* What malloc gives back to the kernel only above, and what a thread asks for to have it kept: in
 * blocks small enough to lie in the heap, one for the data of each of the largest requests that the
 * kernel makes, or for the unit of a format that a small one begins. */
#define KEPT_MAX       (64 << 20)
#define RESERVE_BLOCKS 64
#define RESERVE_BLOCK  (128u << 10)

bool shield_threads(void)
{
    return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0;
}

/* Code is used when it is used: it must not be read from a disk then. */
static int lock_code(struct dl_phdr_info *object, size_t size, void *argument)
{
    for (unsigned i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X)) {
            mlock((const void *)(object->dlpi_addr + part->p_vaddr), part->p_memsz);
        }
    }
    return 0;
}

/* All else stays from when it is first used: stacks are large and hardly used. */
static bool lock_memory(void)
{
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0) {
        return false;
    }
    dl_iterate_phdr(lock_code, NULL);
    return true;
}

/* Who started this process may have lowered it further. */
static bool lower_oom_score(void)
{
    char now[16] = "";
    autofd int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (fd < 0 || read(fd, now, sizeof now - 1) <= 0) {
        return false;
    }
    return atoi(now) <= OOM_SCORE || dprintf(fd, "%d", OOM_SCORE) > 0;
}

void shield_memory(void)
{
    static atomic_flag done = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&done)) {
        return;
    }
    mallopt(M_TRIM_THRESHOLD, KEPT_MAX);
    if (!lock_memory()) {
        log_warning("cannot be locked into memory: %s: a device may hang when memory is short",
                    g_strerror(errno));
    }
    if (!lower_oom_score()) {
        log_warning("/proc/self/oom_score_adj: %s: the kernel may end this process when memory is "
                    "short",
                    g_strerror(errno));
    }
}

void shield_reserve(void)
{
    static _Thread_local bool done;
    void *blocks[RESERVE_BLOCKS];
    unsigned count = 0;
    while (!done && count < RESERVE_BLOCKS && (blocks[count] = malloc(RESERVE_BLOCK)) != NULL) {
        explicit_bzero(blocks[count++], RESERVE_BLOCK); /* used: it is there */
    }
    while (count > 0) {
        free(blocks[--count]);
    }
    done = true;
}
