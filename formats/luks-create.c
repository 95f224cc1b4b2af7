/*
 * LUKS headers made by libcryptsetup, in a file in memory: the bytes are then written to where the
 * image has them.
 */
#include "formats/luks-header.h"

#include <errno.h>
#include <libcryptsetup.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/secret.h"
#include "formats/option.h"

#define SECTOR            512u
#define ITER_TIME_DEFAULT 2000 /* milliseconds, as qemu and cryptsetup */
#define ITER_TIME_MAX     20000 /* what opening the image may take: luks-header.c has its limit, too */
#define ITERATIONS_MIN    1000
#define ITERATIONS_MAX    100000000
#define ARGON2_PASSES     4 /* with a number of rounds they are these, over that much memory in KiB */
#define ARGON2_MEMORY     (32u << 10)
#define ROOM              (UINT64_C(64) << 20) /* of the file: holes */

typedef struct Making {
    unsigned version;
    const char *algorithm; /* "aes" */
    size_t key_length;     /* bytes, of the whole key */
    char *mode;            /* "xts-plain64" */
    const char *hash;
    uint64_t iter_time;  /* milliseconds */
    uint64_t iterations; /* rounds, in place of that; 0: as many as that time allows */
} Making;

static void making_clear(Making *making)
{
    g_free(making->mode);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Making, making_clear)

static const char *lookup(GHashTable *options, const char *prefix, const char *name,
                          const char *otherwise)
{
    g_autofree char *full = g_strconcat(prefix, name, NULL);
    const char *text = option_lookup(options, full);
    return text ? text : otherwise;
}

static bool take_cipher(Making *making, const char *text, bool xts, GError **error)
{
    static const struct {
        const char *name, *algorithm;
        size_t key_length;
    } ciphers[] = {{"aes-128", "aes", 16}, {"aes-192", "aes", 24}, {"aes-256", "aes", 32}};
    for (unsigned i = 0; i < G_N_ELEMENTS(ciphers); i++) {
        if (strcmp(text, ciphers[i].name) == 0) {
            making->algorithm = ciphers[i].algorithm;
            making->key_length = ciphers[i].key_length * (xts ? 2 : 1);
            return true;
        }
    }
    return error_set(error, EINVAL, "cipher-alg is '%s': must be aes-128, aes-192 or aes-256",
                     text);
}

static bool take_mode(Making *making, GHashTable *options, const char *prefix, GError **error)
{
    const char *mode = lookup(options, prefix, "cipher-mode", "xts");
    const char *iv = lookup(options, prefix, "ivgen-alg", "plain64");
    const char *hash = lookup(options, prefix, "ivgen-hash-alg", NULL);
    bool xts = strcmp(mode, "xts") == 0, essiv = strcmp(iv, "essiv") == 0;
    if (!xts && strcmp(mode, "cbc") != 0) {
        return error_set(error, EINVAL, "cipher-mode is '%s': must be xts or cbc", mode);
    }
    if (!essiv && strcmp(iv, "plain64") != 0 && strcmp(iv, "plain") != 0) {
        return error_set(error, EINVAL, "ivgen-alg is '%s': must be plain, plain64 or essiv", iv);
    }
    if (!essiv && hash) {
        return error_set(error, EINVAL, "ivgen-hash-alg is '%s': is only for ivgen-alg=essiv",
                         hash);
    }
    making->mode = essiv ? g_strdup_printf("%s-essiv:%s", mode, hash ? hash : "sha256")
                         : g_strdup_printf("%s-%s", mode, iv);
    return take_cipher(making, lookup(options, prefix, "cipher-alg", "aes-256"), xts, error);
}

static bool take_options(Making *making, GHashTable *options, const char *prefix, GError **error)
{
    const char *version = lookup(options, prefix, "version", "1");
    const char *time = lookup(options, prefix, "iter-time", NULL);
    making->hash = lookup(options, prefix, "hash-alg", "sha256");
    making->iter_time = ITER_TIME_DEFAULT;
    if (strcmp(version, "1") != 0 && strcmp(version, "2") != 0) {
        return error_set(error, EINVAL, "version is '%s': must be 1 or 2", version);
    }
    making->version = version[0] - '0';
    if (time &&
        (!option_parse_number(time, ITER_TIME_MAX, &making->iter_time) || making->iter_time == 0)) {
        return error_set(error, EINVAL, "iter-time is '%s': must be 1 to %d milliseconds", time,
                         ITER_TIME_MAX);
    }
    const char *rounds = lookup(options, prefix, "iterations", NULL);
    if (rounds && (time || !option_parse_number(rounds, ITERATIONS_MAX, &making->iterations) ||
                   making->iterations < ITERATIONS_MIN)) {
        return error_set(error, EINVAL, "iterations is '%s': must be %d to %d, without iter-time",
                         rounds, ITERATIONS_MIN, ITERATIONS_MAX);
    }
    return take_mode(making, options, prefix, error);
}

/* A number that was said is taken as it is; nothing is measured then. */
static struct crypt_pbkdf_type derivation(const Making *making)
{
    bool first = making->version == 1, said = making->iterations > 0;
    return (struct crypt_pbkdf_type){
        .type = first ? CRYPT_KDF_PBKDF2 : CRYPT_KDF_ARGON2ID,
        .hash = making->hash,
        .time_ms = said ? 0 : making->iter_time,
        .iterations = !said   ? 0
                      : first ? making->iterations
                              : ARGON2_PASSES,
        .max_memory_kb = first  ? 0
                         : said ? ARGON2_MEMORY
                                : 1 << 20,
        .parallel_threads = first ? 0 : 4,
        .flags = said ? CRYPT_PBKDF_NO_BENCHMARK : 0,
    };
}

/* secret NULL: there is no key slot, only the room for some. */
static int format_device(struct crypt_device *device, const Making *making, const Secret *secret)
{
    struct crypt_pbkdf_type kdf = derivation(making);
    struct crypt_params_luks1 luks1 = {.hash = making->hash};
    struct crypt_params_luks2 luks2 = {.pbkdf = &kdf, .sector_size = SECTOR};
    bool first = making->version == 1;
    int r = crypt_set_pbkdf_type(device, &kdf);
    r = r < 0 ? r
              : crypt_format(device, first ? CRYPT_LUKS1 : CRYPT_LUKS2, making->algorithm,
                             making->mode, NULL, NULL, making->key_length,
                             first ? (void *)&luks1 : (void *)&luks2);
    return r < 0 || !secret
               ? r
               : crypt_keyslot_add_by_volume_key(device, CRYPT_ANY_SLOT, NULL, 0,
                                                 (const char *)secret->bytes, secret->length);
}

static void take_message(int level, const char *message, void *opaque)
{
    GString *said = opaque;
    if (level == CRYPT_LOG_ERROR) {
        g_string_assign(said, message);
        g_string_truncate(said, strcspn(said->str, "\n"));
    }
}

static int make(int fd, const Making *making, const Secret *secret, GString *said, uint64_t *length)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    struct crypt_device *device = NULL;
    int r = ftruncate(fd, ROOM) < 0 ? -errno : 0;
    crypt_metadata_locking(NULL, 0); /* nobody else has the file */
    r = r < 0 ? r : crypt_init(&device, path);
    if (r == 0) {
        crypt_set_log_callback(device, take_message, said);
        r = format_device(device, making, secret);
        *length = crypt_get_data_offset(device) * SECTOR;
    }
    crypt_free(device);
    return r;
}

/* *length: of the header that is in the file then. */
static bool make_file(int fd, const Making *making, const Secret *secret, const char *name,
                      uint64_t *length, GError **error)
{
    g_autoptr(GString) said = g_string_new(NULL);
    int r = fd < 0 ? -errno : make(fd, making, secret, said, length);
    return r >= 0 || error_set(error, EINVAL, "%s: cannot make a LUKS header with %s-%s and %s: %s",
                               name, making->algorithm, making->mode, making->hash,
                               said->len > 0 ? said->str : g_strerror(-r));
}

bool luks_header_length(GHashTable *options, const char *prefix, uint64_t *length, GError **error)
{
    g_auto(Making) making = {0};
    if (!take_options(&making, options, prefix, error)) {
        return false;
    }
    making.iterations = ITERATIONS_MIN; /* takes no time, and no room */
    autofd int fd = memfd_create("luks header", MFD_CLOEXEC);
    return make_file(fd, &making, NULL, "luks", length, error);
}

GByteArray *luks_header_make(GHashTable *options, const char *prefix, const Secret *secret,
                             const char *name, GError **error)
{
    g_auto(Making) making = {0};
    uint64_t length = 0;
    if (!take_options(&making, options, prefix, error)) {
        return NULL;
    }
    autofd int fd = memfd_create("luks header", MFD_CLOEXEC);
    if (!make_file(fd, &making, secret, name, &length, error)) {
        return NULL;
    }
    g_autoptr(GByteArray) bytes = g_byte_array_new();
    g_byte_array_set_size(bytes, length);
    if (length > LUKS_HEADER_MAX || pread(fd, bytes->data, length, 0) != (ssize_t)length) {
        error_set(error, EIO, "%s: cannot read the LUKS header", name);
        return NULL;
    }
    return g_steal_pointer(&bytes);
}
