/*
 * Keys of LUKS headers, kept.
 *
 * What must stay true: a key is given only to who shows the header that it came from, key slot included, and the
 * secret that opened it. So a state with a torn header or another key slot is tried by the library itself.
 */
#include "luks-keys.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <glib.h>
#include <libcryptsetup.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"

#define KEY_MAX 128

typedef int (*VolumeKeyGet)(struct crypt_device *device, int slot, char *key, size_t *key_length,
                            const char *secret, size_t secret_length);

typedef struct Kept {
    GBytes *source; /* the header up to the end of the slot's area, then the secret */
    int slot;
    size_t length;
    char key[KEY_MAX];
} Kept;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool keeping;
static Kept last;

void luks_keys_keep(void)
{
    with_mutex(&lock);
    keeping = true;
}

/* All that the key is made of; NULL: cannot be told. */
static GBytes *source_of(struct crypt_device *device, int slot, const char *secret,
                         size_t secret_length)
{
    uint64_t offset, length;
    if (crypt_keyslot_area(device, slot, &offset, &length) < 0) {
        return NULL;
    }
    autofd int fd = open(crypt_get_device_name(device), O_RDONLY | O_CLOEXEC);
    uint64_t size = offset + length;
    g_autofree char *bytes = g_malloc(size + secret_length);
    if (fd < 0 || pread(fd, bytes, size, 0) != (ssize_t)size) {
        return NULL;
    }
    memcpy(bytes + size, secret, secret_length);
    return g_bytes_new_take(g_steal_pointer(&bytes), size + secret_length);
}

static bool is_kept(GBytes *source, int slot, size_t room)
{
    return last.source && last.slot == slot && last.length <= room &&
           g_bytes_equal(last.source, source);
}

static void keep(GBytes *source, int slot, const char *key, size_t length)
{
    g_clear_pointer(&last.source, g_bytes_unref);
    last = (Kept){.source = g_bytes_ref(source), .slot = slot, .length = length};
    memcpy(last.key, key, length);
}

/* Stands in for the function of libcryptsetup. */
int crypt_volume_key_get(struct crypt_device *device, int slot, char *key, size_t *key_length,
                         const char *secret, size_t secret_length)
{
    VolumeKeyGet derive = (VolumeKeyGet)dlsym(RTLD_NEXT, "crypt_volume_key_get");
    with_mutex(&lock);
    g_autoptr(GBytes) source = keeping ? source_of(device, slot, secret, secret_length) : NULL;
    if (source && is_kept(source, slot, *key_length)) {
        memcpy(key, last.key, last.length);
        *key_length = last.length;
        return slot;
    }
    int r = derive(device, slot, key, key_length, secret, secret_length);
    if (source && r >= 0 && *key_length <= KEY_MAX) {
        keep(source, slot, key, *key_length);
    }
    return r;
}
