/*
 * LUKS headers, read by libcryptsetup from a copy in memory.
 *
 *     store   |header|key slots|.......|data             read: up to where the data begins
 *     memory  |header|key slots|       |                 a file without a name; as large as the header
 *                                                        says, with holes
 *
 * What must stay true: nothing is derived before what it costs is known. A header names the number of
 * rounds and the memory for each of up to 32 key slots, and anybody can write 2^32 there.
 */
#include "formats/luks-header.h"

#include <errno.h>
#include <inttypes.h>
#include <json-glib/json-glib.h>
#include <libcryptsetup.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/errors.h"
#include "base/secret.h"
#include "formats/info.h"
#include "map/encryption.h"

#define SECTOR            512u
#define SECTOR_MAX        4096u
#define LUKS1_PAYLOAD     104 /* where the data begins, in sectors */
#define LUKS1_DIGEST      164 /* rounds of the digest of the key */
#define LUKS2_HEADER_SIZE 8
#define VERSION_AT        6
#define HEAD_SIZE         592 /* of version 1; what both versions have at least */

/* What deriving a key may cost: all key slots of a header together. cryptsetup's own choices stay far
 * below (two seconds a slot, at most 1 GiB). */
#define ROUNDS_MAX      UINT64_C(200000000)         /* PBKDF2 */
#define MEMORY_MAX      (UINT32_C(1) << 20)         /* Argon2, KiB, a slot */
#define MEMORY_WORK_MAX ((UINT64_C(1) << 20) * 256) /* Argon2, KiB times passes */
#define THREADS_MAX     16

struct LuksHeader {
    struct crypt_device *device;
    int fd; /* the copy */
    char *name;
    unsigned version;
    uint64_t size; /* of the copy */
    GString *said; /* the last line that libcryptsetup wrote */
};

/* libcryptsetup has state that all its devices share. */
static pthread_mutex_t library_lock = PTHREAD_MUTEX_INITIALIZER;

static void take_message(int level, const char *message, void *opaque)
{
    GString *said = opaque;
    if (level == CRYPT_LOG_ERROR) {
        g_string_assign(said, message);
        g_strchomp(said->str);
        said->len = strlen(said->str);
    }
}

void luks_header_free(LuksHeader *header)
{
    if (header) {
        crypt_free(header->device);
        if (header->fd >= 0) {
            close(header->fd);
        }
        g_string_free(header->said, TRUE);
        g_free(header->name);
        g_free(header);
    }
}

static bool refuse(const LuksHeader *header, int result, const char *what, GError **error)
{
    const char *why = header->said->len > 0 ? header->said->str : g_strerror(-result);
    return error_set(error, EUCLEAN, "%s: %s: %s", header->name, what, why);
}

/* ---- the copy ------------------------------------------------------------------------------- */

static LuksHeader *header_new(const char *name)
{
    LuksHeader *header = g_new0(LuksHeader, 1);
    header->name = g_strdup(name);
    header->said = g_string_new(NULL);
    header->fd = memfd_create("luks header", MFD_CLOEXEC);
    return header;
}

/* The lock is held. */
static int open_copy(LuksHeader *header)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", header->fd);
    if (header->fd < 0) {
        return -errno;
    }
    crypt_set_log_callback(NULL, take_message, header->said);
    crypt_metadata_locking(NULL, 0); /* nobody else has the copy */
    int r = crypt_init(&header->device, path);
    crypt_set_log_callback(NULL, NULL, NULL);
    if (r == 0) {
        crypt_set_log_callback(header->device, take_message, header->said);
    }
    return r;
}

static int copy_bytes(LuksHeader *header, Store *store, uint64_t offset, uint64_t length)
{
    enum { STEP = 64 << 10 }; /* small, for most of a header is unused */
    g_autofree uint8_t *bytes = g_try_malloc(STEP);
    int r = bytes ? 0 : -ENOMEM;
    for (uint64_t at = 0; r == 0 && at < length; at += STEP) {
        size_t n = min_u64(STEP, length - at);
        r = store_read(store, bytes, n, offset + at);
        if (r == 0 && !bytes_are_zero(bytes, n) && pwrite(header->fd, bytes, n, at) != (ssize_t)n) {
            r = -ENOMEM;
        }
    }
    return r;
}

/* How far the header goes, as it says itself; both versions lie about their end when they are hostile, which
 * the library finds out. *copied: how much of that is worth copying. */
static bool header_extent(LuksHeader *header, const uint8_t *head, uint64_t length,
                          uint64_t *copied, GError **error)
{
    uint64_t data = (uint64_t)load_be32(head + LUKS1_PAYLOAD) * SECTOR;
    header->version = load_be16(head + VERSION_AT);
    if (memcmp(head, LUKS_MAGIC, LUKS_MAGIC_SIZE) != 0 || header->version < 1 ||
        header->version > 2) {
        return error_set(
            error, EUCLEAN,
            "%s: the LUKS header's magic and version are missing: must be LUKS\\xba\\xbe, "
            "and 1 or 2",
            header->name);
    }
    if (header->version == 1 && (data == 0 || data > length)) {
        return error_set(error, EUCLEAN,
                         "%s: payload_offset is %" PRIu64
                         " bytes: must be behind the header, inside its %" PRIu64 " bytes",
                         header->name, data, length);
    }
    header->size = length;
    *copied = min_u64(header->version == 1 ? data : length, LUKS_HEADER_MAX);
    return true;
}

static int load(LuksHeader *header)
{
    with_mutex(&library_lock);
    int r = open_copy(header);
    return r < 0
               ? r
               : crypt_load(header->device, header->version == 1 ? CRYPT_LUKS1 : CRYPT_LUKS2, NULL);
}

static bool check_loaded(const LuksHeader *header, uint64_t length, GError **error)
{
    uint64_t data = luks_header_data_offset(header);
    int key = crypt_get_volume_key_size(header->device);
    if (!crypt_get_cipher(header->device) || !crypt_get_cipher_mode(header->device) || key <= 0 ||
        (unsigned)key > CIPHER_KEY_MAX) {
        return error_set(error, ENOTSUP,
                         "%s: its cipher or its key of %d bytes is not known: must be at most %u",
                         header->name, key, CIPHER_KEY_MAX);
    }
    uint32_t sector = luks_header_sector(header);
    if (!is_power_of_two(sector) || sector < SECTOR || sector > SECTOR_MAX) {
        return error_set(error, EUCLEAN, "%s: sector_size is %u: must be 512, 1024, 2048 or %u",
                         header->name, sector, SECTOR_MAX);
    }
    if (data == 0 || data > length || data % SECTOR != 0) {
        return error_set(error, EUCLEAN,
                         "%s: the data begins at %" PRIu64 ": must be inside the %" PRIu64 " bytes",
                         header->name, data, length);
    }
    return true;
}

LuksHeader *luks_header_open(Store *store, uint64_t offset, uint64_t length, const char *name,
                             GError **error)
{
    uint8_t head[HEAD_SIZE];
    uint64_t copied = 0;
    g_autoptr(LuksHeader) header = header_new(name);
    if (length < sizeof head) {
        error_set(error, EUCLEAN, "%s: ends inside the LUKS header: has %" PRIu64 " bytes", name,
                  length);
        return NULL;
    }
    int r = store_read(store, head, sizeof head, offset);
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot read the LUKS header", name);
        return NULL;
    }
    if (!header_extent(header, head, length, &copied, error)) {
        return NULL;
    }
    r = header->fd < 0 || ftruncate(header->fd, header->size) < 0 ? -errno : 0;
    r = r < 0 ? r : copy_bytes(header, store, offset, copied);
    if (r < 0) {
        error_set_errno(error, -r, "%s: cannot copy the LUKS header", name);
        return NULL;
    }
    r = load(header);
    if (r < 0) {
        refuse(header, r, "the LUKS header is broken", error);
        return NULL;
    }
    return check_loaded(header, length, error) ? g_steal_pointer(&header) : NULL;
}

uint64_t luks_header_data_offset(const LuksHeader *header)
{
    return crypt_get_data_offset(header->device) * SECTOR;
}

uint32_t luks_header_sector(const LuksHeader *header)
{
    return header->version == 1 ? SECTOR : crypt_get_sector_size(header->device);
}

/* ---- what it costs -------------------------------------------------------------------------- */

typedef struct Cost {
    uint64_t rounds, memory_work;
} Cost;

static bool is_active(const LuksHeader *header, int slot)
{
    crypt_keyslot_info status = crypt_keyslot_status(header->device, slot);
    return status == CRYPT_SLOT_ACTIVE || status == CRYPT_SLOT_ACTIVE_LAST;
}

static int slot_count(const LuksHeader *header)
{
    return crypt_keyslot_max(header->version == 1 ? CRYPT_LUKS1 : CRYPT_LUKS2);
}

static bool add_slot(const LuksHeader *header, int slot, Cost *cost, GError **error)
{
    struct crypt_pbkdf_type kdf = {0};
    int r = crypt_keyslot_get_pbkdf(header->device, slot, &kdf);
    if (r < 0) {
        return refuse(header, r, "its key slots cannot be read", error);
    }
    if (kdf.max_memory_kb == 0) {
        cost->rounds += kdf.iterations;
        return true;
    }
    cost->memory_work += (uint64_t)kdf.iterations * kdf.max_memory_kb;
    if (kdf.max_memory_kb > MEMORY_MAX || kdf.parallel_threads > THREADS_MAX) {
        return error_set(
            error, ENOTSUP,
            "%s: key slot %d wants %u KiB of memory and %u threads: must be at most %u "
            "and %u",
            header->name, slot, kdf.max_memory_kb, kdf.parallel_threads, MEMORY_MAX, THREADS_MAX);
    }
    return true;
}

/* The library takes the last 32 bits of the number, so one below 0 means many rounds. */
static void add_digest(JsonObject *digests, const char *name, JsonNode *node, gpointer opaque)
{
    Cost *cost = opaque;
    if (JSON_NODE_HOLDS_OBJECT(node)) {
        gint64 rounds =
            json_object_get_int_member_with_default(json_node_get_object(node), "iterations", 0);
        bool plausible = rounds >= 0 && rounds <= UINT32_MAX;
        cost->rounds += plausible ? (uint64_t)rounds : UINT32_MAX;
    }
}

/* The key that comes out is checked with a digest of its own. */
static bool add_digests(const LuksHeader *header, Cost *cost, GError **error)
{
    if (header->version == 1) {
        uint8_t rounds[4];
        if (pread(header->fd, rounds, sizeof rounds, LUKS1_DIGEST) != sizeof rounds) {
            return error_set_errno(error, EIO, "%s: its digest", header->name);
        }
        cost->rounds += load_be32(rounds);
        return true;
    }
    const char *text = NULL;
    g_autoptr(JsonParser) parser = json_parser_new();
    int r = crypt_dump_json(header->device, &text, 0);
    if (r < 0) {
        return refuse(header, r, "its metadata cannot be read", error);
    }
    if (!json_parser_load_from_data(parser, text, -1, error)) {
        g_prefix_error(error, "%s: its metadata: ", header->name);
        return false;
    }
    JsonNode *root = json_parser_get_root(parser);
    JsonNode *digests = root && JSON_NODE_HOLDS_OBJECT(root)
                            ? json_object_get_member(json_node_get_object(root), "digests")
                            : NULL;
    if (!digests || !JSON_NODE_HOLDS_OBJECT(digests)) {
        return error_set(error, EUCLEAN, "%s: has no digests", header->name);
    }
    json_object_foreach_member(json_node_get_object(digests), add_digest, cost);
    return true;
}

bool luks_header_check_cost(const LuksHeader *header, GError **error)
{
    Cost cost = {0};
    for (int slot = 0; slot < slot_count(header); slot++) {
        if (is_active(header, slot) && !add_slot(header, slot, &cost, error)) {
            return false;
        }
    }
    if (!add_digests(header, &cost, error)) {
        return false;
    }
    if (cost.rounds > ROUNDS_MAX || cost.memory_work > MEMORY_WORK_MAX) {
        return error_set(error, ENOTSUP,
                         "%s: its key slots want %" PRIu64 " rounds, and %" PRIu64
                         " passes over 1 MiB: must be at most %" PRIu64 " and %" PRIu64,
                         header->name, cost.rounds, cost.memory_work >> 10, ROUNDS_MAX,
                         MEMORY_WORK_MAX >> 10);
    }
    return true;
}

/* ---- the key -------------------------------------------------------------------------------- */

/* The slot that the secret opens, or -EPERM, or another -errno. */
static int open_slots(LuksHeader *header, const Secret *secret, uint8_t *key, size_t *key_length,
                      unsigned *tried)
{
    int r = -EPERM;
    *tried = 0;
    for (int slot = 0; r == -EPERM && slot < slot_count(header); slot++) {
        if (is_active(header, slot)) {
            size_t length = *key_length;
            ++*tried;
            r = crypt_volume_key_get(header->device, slot, (char *)key, &length,
                                     (const char *)secret->bytes, secret->length);
            *key_length = r >= 0 ? length : *key_length;
        }
    }
    return r;
}

static bool refuse_secret(const LuksHeader *header, const Secret *secret, unsigned tried,
                          GError **error)
{
    bool newline = secret->bytes[secret->length - 1] == '\n';
    return error_set(error, EKEYREJECTED, "%s: the secret opens none of its %u key slots%s",
                     header->name, tried, newline ? ": it ends with a newline, which counts" : "");
}

static Cipher *make_cipher(LuksHeader *header, const uint8_t *key, size_t length, GError **error)
{
    CipherKind kind = {
        .algorithm = crypt_get_cipher(header->device),
        .mode = crypt_get_cipher_mode(header->device),
        .sector = luks_header_sector(header),
        .iv_offset = crypt_get_iv_offset(header->device),
    };
    return cipher_new(&kind, key, length, header->name, error);
}

Cipher *luks_header_unlock(LuksHeader *header, const Secret *secret, GError **error)
{
    if (!luks_header_check_cost(header, error)) {
        return NULL;
    }
    uint8_t *key = secret_memory_new(CIPHER_KEY_MAX);
    size_t length = CIPHER_KEY_MAX;
    unsigned tried = 0;
    int r = -ENOMEM;
    if (key) {
        with_mutex(&library_lock);
        r = open_slots(header, secret, key, &length, &tried);
    }
    Cipher *cipher = NULL;
    if (r == -EPERM) {
        refuse_secret(header, secret, tried, error);
    } else if (r < 0) {
        refuse(header, r, "its key slots cannot be opened", error);
    } else {
        cipher = make_cipher(header, key, length, error);
    }
    secret_memory_free(key);
    return cipher;
}

bool luks_image_unlock(Image *image, LuksHeader *header, uint64_t start, GError **error)
{
    if (!image_check_secret(image, error)) {
        return false;
    }
    Cipher *cipher = image->secret ? luks_header_unlock(header, image->secret, error) : NULL;
    if (image->secret && !cipher) {
        return false;
    }
    image->encryption = encryption_new("luks", cipher, false, start);
    return true;
}

/* ---- info ----------------------------------------------------------------------------------- */

/* qemu's names: "aes-256" and "xts", "plain64". */
static void add_cipher(const LuksHeader *header, GVariantBuilder *data)
{
    g_auto(GStrv) mode = g_strsplit(crypt_get_cipher_mode(header->device), "-", 2);
    int bits = crypt_get_volume_key_size(header->device) * 8;
    g_auto(GStrv) iv = g_strsplit(mode[0] && mode[1] ? mode[1] : "", ":", 2);
    bits = mode[0] && strcmp(mode[0], "xts") == 0 ? bits / 2 : bits;
    g_autofree char *algorithm = g_strdup_printf("%s-%d", crypt_get_cipher(header->device), bits);
    info_add_text(data, "ivgen-alg", iv[0], -1);
    if (iv[0] && iv[1]) {
        info_add_text(data, "ivgen-hash-alg", iv[1], -1);
    }
    info_add_text(data, "cipher-alg", algorithm, -1);
    info_add_text(data, "cipher-mode", mode[0], -1);
}

static GVariant *slot_info(const LuksHeader *header, int slot)
{
    GVariantBuilder entry;
    struct crypt_pbkdf_type kdf = {0};
    g_variant_builder_init(&entry, G_VARIANT_TYPE("a{sv}"));
    bool active = is_active(header, slot);
    g_variant_builder_add(&entry, "{sv}", "active", g_variant_new_boolean(active));
    if (active && crypt_keyslot_get_pbkdf(header->device, slot, &kdf) >= 0) {
        g_variant_builder_add(&entry, "{sv}", "iters", g_variant_new_int64(kdf.iterations));
        info_add_text(&entry, "kdf", kdf.type, -1);
    }
    return g_variant_builder_end(&entry);
}

void luks_header_info(const LuksHeader *header, GVariantBuilder *data)
{
    GVariantBuilder slots;
    add_cipher(header, data);
    g_variant_builder_add(data, "{sv}", "version", g_variant_new_int64(header->version));
    info_add_text(data, "uuid", crypt_get_uuid(header->device), -1);
    g_variant_builder_add(data, "{sv}", "payload-offset",
                          g_variant_new_int64(luks_header_data_offset(header)));
    g_variant_builder_init(&slots, G_VARIANT_TYPE("aa{sv}"));
    for (int slot = 0; slot < (header->version == 1 ? slot_count(header) : 0); slot++) {
        g_variant_builder_add_value(&slots, slot_info(header, slot));
    }
    for (int slot = 0; slot < (header->version == 2 ? slot_count(header) : 0); slot++) {
        if (is_active(header, slot)) {
            g_variant_builder_add_value(&slots, slot_info(header, slot));
        }
    }
    g_variant_builder_add(data, "{sv}", "slots", g_variant_builder_end(&slots));
}
