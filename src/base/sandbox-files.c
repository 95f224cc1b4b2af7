/*
 * Which files may be opened: Landlock, by its three system calls, for which libc has no functions.
 *
 * What a kernel does not know yet it does not restrict: the rights are cut to its version. What may be
 * read may be executed: a program that is started has the same sandbox, so it gains nothing.
 */
#include "base/sandbox.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/errors.h"

/* Newer than the oldest headers that this is built with. */
#define RIGHT_REFER     (UINT64_C(1) << 13) /* version 2 */
#define RIGHT_TRUNCATE  (UINT64_C(1) << 14) /* version 3 */
#define RIGHT_IOCTL_DEV (UINT64_C(1) << 15) /* version 5 */

#define RIGHTS_READ     (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define RIGHTS_CHANGE                                                                             \
    (LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |                              \
     LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | \
     LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_SYM | RIGHT_REFER | RIGHT_TRUNCATE |  \
     RIGHT_IOCTL_DEV)
#define RIGHTS_NEVER \
    (LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO)
#define RIGHTS_OF_A_FILE                                                             \
    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | RIGHT_TRUNCATE | \
     RIGHT_IOCTL_DEV)

typedef struct Rule {
    char *path;
    SandboxAccess access;
} Rule;

struct SandboxFiles {
    GArray *rules; /* Rule */
};

SandboxFiles *sandbox_files_new(void)
{
    SandboxFiles *files = g_new(SandboxFiles, 1);
    files->rules = g_array_new(FALSE, FALSE, sizeof(Rule));
    return files;
}

void sandbox_files_free(SandboxFiles *files)
{
    for (unsigned i = 0; i < files->rules->len; i++) {
        g_free(g_array_index(files->rules, Rule, i).path);
    }
    g_array_unref(files->rules);
    g_free(files);
}

void sandbox_files_allow(SandboxFiles *files, const char *path, SandboxAccess access)
{
    if (path != NULL) {
        Rule rule = {g_strdup(path), access};
        g_array_append_val(files->rules, rule);
    }
}

/* The rights that this version of Landlock knows. */
static uint64_t known_rights(int version)
{
    uint64_t rights = RIGHTS_READ | RIGHTS_CHANGE | RIGHTS_NEVER;
    rights &= version >= 2 ? ~UINT64_C(0) : ~RIGHT_REFER;
    rights &= version >= 3 ? ~UINT64_C(0) : ~RIGHT_TRUNCATE;
    rights &= version >= 5 ? ~UINT64_C(0) : ~RIGHT_IOCTL_DEV;
    return rights;
}

static bool add_rule(int ruleset, const Rule *rule, uint64_t known, GError **error)
{
    autofd int fd = open(rule->path, O_PATH | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        return true; /* not there, or not for us anyway */
    }
    uint64_t rights = rule->access == SANDBOX_WRITE ? RIGHTS_READ | RIGHTS_CHANGE : RIGHTS_READ;
    rights &= S_ISDIR(st.st_mode) ? known : known & RIGHTS_OF_A_FILE;
    struct landlock_path_beneath_attr beneath = {.allowed_access = rights, .parent_fd = fd};
    return syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0) == 0 ||
           error_set_errno(error, errno, "sandbox: cannot allow %s", rule->path);
}

bool sandbox_files_close(const SandboxFiles *files, GError **error)
{
    int version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 0) {
        return error_set_errno(error, errno, "sandbox: this kernel has no Landlock");
    }
    uint64_t known = known_rights(version);
    struct landlock_ruleset_attr attributes = {.handled_access_fs = known};
    autofd int ruleset =
        syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes.handled_access_fs, 0);
    if (ruleset < 0) {
        return error_set_errno(error, errno, "sandbox: cannot make a set of rules");
    }
    for (unsigned i = 0; i < files->rules->len; i++) {
        if (!add_rule(ruleset, &g_array_index(files->rules, Rule, i), known, error)) {
            return false;
        }
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        syscall(SYS_landlock_restrict_self, ruleset, 0) != 0) {
        return error_set_errno(error, errno, "sandbox: cannot close it");
    }
    return true;
}
