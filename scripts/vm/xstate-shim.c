/* Preloaded into the user-mode-linux kernel: sets the FPU state of its processes whole.
 *
 * user-mode-linux keeps 2696 bytes of XSAVE state for each of its processes: all up to PKRU. Where
 * the CPU has more (AMX), the host wants the whole area in PTRACE_SETREGSET and refuses less with
 * EFAULT, upon which init dies. So a short area is laid over a full one of the same process, and
 * that is set. What user-mode-linux cannot save it must not switch either: the parts behind its
 * area are marked as unused. Elsewhere nothing changes.
 */
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define AREA_MAX     65536
#define XSTATE_BV    512 /* offset of the bitmap that says which parts are in use */
#define PARTS_BEHIND (~UINT64_C(0) << 10) /* all parts after PKRU, which is number 9 */

typedef long (*Ptrace)(int request, pid_t pid, void *addr, void *data);

static long set_xstate(Ptrace real, pid_t pid, void *addr, struct iovec *given)
{
    static unsigned char area[AREA_MAX] __attribute__((aligned(64)));
    static size_t area_size;
    struct iovec whole = {area, sizeof(area)};
    uint64_t in_use;

    if (area_size && given->iov_len >= area_size) {
        return real(PTRACE_SETREGSET, pid, addr, given);
    }
    if (real(PTRACE_GETREGSET, pid, addr, &whole) < 0) {
        return -1;
    }
    area_size = whole.iov_len;
    if (given->iov_len >= area_size) {
        return real(PTRACE_SETREGSET, pid, addr, given);
    }
    memcpy(area, given->iov_base, given->iov_len);
    memcpy(&in_use, area + XSTATE_BV, sizeof(in_use));
    in_use &= ~PARTS_BEHIND;
    memcpy(area + XSTATE_BV, &in_use, sizeof(in_use));
    return real(PTRACE_SETREGSET, pid, addr, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
    static Ptrace real;
    va_list args;

    if (!real) {
        real = (Ptrace)dlsym(RTLD_NEXT, "ptrace");
    }
    va_start(args, request);
    pid_t pid = va_arg(args, pid_t);
    void *addr = va_arg(args, void *);
    void *data = va_arg(args, void *);
    va_end(args);
    if (request == PTRACE_SETREGSET && (uintptr_t)addr == NT_X86_XSTATE) {
        return set_xstate(real, pid, addr, data);
    }
    return real(request, pid, addr, data);
}
