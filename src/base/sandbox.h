/*
 * A sandbox: what this process may do from now on, in the eyes of the kernel. docs/sandbox.md.
 *
 *      sandbox_files_*   which files it may open (Landlock); before the first thread
 *      sandbox_calls_*   which system calls it may make (seccomp); when all is open
 *
 * Both hold for all threads and for every program that is started from here, and cannot be undone.
 */
#ifndef BASE_SANDBOX_H
#define BASE_SANDBOX_H

#include <glib.h>
#include <stdbool.h>

typedef enum { SANDBOX_READ, SANDBOX_WRITE } SandboxAccess;

typedef struct SandboxFiles SandboxFiles;

SandboxFiles *sandbox_files_new(void);
void sandbox_files_free(SandboxFiles *files);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(SandboxFiles, sandbox_files_free)

/* A file, or a directory and all below it. What is not there is left out; NULL is fine. */
void sandbox_files_allow(SandboxFiles *files, const char *path, SandboxAccess access);

/* From now on this thread, and those that it starts, open nothing else; what is open stays open.
 * Programs may be started from what may be read: they are in the same sandbox. ENOSYS, EOPNOTSUPP: this kernel
 * cannot do it. [main] */
bool sandbox_files_close(const SandboxFiles *files, GError **error);

/* From now on no thread makes other system calls than a server needs; one that does gets -EPERM, and
 * the first of each kind is said on stderr. programs: to start one is allowed. ENOSYS: this
 * kernel cannot do it. [main] */
bool sandbox_calls_close(bool programs, GError **error);

/* For a process that was started inside a sandbox: it says which calls are denied, too. [main] */
void sandbox_calls_watch(void);

#endif
