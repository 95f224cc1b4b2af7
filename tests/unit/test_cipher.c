/*
 * base/cipher.c against published vectors: those of IEEE 1619 for XTS whose data unit is a sector, and
 * those of NIST SP 800-38A for CBC. Of 512 bytes the tests keep the SHA-256 and both ends. What has no
 * published vector of a whole sector (essiv, sectors of 4096 bytes) was computed with OpenSSL.
 */
#include "base/cipher.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "tests/unit/suite.h"

#define SECTOR      512u
#define LARGE       4096u
#define BLOCK       16u

#define XTS_KEY_128 "2718281828459045235360287471352631415926535897932384626433832795"
#define XTS_KEY_256                                                    \
    "2718281828459045235360287471352662497757247093699959574966967627" \
    "3141592653589793238462643383279502884197169399375105820974944592"
#define CBC_KEY_128 "2b7e151628aed2a6abf7158809cf4f3c"
#define CBC_KEY_256 "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"

static size_t from_hex(const char *hex, uint8_t *bytes)
{
    size_t length = strlen(hex) / 2;
    for (size_t i = 0; i < length; i++) {
        bytes[i] = g_ascii_xdigit_value(hex[2 * i]) << 4 | g_ascii_xdigit_value(hex[2 * i + 1]);
    }
    return length;
}

static Cipher *cipher_of(const char *mode, uint32_t sector, uint64_t iv_offset, const char *hex)
{
    uint8_t key[CIPHER_KEY_MAX];
    size_t length = from_hex(hex, key);
    CipherKind kind = {"aes", mode, sector, iv_offset};
    g_autoptr(GError) error = NULL;
    Cipher *cipher = cipher_new(&kind, key, length, "disk", &error);
    ck_assert_msg(cipher != NULL, "%s", cipher ? "" : error->message);
    return cipher;
}

/* What the vectors of IEEE 1619 encrypt: 00 01 .. ff, again and again. */
static void fill(uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        bytes[i] = (uint8_t)i;
    }
}

static void expect_bytes(const uint8_t *bytes, const char *hex)
{
    uint8_t expected[BLOCK];
    ck_assert_uint_eq(from_hex(hex, expected), BLOCK);
    ck_assert_mem_eq(bytes, expected, BLOCK);
}

static void expect_digest(const uint8_t *bytes, size_t length, const char *hex)
{
    g_autofree char *digest = g_compute_checksum_for_data(G_CHECKSUM_SHA256, bytes, length);
    ck_assert_str_eq(digest, hex);
}

/* Encrypts what fill() makes as the sector of that number, and takes it back, in place. */
static void expect_sector(Cipher *cipher, uint64_t number, size_t length, const char *digest)
{
    uint8_t plain[LARGE], stored[LARGE];
    fill(plain, length);
    ck_assert_int_eq(cipher_encrypt(cipher, number * CIPHER_IV_SECTOR, plain, stored, length), 0);
    expect_digest(stored, length, digest);
    ck_assert_int_eq(cipher_decrypt(cipher, number * CIPHER_IV_SECTOR, stored, stored, length), 0);
    ck_assert_mem_eq(stored, plain, length);
}

/* Vectors 4 to 9: each encrypts what the one before gave. */
START_TEST(xts_with_128_bits_is_that_of_ieee_1619)
{
    static const struct {
        uint64_t number;
        const char *first, *last;
    } vectors[] = {
        {0x00, "27a7479befa1d476489f308cd4cfa6e2", "0a282df920147beabe421ee5319d0568"},
        {0x01, "264d3ca8512194fec312c8c9891f279f", "fd2a89ccb45e001a03a867b187f225dd"},
        {0x02, "fa762a3680b76007928ed4a4f49a9456", "4bcf518138dc3a25c5e236171a2d01d6"},
        {0xfd, "476dbd88f79c207ecdd2ce17ef243199", "e25fbb81f7bd895c969e6e6249a721e9"},
        {0xfe, "11d0926fc8ff047c84ad7be815ba9bb8", "f2e5163bb69391230d17476bc74b2970"},
        {0xff, "b6c9a1cc64efa120b721a2121dc960b4", "a0f084ae8b55526932ece4674b9000c1"},
    };
    g_autoptr(Cipher) cipher = cipher_of("xts-plain64", SECTOR, 0, XTS_KEY_128);
    uint8_t bytes[SECTOR];
    fill(bytes, sizeof bytes);
    for (unsigned i = 0; i < G_N_ELEMENTS(vectors); i++) {
        uint64_t offset = vectors[i].number * CIPHER_IV_SECTOR;
        ck_assert_int_eq(cipher_encrypt(cipher, offset, bytes, bytes, sizeof bytes), 0);
        expect_bytes(bytes, vectors[i].first);
        expect_bytes(bytes + sizeof bytes - BLOCK, vectors[i].last);
    }
    expect_digest(bytes, sizeof bytes,
                  "d25d1140fc170d59b617d5696dd89bf88ef443448c0babc800d32bfb72a12e9e");
}
END_TEST

/* Vectors 10 to 14; the last one has a number that does not fit into 32 bits. */
START_TEST(xts_with_256_bits_is_that_of_ieee_1619)
{
    static const struct {
        uint64_t number;
        const char *digest;
    } vectors[] = {
        {0xff, "e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364"},
        {0xffff, "def4fad29e95dfe1a24b1ad4620f86d7be094cced5b19e0b121aa82d9e6baf98"},
        {0xffffff, "8bf44861a081dd660d91ce615b5cdfb4d5df9d72c3025c12e67cc0ae097fa5d5"},
        {0xffffffff, "c706140a11affda7402234f5e6331eacbfeb687d8e80d83962691823bb3636f0"},
        {0xffffffffff, "afba71abc4e95b186d89a63a5437c1bafcfd1a18ca273970c534aba4f8d05282"},
    };
    g_autoptr(Cipher) cipher = cipher_of("xts-plain64", SECTOR, 0, XTS_KEY_256);
    for (unsigned i = 0; i < G_N_ELEMENTS(vectors); i++) {
        expect_sector(cipher, vectors[i].number, SECTOR, vectors[i].digest);
    }
}
END_TEST

/* plain counts in 32 bits: after 2 TiB it begins anew, and that is what such images hold. */
START_TEST(plain_begins_anew_where_plain64_goes_on)
{
    const uint64_t beyond = UINT64_C(1) << 32;
    g_autoptr(Cipher) plain = cipher_of("xts-plain", SECTOR, 0, XTS_KEY_256);
    expect_sector(plain, beyond + 0xff, SECTOR,
                  "e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364");
    g_autoptr(Cipher) shifted = cipher_of("xts-plain", SECTOR, beyond - 1, XTS_KEY_256);
    expect_sector(shifted, 0x100, SECTOR,
                  "e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364");
}
END_TEST

START_TEST(the_number_of_the_first_sector_is_added)
{
    g_autoptr(Cipher) cipher =
        cipher_of("xts-plain64", SECTOR, UINT64_C(0xffffffffff) - 7, XTS_KEY_256);
    expect_sector(cipher, 7, SECTOR,
                  "afba71abc4e95b186d89a63a5437c1bafcfd1a18ca273970c534aba4f8d05282");
}
END_TEST

/*
 * CBC: a vector for one IV is one for any other, since the IV is XORed to the first block and to
 * nothing else; what is behind a vector's four blocks changes nothing before.
 */
static void expect_nist(const char *key, uint64_t number, const char *first, const char *last)
{
    g_autoptr(Cipher) cipher = cipher_of("cbc-plain64", SECTOR, 0, key);
    uint8_t bytes[SECTOR] = {0}, iv[BLOCK] = {0};
    from_hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
             "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
             bytes);
    store_le64(iv, number);
    for (unsigned i = 0; i < BLOCK; i++) {
        bytes[i] ^= iv[i] ^ i; /* the vector's IV is 00 01 .. 0f */
    }
    ck_assert_int_eq(cipher_encrypt(cipher, number * CIPHER_IV_SECTOR, bytes, bytes, SECTOR), 0);
    expect_bytes(bytes, first);
    expect_bytes(bytes + 3 * BLOCK, last);
}

START_TEST(cbc_is_that_of_nist)
{
    static const uint64_t numbers[] = {0, 1, UINT32_MAX, UINT64_C(1) << 32,
                                       (UINT64_C(1) << 54) - 1};
    for (unsigned i = 0; i < G_N_ELEMENTS(numbers); i++) {
        expect_nist(CBC_KEY_128, numbers[i], "7649abac8119b246cee98e9b12e9197d",
                    "3ff1caa1681fac09120eca307586e1a7");
        expect_nist(CBC_KEY_256, numbers[i], "f58c4c04d6e5f1ba779eabfb5f7bfbd6",
                    "b2eb05e2c39be9fcda6c19078c6a9d1b");
    }
}
END_TEST

START_TEST(cbc_counts_in_64_bits)
{
    g_autoptr(Cipher) plain64 = cipher_of("cbc-plain64", SECTOR, 0, CBC_KEY_128);
    expect_sector(plain64, 0, SECTOR,
                  "64545bc314c1235bf053bdba947cc97e8753c7dc29e379c61f2733b97fc16739");
    expect_sector(plain64, UINT64_C(1) << 32, SECTOR,
                  "af394d2d82fe31c366c8213123325cf2722ad8ad1a39b41823eccadafd76f9cb");
    expect_sector(plain64, (UINT64_C(1) << 40) + 7, SECTOR,
                  "ef70126f1d930acb7cd52291453557ff23fe0cf72949225a47e55368401a02c0");
}
END_TEST

/* The number, encrypted with AES-256 under the SHA-256 of the key, is the IV. */
START_TEST(essiv_hides_the_number)
{
    g_autoptr(Cipher) essiv = cipher_of("cbc-essiv:sha256", SECTOR, 0, CBC_KEY_128);
    expect_sector(essiv, 0, SECTOR,
                  "282f7a3bb586001f7162aa498c3ec3d3483db4e6168d5e10b1007123fb3eccf3");
    expect_sector(essiv, 1, SECTOR,
                  "6684ae6b776a21f278bfc3a9149b447a52c07135bcc10e490c766567718092fe");
    expect_sector(essiv, UINT64_C(1) << 32, SECTOR,
                  "3168b0aaaa0fe447dc22cc7e5faa2fad075b4e9455dc957bc21cb507eb3ab02b");
    expect_sector(essiv, (UINT64_C(1) << 40) + 7, SECTOR,
                  "7ddc778d03a736c981640614c9d65c7f0be84c0b54cfbae463c09d29619b856f");
}
END_TEST

/* dm-crypt without iv_large_sectors, as LUKS 2 has it: one IV a sector, which counts 512 bytes. */
START_TEST(large_sectors_are_counted_by_512_bytes)
{
    g_autoptr(Cipher) cipher = cipher_of("xts-plain64", LARGE, 0, XTS_KEY_256);
    expect_sector(cipher, 0, LARGE,
                  "75ed487aa0520c5d5f42d2f3f83290b29f874cedba0360d3b5325e9e78bc444e");
    expect_sector(cipher, LARGE / CIPHER_IV_SECTOR, LARGE,
                  "06bf66621fd81ca059ec8331e309a3e2065326a1af7d2bce2c9221b2ce654213");
    expect_sector(cipher, UINT64_C(1) << 32, LARGE,
                  "0a3d946f89ea59898f4ef367f7abbfd3eb3fca1e577906150a6b2313524fbc37");
}
END_TEST

START_TEST(many_sectors_are_each_by_itself)
{
    static const uint32_t sizes[] = {512, 1024, 2048, 4096};
    for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
        g_autoptr(Cipher) cipher = cipher_of("xts-plain64", sizes[i], 5, XTS_KEY_128);
        uint8_t plain[4 * LARGE], together[4 * LARGE], alone[LARGE];
        uint64_t start = UINT64_C(3) * LARGE;
        fill(plain, sizeof plain);
        ck_assert_uint_eq(cipher_sector(cipher), sizes[i]);
        ck_assert_int_eq(cipher_encrypt(cipher, start, plain, together, sizeof plain), 0);
        for (size_t at = 0; at < sizeof plain; at += sizes[i]) {
            ck_assert_int_eq(cipher_encrypt(cipher, start + at, plain + at, alone, sizes[i]), 0);
            ck_assert_mem_eq(alone, together + at, sizes[i]);
        }
    }
}
END_TEST

typedef struct Worker {
    Cipher *cipher;
    pthread_t thread;
    bool good;
} Worker;

static void *encrypt_and_back(void *opaque)
{
    Worker *worker = opaque;
    uint8_t plain[8 * SECTOR], bytes[8 * SECTOR];
    fill(plain, sizeof plain);
    worker->good = true;
    for (uint64_t round = 0; round < 200 && worker->good; round++) {
        uint64_t offset = round * sizeof plain;
        worker->good = cipher_encrypt(worker->cipher, offset, plain, bytes, sizeof plain) == 0 &&
                       cipher_decrypt(worker->cipher, offset, bytes, bytes, sizeof plain) == 0 &&
                       memcmp(plain, bytes, sizeof plain) == 0;
    }
    return NULL;
}

START_TEST(threads_share_a_cipher)
{
    g_autoptr(Cipher) cipher = cipher_of("cbc-essiv:sha256", SECTOR, 0, CBC_KEY_128);
    Worker workers[4];
    for (unsigned i = 0; i < G_N_ELEMENTS(workers); i++) {
        workers[i] = (Worker){.cipher = cipher};
        ck_assert_int_eq(pthread_create(&workers[i].thread, NULL, encrypt_and_back, &workers[i]),
                         0);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(workers); i++) {
        pthread_join(workers[i].thread, NULL);
        ck_assert(workers[i].good);
    }
}
END_TEST

START_TEST(what_is_not_known_is_refused_with_what_is)
{
    static const struct {
        CipherKind kind;
        size_t key;
        const char *words;
    } bad[] = {
        {{"rot13", "xts-plain64", SECTOR, 0}, 64, "must be aes, serpent or twofish"},
        {{"aes", "xts", SECTOR, 0}, 64, "with xts or cbc"},
        {{"aes", "", SECTOR, 0}, 64, "with xts or cbc"},
        {{"aes", "ctr-plain64", SECTOR, 0}, 32, "with xts or cbc"},
        {{"aes", "xts-random", SECTOR, 0}, 64, "plain, plain64 or essiv"},
        {{"aes", "cbc-essiv:crc7", SECTOR, 0}, 32, "plain, plain64 or essiv"},
        {{"aes", "cbc-essiv:sha512", SECTOR, 0}, 32, "plain, plain64 or essiv"},
        {{"aes", "xts-plain64", SECTOR, 0}, 63, "a key of 504 bits"},
        {{"aes", "xts-plain64", SECTOR, 0}, 0, "a key of 0 bits"},
        {{"aes", "xts-plain64", SECTOR, 0}, CIPHER_KEY_MAX + 1, "a key of 1032 bits"},
        {{"aes", "xts-plain64", 0, 0}, 64, "sector_size is 0"},
        {{"aes", "xts-plain64", 256, 0}, 64, "sector_size is 256"},
        {{"aes", "xts-plain64", 1536, 0}, 64, "sector_size is 1536"},
        {{"aes", "xts-plain64", 8192, 0}, 64, "sector_size is 8192"},
    };
    uint8_t key[CIPHER_KEY_MAX + 1] = {1, 2, 3};
    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;
        ck_assert_ptr_null(cipher_new(&bad[i].kind, key, bad[i].key, "disk", &error));
        ck_assert_int_eq(error->code, ENOTSUP);
        ck_assert_msg(strstr(error->message, bad[i].words), "%s", error->message);
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("cipher");
    tcase_add_test(tcase, xts_with_128_bits_is_that_of_ieee_1619);
    tcase_add_test(tcase, xts_with_256_bits_is_that_of_ieee_1619);
    tcase_add_test(tcase, plain_begins_anew_where_plain64_goes_on);
    tcase_add_test(tcase, the_number_of_the_first_sector_is_added);
    tcase_add_test(tcase, cbc_is_that_of_nist);
    tcase_add_test(tcase, cbc_counts_in_64_bits);
    tcase_add_test(tcase, essiv_hides_the_number);
    tcase_add_test(tcase, large_sectors_are_counted_by_512_bytes);
    tcase_add_test(tcase, many_sectors_are_each_by_itself);
    tcase_add_test(tcase, threads_share_a_cipher);
    tcase_add_test(tcase, what_is_not_known_is_refused_with_what_is);
    return suite_run("cipher", tcase);
}
