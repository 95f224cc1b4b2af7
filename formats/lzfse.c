/*
 * LZFSE: the blocks, and those under finite state entropy.
 *
 *     bvx-  length, bytes              bvxn  length, length of the payload, LZVN
 *     bvx1  head, literals, rows       bvx2  the same with a packed head         bvx$  the end
 *
 * A row is three numbers: literals to take, length of a match, its distance (0: as before). Four automata, for literals
 * and each of the three, have states that stand for a symbol each: it, a few extra bits and the next state come from bits that are
 * pulled from the end of a stretch of bytes towards its beginning. Literals have one table and four states that take turns.
 *
 * What must stay true: the states of a table are fewer than its size, whatever frequencies a head has; every block and
 * every row makes at least one byte, so hostile ones cannot cost more time than the output is long.
 */
#include "formats/lzfse.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"

#define MAGIC_END     0x24787662u
#define MAGIC_PLAIN   0x2d787662u
#define MAGIC_NUMBERS 0x31787662u
#define MAGIC_PACKED  0x32787662u
#define MAGIC_LZVN    0x6e787662u

#define NUMBERS_SIZE  50u /* of a bvx1 head, before the frequencies */
#define PACKED_SIZE   32u

enum { LENGTH_OF_LITERALS, LENGTH, DISTANCE, LITERAL, KINDS };

#define SYMBOLS    (20 + 20 + 64 + 256)
#define STATES_MAX 1024

static const struct {
    uint16_t symbols, states;
} KIND[KINDS] = {{20, 64}, {20, 64}, {64, 256}, {256, STATES_MAX}};

typedef struct Head {
    size_t size;
    uint32_t literals, rows; /* numbers of them */
    uint32_t literal_bytes, row_bytes;
    unsigned literal_unused, row_unused; /* bits of the last byte */
    uint16_t literal_state[4], state[LITERAL];
    uint16_t frequencies[SYMBOLS];
} Head;

typedef struct State {
    uint8_t bits, extra; /* to pull for the next state, and for the value */
    uint16_t next;       /* the first of those that follow */
    uint32_t base;       /* the smallest value */
} State;

typedef struct Tables {
    State of[KINDS][STATES_MAX];
} Tables;

/* ---- what is made --------------------------------------------------------------------------- */

bool lzfse_put(LzfseOut *out, const uint8_t *bytes, size_t length)
{
    if (length > out->limit - out->made) {
        return false;
    }
    memcpy(out->bytes + out->made, bytes, length);
    out->made += length;
    return true;
}

bool lzfse_repeat(LzfseOut *out, size_t length, size_t distance)
{
    if (length == 0) {
        return true;
    }
    if (distance == 0 || distance > out->made || length > out->limit - out->made) {
        return false;
    }
    for (uint8_t *to = out->bytes + out->made, *end = to + length; to < end; to++) {
        *to = to[-(ptrdiff_t)distance];
    }
    out->made += length;
    return true;
}

/* ---- bits ----------------------------------------------------------------------------------- */

typedef struct Bits {
    const uint8_t *bytes;
    size_t length, left; /* bytes; bits before the place */
    bool failed;
} Bits;

static Bits bits_at_end(const uint8_t *bytes, size_t length, unsigned unused)
{
    bool fits = length * 8 >= unused;
    return (Bits){bytes, length, fits ? length * 8 - unused : 0, !fits};
}

/* The n bits at a place, n <= 25; those behind the end are 0. */
static uint32_t bits_at(const uint8_t *bytes, size_t length, size_t place, unsigned n)
{
    size_t at = place / 8;
    uint32_t word = 0;
    if (length - at >= 4) {
        word = load_le32(bytes + at);
    } else {
        for (size_t i = 0; i < length - at; i++) {
            word |= (uint32_t)bytes[at + i] << 8 * i;
        }
    }
    return word >> place % 8 & ((1u << n) - 1);
}

static uint32_t pull(Bits *bits, unsigned n)
{
    if (n == 0) {
        return 0;
    }
    if (n > bits->left) {
        bits->failed = true;
        return 0;
    }
    bits->left -= n;
    return bits_at(bits->bytes, bits->length, bits->left, n);
}

/* ---- tables --------------------------------------------------------------------------------- */

static unsigned extra_bits(unsigned kind, unsigned symbol)
{
    static const uint8_t of_literals[] = {2, 3, 5, 8}, of_matches[] = {3, 5, 8, 11};
    switch (kind) {
    case LENGTH_OF_LITERALS:
        return symbol < 16 ? 0 : of_literals[symbol - 16];
    case LENGTH:
        return symbol < 16 ? 0 : of_matches[symbol - 16];
    case DISTANCE:
        return symbol / 4;
    default:
        return 0;
    }
}

static unsigned bits_of(unsigned v)
{
    return 32 - __builtin_clz(v);
}

/* The states of one symbol, `frequency` of `all`; the first ones have one bit more to the next than the others. */
static void fill_symbol(State *states, unsigned frequency, unsigned all, unsigned extra,
                        uint32_t base)
{
    unsigned k = bits_of(all) - bits_of(frequency);
    unsigned longer = (2 * all >> k) - frequency;
    for (unsigned j = 0; j < frequency; j++) {
        bool is_long = j < longer;
        states[j] =
            (State){.bits = is_long ? k : k - 1,
                    .extra = extra,
                    .next = is_long ? ((frequency + j) << k) - all : (j - longer) << (k - 1),
                    .base = base};
    }
}

/* States that no symbol has lead to the first. */
static bool fill_table(State *states, unsigned kind, const uint16_t *frequencies)
{
    unsigned used = 0, all = KIND[kind].states;
    uint32_t base = 0;
    for (unsigned symbol = 0; symbol < KIND[kind].symbols; symbol++) {
        unsigned extra = extra_bits(kind, symbol), frequency = frequencies[symbol];
        if (frequency > all - used) {
            return false;
        }
        if (frequency > 0) {
            fill_symbol(states + used, frequency, all, extra, base);
        }
        used += frequency;
        base += 1u << extra;
    }
    memset(states + used, 0, (all - used) * sizeof *states);
    return true;
}

static bool fill_tables(Tables *tables, const Head *head)
{
    const uint16_t *frequencies = head->frequencies;
    for (unsigned kind = 0; kind < KINDS; kind++) {
        if (!fill_table(tables->of[kind], kind, frequencies)) {
            return false;
        }
        frequencies += KIND[kind].symbols;
    }
    return true;
}

/* ---- heads ---------------------------------------------------------------------------------- */

static bool parse_numbers(const uint8_t *at, size_t left, Head *head)
{
    head->size = NUMBERS_SIZE + 2 * SYMBOLS;
    if (left < head->size) {
        return false;
    }
    head->literals = load_le32(at + 12);
    head->rows = load_le32(at + 16);
    head->literal_bytes = load_le32(at + 20);
    head->row_bytes = load_le32(at + 24);
    head->literal_unused = -load_le32(at + 28);
    for (unsigned i = 0; i < 4; i++) {
        head->literal_state[i] = load_le16(at + 32 + 2 * i);
    }
    head->row_unused = -load_le32(at + 40);
    for (unsigned i = 0; i < LITERAL; i++) {
        head->state[i] = load_le16(at + 44 + 2 * i);
    }
    for (unsigned i = 0; i < SYMBOLS; i++) {
        head->frequencies[i] = load_le16(at + NUMBERS_SIZE + 2 * i);
    }
    return true;
}

/* Frequencies of 2 to 14 bits, from the lowest bit on: how a code begins, how long it is, the smallest frequency that it
 * says; the bits behind its beginning add to that. */
static const struct {
    uint8_t begin_bits, begin, bits, first;
} CODES[] = {{2, 0, 2, 0}, {2, 2, 2, 1}, {2, 1, 3, 2}, {3, 3, 5, 4}, {4, 7, 8, 8}, {4, 15, 14, 24}};

static bool unpack_frequencies(const uint8_t *bytes, size_t length, uint16_t *frequencies)
{
    size_t place = 0;
    for (unsigned i = 0; i < SYMBOLS; i++) {
        uint32_t code = place < length * 8 ? bits_at(bytes, length, place, 14) : 0;
        unsigned n = 0;
        while ((code & ((1u << CODES[n].begin_bits) - 1)) != CODES[n].begin) {
            n++; /* one of them is always right */
        }
        uint32_t rest = code & ((1u << CODES[n].bits) - 1);
        frequencies[i] = CODES[n].first + (rest >> CODES[n].begin_bits);
        place += CODES[n].bits;
    }
    return place <= length * 8;
}

static uint32_t field(uint64_t word, unsigned at, unsigned bits)
{
    return word >> at & ((UINT64_C(1) << bits) - 1);
}

static bool parse_packed(const uint8_t *at, size_t left, Head *head)
{
    if (left < PACKED_SIZE) {
        return false;
    }
    uint64_t first = load_le64(at + 8), second = load_le64(at + 16), third = load_le64(at + 24);
    head->literals = field(first, 0, 20);
    head->literal_bytes = field(first, 20, 20);
    head->rows = field(first, 40, 20);
    head->literal_unused = 7 - field(first, 60, 3);
    for (unsigned i = 0; i < 4; i++) {
        head->literal_state[i] = field(second, 10 * i, 10);
    }
    head->row_bytes = field(second, 40, 20);
    head->row_unused = 7 - field(second, 60, 3);
    head->size = field(third, 0, 32);
    for (unsigned i = 0; i < LITERAL; i++) {
        head->state[i] = field(third, 32 + 10 * i, 10);
    }
    return head->size >= PACKED_SIZE && head->size <= left &&
           unpack_frequencies(at + PACKED_SIZE, head->size - PACKED_SIZE, head->frequencies);
}

static bool head_is_sound(const Head *head, size_t left)
{
    for (unsigned i = 0; i < LITERAL; i++) {
        if (head->state[i] >= KIND[i].states) {
            return false;
        }
    }
    for (unsigned i = 0; i < 4; i++) {
        if (head->literal_state[i] >= KIND[LITERAL].states) {
            return false;
        }
    }
    return head->literal_unused < 8 && head->row_unused < 8 &&
           (uint64_t)head->literal_bytes + head->row_bytes <= left - head->size;
}

/* ---- blocks --------------------------------------------------------------------------------- */

static uint32_t decode(const State *states, uint16_t *state, Bits *bits)
{
    const State *now = &states[*state];
    uint32_t pulled = pull(bits, now->bits + now->extra);
    *state = now->next + (pulled >> now->extra);
    return now->base + (pulled & ((1u << now->extra) - 1));
}

/* Puts n literals, of which `taken` were there before. */
static bool put_literals(Head *head, const Tables *tables, Bits *bits, uint32_t taken, uint32_t n,
                         LzfseOut *out)
{
    if (n > head->literals - taken || n > out->limit - out->made) {
        return false;
    }
    for (uint32_t i = taken; i < taken + n; i++) {
        out->bytes[out->made++] = decode(tables->of[LITERAL], &head->literal_state[i % 4], bits);
    }
    return true;
}

static bool unpack_rows(Head *head, const Tables *tables, const uint8_t *payload, LzfseOut *out)
{
    Bits literals = bits_at_end(payload, head->literal_bytes, head->literal_unused);
    Bits rows = bits_at_end(payload + head->literal_bytes, head->row_bytes, head->row_unused);
    uint32_t taken = 0, distance = 0;
    for (uint32_t row = 0; row < head->rows; row++) {
        uint32_t value[LITERAL];
        for (unsigned kind = 0; kind < LITERAL; kind++) {
            value[kind] = decode(tables->of[kind], &head->state[kind], &rows);
        }
        distance = value[DISTANCE] > 0 ? value[DISTANCE] : distance;
        if (value[LENGTH_OF_LITERALS] + value[LENGTH] == 0 || rows.failed ||
            !put_literals(head, tables, &literals, taken, value[LENGTH_OF_LITERALS], out) ||
            literals.failed || !lzfse_repeat(out, value[LENGTH], distance)) {
            return false;
        }
        taken += value[LENGTH_OF_LITERALS];
    }
    return true;
}

/* The functions of blocks return how many bytes of the stream they have used, 0 for an error. */
static size_t unpack_entropy(const uint8_t *at, size_t left, bool packed, LzfseOut *out)
{
    Head head;
    Tables tables;
    if (!(packed ? parse_packed : parse_numbers)(at, left, &head) || !head_is_sound(&head, left) ||
        !fill_tables(&tables, &head) || !unpack_rows(&head, &tables, at + head.size, out)) {
        return 0;
    }
    return head.size + head.literal_bytes + head.row_bytes;
}

static size_t unpack_plain(const uint8_t *at, size_t left, LzfseOut *out)
{
    size_t length = out->limit - out->made;
    return length <= left - 8 && lzfse_put(out, at + 8, length) ? 8 + length : 0;
}

static size_t unpack_lzvn(const uint8_t *at, size_t left, LzfseOut *out)
{
    if (left < 12) {
        return 0;
    }
    size_t length = load_le32(at + 8);
    return length <= left - 12 && lzvn_unpack(at + 12, length, out) ? 12 + length : 0;
}

/* left is 8 at least. */
static size_t unpack_block(const uint8_t *at, size_t left, LzfseOut *out)
{
    uint32_t magic = load_le32(at);
    switch (magic) {
    case MAGIC_PLAIN:
        return unpack_plain(at, left, out);
    case MAGIC_LZVN:
        return unpack_lzvn(at, left, out);
    case MAGIC_NUMBERS:
    case MAGIC_PACKED:
        return unpack_entropy(at, left, magic == MAGIC_PACKED, out);
    default:
        return 0;
    }
}

int lzfse_unpack(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t length)
{
    LzfseOut made = {.bytes = out};
    size_t in = 0;
    while (stored_length - in >= 8 && load_le32(stored + in) != MAGIC_END) {
        uint32_t block = load_le32(stored + in + 4);
        if (block == 0 || block > length - made.made) {
            return -EIO;
        }
        made.limit = made.made + block;
        size_t used = unpack_block(stored + in, stored_length - in, &made);
        if (used == 0 || made.made != made.limit) {
            return -EIO;
        }
        in += used;
    }
    bool ends = stored_length - in >= 4 && load_le32(stored + in) == MAGIC_END;
    return ends && made.made == length ? 0 : -EIO;
}
