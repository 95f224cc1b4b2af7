/*
 * Lingering, see linger.h. The client may run on this very processor, so every look is followed by
 * sched_yield(): it costs nothing where nobody waits, and lets the client write its request where it
 * does.
 */
#include "nbd/linger.h"

#include <sched.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>

#include "base/bytes.h"

#define LINGER_US  50  /* a look; a client at depth 1 comes back in 10 to 30 */
#define LINGER_MAX 200 /* longer than that, and somebody else had the processor */
#define MISSES_MAX 10

bool linger_is_due(Linger *linger)
{
    if (linger->skip > 0) {
        linger->skip--;
        return false;
    }
    return true;
}

void linger_note(Linger *linger, bool hit)
{
    if (hit) {
        linger->misses -= linger->misses > 0;
    } else {
        linger->misses = min_u64(linger->misses + 2, MISSES_MAX);
    }
    linger->skip = (1u << linger->misses) - 1;
}

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

bool linger_look(Linger *linger, int fd)
{
    uint64_t start = now_us(), taken;
    bool found;
    do {
        char byte;
        found = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0; /* the end is news, too */
        if (!found) {
            sched_yield();
        }
        taken = now_us() - start;
    } while (!found && taken < LINGER_US);
    linger_note(linger, found && taken < LINGER_MAX);
    return found;
}
