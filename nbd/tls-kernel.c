/*
 * TLS in the kernel.
 *
 * What must stay true:
 *  1. The kernel gets a session between two records: of the client's none is with GnuTLS, in whole
 *     or in part, and the numbers of the next ones are GnuTLS'.
 *  2. In TLS 1.3 it gets one only when the secrets that we keep stand for the keys in use: without
 *     them the next keys could not be had.
 *  3. Nothing is received between a client's KeyUpdate and its new key, nothing sent between ours and
 *     our new key. Where the kernel refuses the key, the session ends.
 *  4. What a client may have us do without sending data is bounded.
 */
#include "nbd/tls-kernel.h"

#include <errno.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/log.h"

#define RECORD_DATA (16u << 10)
#define RECORDS_PER_KEY \
    (1u << 24) /* the limit of AES-GCM (RFC 8446, section 5.5) is 1.4 times that */
#define WITHOUT_DATA_MAX 8
#define NONCE_SIZE       12 /* of all ciphers here */
#define NUMBER_SIZE      8
#define KEY_MAX          32
#define INFO_MAX         (sizeof(struct tls_crypto_info) + NONCE_SIZE + KEY_MAX + NUMBER_SIZE)

enum { RECORD_ALERT = 21, RECORD_HANDSHAKE = 22, RECORD_DATA_TYPE = 23 };

#define KEY_UPDATE \
    24 /* a handshake message of KEY_UPDATE_SIZE bytes, the last of which asks for ours */
#define KEY_UPDATE_SIZE 5

struct TlsKernelCipher {
    gnutls_cipher_algorithm_t algorithm;
    uint16_t number; /* the kernel's */
    uint8_t key_size;
    uint8_t salt_size; /* the first bytes of a nonce, which the kernel wants by themselves */
};

static const TlsKernelCipher CIPHERS[] = {
    {GNUTLS_CIPHER_AES_128_GCM, TLS_CIPHER_AES_GCM_128, 16, 4},
    {GNUTLS_CIPHER_AES_256_GCM, TLS_CIPHER_AES_GCM_256, 32, 4},
    {GNUTLS_CIPHER_CHACHA20_POLY1305, TLS_CIPHER_CHACHA20_POLY1305, 32, 0},
};

/* What the kernel is told of one way. */
typedef struct Keys {
    uint8_t key[KEY_MAX], nonce[NONCE_SIZE], number[NUMBER_SIZE];
} Keys;

/* The kernel's structures for its ciphers are the same but for the sizes of their parts. 0 or a negative
 * errno. */
static int set_keys(int fd, TlsWay way, uint16_t version, const TlsKernelCipher *cipher,
                    const Keys *keys)
{
    struct tls_crypto_info head = {.version = version, .cipher_type = cipher->number};
    const struct {
        const void *bytes;
        size_t size;
    } parts[] = {
        {&head, sizeof head},
        {keys->nonce + cipher->salt_size, NONCE_SIZE - cipher->salt_size},
        {keys->key, cipher->key_size},
        {keys->nonce, cipher->salt_size},
        {keys->number, NUMBER_SIZE},
    };
    uint8_t info[INFO_MAX];
    size_t size = 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(parts); i++) {
        memcpy(info + size, parts[i].bytes, parts[i].size);
        size += parts[i].size;
    }
    int r = setsockopt(fd, SOL_TLS, way == TLS_WAY_OUT ? TLS_TX : TLS_RX, info, size);
    r = r == 0 ? 0 : -errno;
    gnutls_memset(info, 0, sizeof info);
    return r;
}

static bool set_tls(int fd)
{
    return setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof "tls") == 0;
}

/* What the kernel can do */

static bool open_pair(int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    autofd int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) != 0 ||
        listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
        return false;
    }
    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[1] = fds[0] >= 0 && connect(fds[0], (struct sockaddr *)&address, length) == 0
                 ? accept4(listener, NULL, NULL, SOCK_CLOEXEC)
                 : -1;
    return fds[1] >= 0;
}

static int set_keys_both_ways(int fd, uint8_t fill)
{
    Keys keys;
    memset(&keys, fill, sizeof keys);
    int r = set_keys(fd, TLS_WAY_IN, TLS_1_3_VERSION, &CIPHERS[0], &keys);
    return r == 0 ? set_keys(fd, TLS_WAY_OUT, TLS_1_3_VERSION, &CIPHERS[0], &keys) : r;
}

TlsKernelSupport tls_kernel_probe(void)
{
    int fds[2] = {-1, -1};
    TlsKernelSupport support = TLS_KERNEL_NONE;
    if (open_pair(fds) && set_tls(fds[1]) && set_keys_both_ways(fds[1], 1) == 0) {
        support = set_keys_both_ways(fds[1], 2) == 0 ? TLS_KERNEL_NEW_KEYS : TLS_KERNEL_ONE_KEY;
    }
    for (unsigned i = 0; i < 2; i++) {
        if (fds[i] >= 0) {
            close(fds[i]);
        }
    }
    return support;
}

/* From GnuTLS to the kernel */

void tls_kernel_clear(TlsKernel *kernel)
{
    tls_traffic_clear(&kernel->traffic[TLS_WAY_IN]);
    tls_traffic_clear(&kernel->traffic[TLS_WAY_OUT]);
}

void tls_kernel_keep(TlsKernel *kernel, const void *in, const void *out, size_t size)
{
    if (in != NULL) {
        tls_traffic_set(&kernel->traffic[TLS_WAY_IN], in, size);
    }
    if (out != NULL) {
        tls_traffic_set(&kernel->traffic[TLS_WAY_OUT], out, size);
    }
}

void tls_kernel_saw(TlsKernel *kernel, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        size_t part;
        if (kernel->body_left > 0) {
            part = min_u64(kernel->body_left, length);
            kernel->body_left -= part;
        } else {
            part = min_u64(sizeof kernel->head - kernel->head_length, length);
            memcpy(kernel->head + kernel->head_length, bytes, part);
            kernel->head_length += part;
            if (kernel->head_length == sizeof kernel->head) {
                kernel->body_left = load_be16(kernel->head + 3);
                kernel->head_length = 0;
            }
        }
        bytes += part;
        length -= part;
    }
}

static const TlsKernelCipher *find_cipher(gnutls_session_t session)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(CIPHERS); i++) {
        if (CIPHERS[i].algorithm == gnutls_cipher_get(session)) {
            return &CIPHERS[i];
        }
    }
    return NULL;
}

/* Of TLS 1.3: whether our secret stands for the keys in use. GnuTLS may have taken new ones meanwhile. */
static bool knows_keys(const TlsKernel *kernel, TlsWay way, const Keys *keys)
{
    Keys known;
    size_t size = kernel->cipher->key_size;
    bool same = tls_traffic_key(&kernel->traffic[way], known.key, size) &&
                tls_traffic_nonce(&kernel->traffic[way], known.nonce, NONCE_SIZE) &&
                gnutls_memcmp(known.key, keys->key, size) == 0 &&
                gnutls_memcmp(known.nonce, keys->nonce, NONCE_SIZE) == 0;
    gnutls_memset(&known, 0, sizeof known);
    return same;
}

/* The keys in use. The nonces of AES-GCM in TLS 1.2 are a part of theirs and the number of the record. */
static bool get_keys(const TlsKernel *kernel, gnutls_session_t session, TlsWay way, Keys *keys)
{
    gnutls_datum_t mac, nonce, key;
    size_t salt = kernel->cipher->salt_size;
    if (gnutls_record_get_state(session, way == TLS_WAY_IN, &mac, &nonce, &key, keys->number) !=
            0 ||
        key.size != kernel->cipher->key_size || (nonce.size != NONCE_SIZE && nonce.size != salt)) {
        return false;
    }
    memcpy(keys->key, key.data, key.size);
    memcpy(keys->nonce + salt, keys->number, MIN(NUMBER_SIZE, NONCE_SIZE - salt));
    memcpy(keys->nonce, nonce.data, nonce.size);
    return gnutls_protocol_get_version(session) == GNUTLS_TLS1_2 || knows_keys(kernel, way, keys);
}

/* As tls_kernel_take. */
static int give(TlsKernel *kernel, uint16_t version, const Keys *keys)
{
    if (!set_tls(kernel->fd) ||
        set_keys(kernel->fd, TLS_WAY_IN, version, kernel->cipher, &keys[TLS_WAY_IN]) != 0) {
        return 0;
    }
    int r = set_keys(kernel->fd, TLS_WAY_OUT, version, kernel->cipher, &keys[TLS_WAY_OUT]);
    /* Records are decrypted to where they are wanted; one with padding, which is rare, twice. */
    setsockopt(kernel->fd, SOL_TLS, TLS_RX_EXPECT_NO_PAD, &(int){1}, sizeof(int));
    return r == 0 ? 1 : r;
}

int tls_kernel_take(TlsKernel *kernel, gnutls_session_t session)
{
    if (!kernel->wanted || kernel->head_length > 0 || kernel->body_left > 0) {
        return 0;
    }
    Keys keys[2];
    bool is_12 = gnutls_protocol_get_version(session) == GNUTLS_TLS1_2;
    int r = 0;
    kernel->wanted = false;
    kernel->cipher = find_cipher(session);
    if (kernel->cipher != NULL && get_keys(kernel, session, TLS_WAY_IN, &keys[TLS_WAY_IN]) &&
        get_keys(kernel, session, TLS_WAY_OUT, &keys[TLS_WAY_OUT])) {
        r = give(kernel, is_12 ? TLS_1_2_VERSION : TLS_1_3_VERSION, keys);
    }
    gnutls_memset(keys, 0, sizeof keys);
    kernel->taken = r > 0;
    return r;
}

/* Once taken */

/* 0 or a negative errno. */
static int set_next_keys(TlsKernel *kernel, TlsWay way)
{
    Keys keys = {0};
    int r = -EINVAL;
    if (kernel->cipher != NULL && tls_traffic_next(&kernel->traffic[way]) &&
        tls_traffic_key(&kernel->traffic[way], keys.key, kernel->cipher->key_size) &&
        tls_traffic_nonce(&kernel->traffic[way], keys.nonce, NONCE_SIZE)) {
        r = set_keys(kernel->fd, way, TLS_1_3_VERSION, kernel->cipher, &keys);
    }
    gnutls_memset(&keys, 0, sizeof keys);
    log_debug("client %d: TLS: new keys for what %s sends: %s", kernel->fd,
              way == TLS_WAY_IN ? "it" : "the server", r == 0 ? "taken" : g_strerror(-r));
    return r == 0 ? 0 : -EKEYEXPIRED;
}

/* A record that is not data. 0 or a negative errno. */
static int send_control(const TlsKernel *kernel, uint8_t type, const uint8_t *bytes, size_t length)
{
    union {
        struct cmsghdr head;
        uint8_t room[CMSG_SPACE(sizeof type)];
    } control = {0};
    struct iovec iov = {(void *)bytes, length};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control.room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_TLS;
    head->cmsg_type = TLS_SET_RECORD_TYPE;
    head->cmsg_len = CMSG_LEN(sizeof type);
    *CMSG_DATA(head) = type;
    return sendmsg(kernel->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

void tls_kernel_alert(TlsKernel *kernel, gnutls_alert_level_t level,
                      gnutls_alert_description_t description)
{
    const uint8_t bytes[] = {level, description};
    send_control(kernel, RECORD_ALERT, bytes, sizeof bytes);
}

/* Sending */

static int renew(TlsKernel *kernel)
{
    static const uint8_t UPDATE[KEY_UPDATE_SIZE] = {KEY_UPDATE, 0, 0, 1, 0};
    int r = send_control(kernel, RECORD_HANDSHAKE, UPDATE, sizeof UPDATE);
    if (r < 0) {
        return r;
    }
    kernel->renew = false;
    kernel->records = 0;
    return set_next_keys(kernel, TLS_WAY_OUT);
}

/* The key has had its records. In TLS 1.2 there is no other one to be had. */
static bool is_used_up(const TlsKernel *kernel)
{
    return kernel->records >= RECORDS_PER_KEY && kernel->traffic[TLS_WAY_OUT].size > 0;
}

ssize_t tls_kernel_send(TlsKernel *kernel, const struct iovec *iov, unsigned count)
{
    int r = kernel->renew || is_used_up(kernel) ? renew(kernel) : 0;
    if (r < 0 || count == 0) {
        return r;
    }
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};
    ssize_t sent = sendmsg(kernel->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        return -errno;
    }
    kernel->records += sent / RECORD_DATA + 1;
    return sent;
}

/* A record that the socket had no room for stays with the kernel, and is lost when it is closed; once
 * there is room it is sent at the latest then. */
bool tls_kernel_is_flushed(const TlsKernel *kernel)
{
    struct pollfd look = {.fd = kernel->fd, .events = POLLOUT};
    return poll(&look, 1, 0) != 0;
}

/* Receiving */

static int alert_came(TlsKernel *kernel)
{
    if (kernel->control_length != 2) {
        return GNUTLS_E_UNEXPECTED_PACKET_LENGTH;
    }
    bool is_13 = kernel->traffic[TLS_WAY_IN].size >
                 0; /* there what is no warning is not told by the level */
    kernel->alert = kernel->control[1];
    if (kernel->alert == GNUTLS_A_CLOSE_NOTIFY) {
        return 0;
    }
    bool harmless =
        is_13 ? kernel->alert == GNUTLS_A_USER_CANCELED : kernel->control[0] == GNUTLS_AL_WARNING;
    return harmless ? GNUTLS_E_AGAIN : GNUTLS_E_FATAL_ALERT_RECEIVED;
}

/* After the handshake a client has one message to send: that it takes new keys. */
static int handshake_came(TlsKernel *kernel)
{
    static const uint8_t UPDATE[KEY_UPDATE_SIZE - 1] = {KEY_UPDATE, 0, 0, 1};
    if (kernel->traffic[TLS_WAY_IN].size == 0) {
        return GNUTLS_E_REHANDSHAKE;
    }
    if (kernel->control_length != KEY_UPDATE_SIZE ||
        memcmp(kernel->control, UPDATE, sizeof UPDATE) != 0) {
        return GNUTLS_E_UNEXPECTED_HANDSHAKE_PACKET;
    }
    uint8_t asks = kernel->control[KEY_UPDATE_SIZE - 1];
    if (asks > 1) {
        return GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER;
    }
    kernel->renew |= asks == 1;
    return set_next_keys(kernel, TLS_WAY_IN) == 0 ? GNUTLS_E_AGAIN : GNUTLS_E_UNIMPLEMENTED_FEATURE;
}

static int control_came(TlsKernel *kernel, uint8_t type)
{
    if (++kernel->without_data > WITHOUT_DATA_MAX) {
        return GNUTLS_E_TOO_MANY_HANDSHAKE_PACKETS;
    }
    int r = type == RECORD_ALERT       ? alert_came(kernel)
            : type == RECORD_HANDSHAKE ? handshake_came(kernel)
                                       : GNUTLS_E_UNEXPECTED_PACKET;
    kernel->control_length = 0;
    return r;
}

int tls_kernel_control(TlsKernel *kernel, uint8_t type, const struct iovec *iov, size_t length,
                       bool whole)
{
    if (length > sizeof kernel->control - kernel->control_length) {
        return type == RECORD_HANDSHAKE && kernel->traffic[TLS_WAY_IN].size == 0
                   ? GNUTLS_E_REHANDSHAKE
                   : GNUTLS_E_UNEXPECTED_PACKET_LENGTH;
    }
    for (; length > 0; iov++) {
        size_t part = min_u64(length, iov->iov_len);
        memcpy(kernel->control + kernel->control_length, iov->iov_base, part);
        kernel->control_length += part;
        length -= part;
    }
    return whole ? control_came(kernel, type) : GNUTLS_E_AGAIN;
}

static int code_of_errno(void)
{
    switch (errno) {
    case EAGAIN:
    case EINTR:
        return GNUTLS_E_AGAIN;
    case EBADMSG:
        return GNUTLS_E_DECRYPTION_FAILED;
    case EMSGSIZE:
        return GNUTLS_E_RECORD_OVERFLOW;
    case EINVAL:
        return GNUTLS_E_UNEXPECTED_PACKET;
    default:
        return GNUTLS_E_PULL_ERROR;
    }
}

/* One receive; *type is of what it brought. Bytes, 0: the end of the socket; or a code. */
static ssize_t receive(const TlsKernel *kernel, struct msghdr *message, uint8_t *type)
{
    union {
        struct cmsghdr head;
        uint8_t room[CMSG_SPACE(sizeof *type)];
    } control = {0};
    message->msg_control = &control;
    message->msg_controllen = sizeof control.room;
    ssize_t got = recvmsg(kernel->fd, message, MSG_DONTWAIT);
    const struct cmsghdr *head = got >= 0 ? CMSG_FIRSTHDR(message) : NULL;
    bool typed =
        head != NULL && head->cmsg_level == SOL_TLS && head->cmsg_type == TLS_GET_RECORD_TYPE;
    *type = typed ? *CMSG_DATA(head) : RECORD_DATA_TYPE;
    return got < 0 ? code_of_errno() : got;
}

ssize_t tls_kernel_receive(TlsKernel *kernel, const struct iovec *iov, unsigned count)
{
    int code;
    do {
        uint8_t type;
        struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = count};
        ssize_t got = receive(kernel, &message, &type);
        if (got < 0) {
            return got;
        }
        if (type == RECORD_DATA_TYPE) {
            kernel->without_data = got > 0 ? 0 : kernel->without_data;
            return got > 0 ? got : GNUTLS_E_PREMATURE_TERMINATION;
        }
        code = tls_kernel_control(kernel, type, iov, got, (message.msg_flags & MSG_EOR) != 0);
    } while (code == GNUTLS_E_AGAIN);
    return code;
}
