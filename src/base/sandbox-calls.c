/*
 * Which system calls may be made: a list for seccomp, by libseccomp.
 *
 * The list is what a server, the libraries below it and a program that takes over from it need. A call
 * that is not on it gets -EPERM rather than the death of the process: the list may miss a call that a
 * new libc makes, a server with guests must outlive that, and who breaks into it gains no more by an
 * error than by a crash. The kernel reports such a call by SIGSYS, whose handler says so once for each
 * call and makes it return the error.
 *
 * What must stay true: no thread blocks SIGSYS, or the kernel ends the process in place of the signal.
 */
#include "base/sandbox.h"

#include <linux/fs.h>
#include <linux/vm_sockets.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/errors.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED
#endif
#endif

#define CALLS_MAX 1024

static const char *const calls[] = {
    /* files */
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "preadv2",
    "pwritev2",
    "lseek",
    "open",
    "openat",
    "openat2",
    "close",
    "close_range",
    "stat",
    "lstat",
    "fstat",
    "newfstatat",
    "statx",
    "statfs",
    "fstatfs",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "getdents64",
    "getcwd",
    "ftruncate",
    "truncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "fadvise64",
    "copy_file_range",
    "flock",
    "fcntl",
    "dup",
    "dup2",
    "dup3",
    "pipe",
    "pipe2",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "link",
    "linkat",
    "mkdir",
    "mkdirat",
    "chmod",
    "fchmod",
    "fchmodat",
    "chown",
    "fchown",
    "fchownat",
    "utimensat",
    "umask",
    "memfd_create",
    /* memory */
    "mmap",
    "munmap",
    "mremap",
    "mprotect",
    "madvise",
    "brk",
    "msync",
    "mlock",
    "mlock2",
    "mlockall",
    "munlock",
    "mincore",
    "membarrier",
    /* sockets; socket itself is below */
    "socketpair",
    "bind",
    "listen",
    "accept",
    "accept4",
    "connect",
    "shutdown",
    "getsockname",
    "getpeername",
    "getsockopt",
    "setsockopt",
    "sendto",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "sendmmsg",
    "recvmmsg",
    /* waiting */
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "eventfd2",
    "signalfd4",
    "timerfd_create",
    "timerfd_settime",
    "timerfd_gettime",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    /* time */
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "time",
    "times",
    "getrusage",
    "sysinfo",
    "uname",
    /* threads and signals; clone itself is below */
    "futex",
    "set_robust_list",
    "get_robust_list",
    "set_tid_address",
    "rseq",
    "sched_yield",
    "sched_getaffinity",
    "sched_setaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "getcpu",
    "getpriority",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigsuspend",
    "sigaltstack",
    "restart_syscall",
    "kill",
    "tkill",
    "tgkill",
    "exit",
    "exit_group",
    "wait4",
    "waitid",
    /* the process */
    "getpid",
    "getppid",
    "gettid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getgroups",
    "getresuid",
    "getresgid",
    "getpgrp",
    "getpgid",
    "getsid",
    "setsid",
    "getrlimit",
    "setrlimit",
    "prlimit64",
    "prctl",
    "arch_prctl",
    "capget",
    "getrandom",
#ifdef SANITIZED
    /* what looks for leaks at the end, and for names of functions */
    "ptrace",
    "process_vm_readv",
    "personality",
    "execve",
    "vfork",
    "fork",
    "getdents",
#endif
};

static const char *const program_calls[] = {"execve", "execveat", "vfork", "fork"};

static const int families[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_VSOCK};

/* Sizes and holes of files and devices, discards, clones; is it a terminal. */
static const unsigned long controls[] = {
    BLKGETSIZE64,
    BLKSSZGET,
    BLKPBSZGET,
    BLKROGET,
    BLKDISCARD,
    BLKZEROOUT,
    BLKFLSBUF,
    BLKIOMIN,
    BLKIOOPT,
    BLKALIGNOFF,
    FICLONE,
    FICLONERANGE,
    IOCTL_VM_SOCKETS_GET_LOCAL_CID,
    FIONREAD,
    FIONBIO,
    TCGETS,
    TIOCGWINSZ,
};

#define NEW_NAMESPACES                                                                         \
    (CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | \
     CLONE_NEWCGROUP)

/* Denied calls */

#if defined(__x86_64__)
#define CALL_RESULT(context) ((context)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
#define CALL_RESULT(context) ((context)->uc_mcontext.regs[0])
#endif

#ifdef CALL_RESULT

#define DENY SCMP_ACT_TRAP

static atomic_bool was_said[CALLS_MAX];

/* Runs inside any code: nothing here may allocate or lock. */
static void say_denied(int number)
{
    static const char head[] = "cownbd: warning: sandbox: denied system call ";
    char line[sizeof head + 16], digits[12];
    unsigned count = 0, length = sizeof head - 1;
    memcpy(line, head, length);
    do {
        digits[count++] = '0' + number % 10;
        number /= 10;
    } while (number > 0);
    while (count > 0) {
        line[length++] = digits[--count];
    }
    line[length++] = '\n';
    if (write(STDERR_FILENO, line, length) < 0) {
        return; /* nobody to tell */
    }
}

static void denied(int signal_number, siginfo_t *info, void *context)
{
    int number = info->si_syscall;
    int saved = errno;
    if (number >= 0 && number < CALLS_MAX && !atomic_exchange(&was_said[number], true)) {
        say_denied(number);
    }
    errno = saved;
    CALL_RESULT((ucontext_t *)context) = -EPERM;
}

void sandbox_calls_watch(void)
{
    struct sigaction action = {.sa_sigaction = denied, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSYS, &action, NULL);
}

#else

#define DENY SCMP_ACT_ERRNO(EPERM)

void sandbox_calls_watch(void)
{
}

#endif

/* The list. Functions return 0 or a negative errno, as libseccomp's. */

/* A call that this architecture does not have needs no rule. */
static int allow(scmp_filter_ctx filter, const char *name)
{
    int number = seccomp_syscall_resolve_name(name);
    int r = number == __NR_SCMP_ERROR ? 0 : seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
    return r == -EDOM ? 0 : r;
}

static int allow_all(scmp_filter_ctx filter, const char *const *names, unsigned count)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < count; i++) {
        r = allow(filter, names[i]);
    }
    return r;
}

static int allow_some_arguments(scmp_filter_ctx filter)
{
    int r = 0;
    for (unsigned i = 0; r == 0 && i < G_N_ELEMENTS(families); i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1,
                             SCMP_A0(SCMP_CMP_MASKED_EQ, 0xffffffff, families[i]));
    }
    for (unsigned i = 0; r == 0 && i < G_N_ELEMENTS(controls); i++) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                             SCMP_A1(SCMP_CMP_MASKED_EQ, 0xffffffff, controls[i]));
    }
    if (r == 0) {
        r = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                             SCMP_A0(SCMP_CMP_MASKED_EQ, NEW_NAMESPACES, 0));
    }
    /* Its flags lie in memory, where no filter looks; libc then takes clone. */
    return r == 0 ? seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0) : r;
}

static int load(scmp_filter_ctx filter, bool programs)
{
    int r = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (r == 0) {
        seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a tree, where that is known */
        r = allow_all(filter, calls, G_N_ELEMENTS(calls));
    }
    if (r == 0 && programs) {
        r = allow_all(filter, program_calls, G_N_ELEMENTS(program_calls));
    }
    if (r == 0) {
        r = allow_some_arguments(filter);
    }
    return r == 0 ? seccomp_load(filter) : r;
}

bool sandbox_calls_close(bool programs, GError **error)
{
    if (prctl(PR_GET_SECCOMP) < 0) {
        return error_set(error, ENOSYS, "sandbox: this kernel has no seccomp");
    }
    scmp_filter_ctx filter = seccomp_init(DENY);
    if (filter == NULL) {
        return error_set(error, ENOMEM, "sandbox: cannot make a list of system calls");
    }
    sandbox_calls_watch();
    int r = load(filter, programs);
    seccomp_release(filter);
    return r == 0 || error_set_errno(error, -r, "sandbox: cannot restrict system calls");
}
