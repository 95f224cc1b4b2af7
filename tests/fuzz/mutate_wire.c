/*
 * How the fuzzer changes what a client sends: message by message.
 *
 *      piece | client flags | option | option ... GO | request | request + payload ...
 *
 * A change of single bytes rarely leaves a stream that gets as far as transmission. So half of the
 * changes keep messages whole: one is doubled, taken out, moved, has a field set to a number at the
 * border of something, or a fresh one is put in. The other half are libFuzzer's own.
 */
#include <glib.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"
#include "nbd/nbd-wire.h"

#define PREFIX       5 /* the piece's size, the client flags */
#define MESSAGES_MAX 128
#define FRESH_MAX    1200
#define DISK_SIZE    (96u << 10) /* of fuzz_wire.c */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

typedef struct Stream {
    uint8_t *data;
    size_t size, max_size;
    size_t starts[MESSAGES_MAX + 1]; /* of the messages; the last is the end */
    unsigned count;
    bool extended; /* the option was seen */
} Stream;

static uint64_t state;

static uint64_t chance(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static uint64_t border(void)
{
    static const uint64_t numbers[] = {
        0,
        1,
        7,
        8,
        12,
        511,
        512,
        4096,
        DISK_SIZE - 1,
        DISK_SIZE,
        DISK_SIZE + 1,
        0xffff,
        64u << 20,
        (64u << 20) + 1,
        0x7fffffff,
        0x80000000,
        0xffffffff,
        1ull << 32,
        1ull << 63,
        UINT64_MAX - 511,
        UINT64_MAX,
    };
    return numbers[chance(G_N_ELEMENTS(numbers))];
}

/* The length of the message at at; to the end where it is none. */
static size_t message_length(Stream *stream, size_t at)
{
    const uint8_t *in = stream->data + at;
    size_t left = stream->size - at;
    uint64_t length = left;
    NbdRequestHeader request;
    if (left >= NBD_OPTION_SIZE && load_be64(in) == NBD_OPTION_MAGIC) {
        length = NBD_OPTION_SIZE + (uint64_t)load_be32(in + 12);
        stream->extended |= load_be32(in + 8) == NBD_OPT_EXTENDED_HEADERS;
    } else if (left >= NBD_EXTENDED_REQUEST_SIZE && nbd_unpack_extended_request(in, &request)) {
        length = min_u64(request.payload, left) + NBD_EXTENDED_REQUEST_SIZE;
    } else if (left >= NBD_REQUEST_SIZE && nbd_unpack_request(in, &request)) {
        length = min_u64(request.payload, left) + NBD_REQUEST_SIZE;
    }
    return min_u64(length, left);
}

static void split(Stream *stream)
{
    size_t at = PREFIX;
    while (at < stream->size && stream->count < MESSAGES_MAX) {
        stream->starts[stream->count++] = at;
        at += message_length(stream, at);
    }
    stream->starts[stream->count] = at;
}

static void insert(Stream *stream, size_t at, const uint8_t *bytes, size_t length)
{
    if (length > stream->max_size - stream->size) {
        return;
    }
    memmove(stream->data + at + length, stream->data + at, stream->size - at);
    memcpy(stream->data + at, bytes, length);
    stream->size += length;
}

static void take_out(Stream *stream, size_t at, size_t length)
{
    memmove(stream->data + at, stream->data + at + length, stream->size - at - length);
    stream->size -= length;
}

static size_t put_string(uint8_t *out, const char *text)
{
    store_be32(out, strlen(text));
    memcpy(out + 4, text, strlen(text));
    return 4 + strlen(text);
}

static size_t fresh_option(uint8_t *out)
{
    static const char *const names[] = {"", "disk", "read-only", "none"};
    static const char *const queries[] = {"base:", "base:allocation", "qemu:allocation-depth",
                                          "x:", "x:own"};
    uint32_t option = 1 + chance(NBD_OPT_EXTENDED_HEADERS + 1);
    size_t length = 0;
    uint8_t *data = out + NBD_OPTION_SIZE;
    if (option == NBD_OPT_INFO || option == NBD_OPT_GO) {
        length = put_string(data, names[chance(G_N_ELEMENTS(names))]);
        store_be16(data + length, 1);
        store_be16(data + length + 2, chance(5));
        length += 4;
    } else if (option == NBD_OPT_LIST_META_CONTEXT || option == NBD_OPT_SET_META_CONTEXT) {
        length = put_string(data, names[chance(G_N_ELEMENTS(names))]);
        unsigned count = chance(4);
        store_be32(data + length, count);
        length += 4;
        while (count-- > 0) {
            length += put_string(data + length, queries[chance(G_N_ELEMENTS(queries))]);
        }
    }
    store_be64(out, NBD_OPTION_MAGIC);
    store_be32(out + 8, option);
    store_be32(out + 12, length);
    return NBD_OPTION_SIZE + length;
}

static size_t fresh_request(uint8_t *out, bool extended)
{
    NbdRequestHeader request = {.flags = chance(4) == 0 ? 1u << chance(7) : 0,
                                .command = chance(10),
                                .cookie = chance(UINT64_MAX),
                                .offset = chance(4) == 0 ? border() : chance(DISK_SIZE),
                                .length = chance(4) == 0 ? border() : chance(1024)};
    bool named = extended && request.command == NBD_CMD_BLOCK_STATUS && chance(2) == 0;
    bool payload = request.command == NBD_CMD_WRITE || named;
    if (payload) {
        request.length = named ? NBD_STATUS_PAYLOAD_SIZE + 4 * chance(3) : chance(1024);
        request.flags |= extended && (named || chance(4) > 0) ? NBD_CMD_FLAG_PAYLOAD_LEN : 0;
    }
    size_t size = nbd_pack_request(out, &request, extended);
    if (!payload) {
        return size;
    }
    memset(out + size, 'w', request.length);
    if (named) {
        store_be64(out + size, chance(3) == 0 ? border() : chance(DISK_SIZE));
        for (size_t at = NBD_STATUS_PAYLOAD_SIZE; at < request.length; at += 4) {
            store_be32(out + size + at, chance(4));
        }
    }
    return size + request.length;
}

/* Sets a number in the head of a message: where it lies depends on the kind. */
static void set_field(Stream *stream, size_t at, size_t length)
{
    static const struct {
        uint8_t at, size;
    } fields[] = {{4, 2}, {6, 2}, {8, 4}, {12, 4}, {16, 8}, {24, 4}, {24, 8}};
    unsigned i = chance(G_N_ELEMENTS(fields));
    uint8_t number[8];
    store_be64(number, chance(2) == 0 ? border() : chance(16));
    if (fields[i].at + fields[i].size <= length) {
        memcpy(stream->data + at + fields[i].at, number + 8 - fields[i].size, fields[i].size);
    }
}

static void change(Stream *stream)
{
    unsigned i = chance(stream->count), j = chance(stream->count + 1);
    size_t at = stream->starts[i], length = stream->starts[i + 1] - at, to = stream->starts[j];
    uint8_t fresh[FRESH_MAX];
    g_autofree uint8_t *copy = g_memdup2(stream->data + at, length);
    switch (chance(5)) {
    case 0:
        insert(stream, to, copy, length);
        break;
    case 1:
        take_out(stream, at, length);
        break;
    case 2:
        take_out(stream, at, length);
        insert(stream, to > at ? MAX(to - length, at) : to, copy, length);
        break;
    case 3:
        set_field(stream, at, length);
        break;
    default:
        insert(stream, to, fresh,
               load_be64(stream->data + at) == NBD_OPTION_MAGIC && chance(4) != 0
                   ? fresh_option(fresh)
                   : fresh_request(fresh, stream->extended));
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    Stream stream = {.data = data, .size = size, .max_size = max_size};
    state = seed * 0x9e3779b97f4a7c15ull + 1;
    if (size <= PREFIX || chance(2) == 0) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    split(&stream);
    if (stream.starts[stream.count - 1] + 8 > stream.size) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    change(&stream);
    return stream.size;
}
