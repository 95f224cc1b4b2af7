/*
 * LZVN, the simpler kind of block in LZFSE. Each step is a byte, what belongs to it, and literals:
 *
 *     llmmmddd dddddddd             l literals, then m + 3 bytes again from distance d
 *     llmmm111 and 16 bits          the same, farther
 *     101llmmm ddddddmm dddddddd    the same, longer
 *     llmmm110                      the same, from the distance of the step before; where l is 0: 0 the end, 1 and 2 nothing
 *     1110llll, 11100000 llllllll   l literals, or l + 16
 *     1111mmmm, 11110000 mmmmmmmm   m bytes, or m + 16, from the distance of the step before
 *
 * What begins with 0111 or 1101 has no meaning. Numbers of 16 bits have the low byte first.
 */
#include "base/bytes.h"
#include "formats/lzfse.h"

typedef struct Step {
    size_t head; /* bytes before the literals; 0: this is none */
    size_t literals, length, distance;
    bool end;
} Step;

static const Step NO_STEP = {0};

/* at[1], where it is there; else the head is too long, and refused for that. */
static size_t second(const uint8_t *at, size_t left)
{
    return left > 1 ? at[1] : 0;
}

/* Literals without a match, or a match without literals. */
static Step single_step(const uint8_t *at, size_t left, size_t distance)
{
    unsigned small = *at & 0xf;
    size_t n = small ? small : second(at, left) + 16;
    size_t head = small ? 1 : 2;
    return *at < 0xf0 ? (Step){.head = head, .literals = n, .distance = distance}
                      : (Step){.head = head, .length = n, .distance = distance};
}

static Step step_at_last_distance(const uint8_t *at, Step step, size_t distance)
{
    if (step.literals == 0) {
        unsigned number = *at >> 3;
        return number > 2 ? NO_STEP : (Step){.head = 1, .distance = distance, .end = number == 0};
    }
    step.head = 1;
    step.distance = distance;
    return step;
}

/* distance: of the step before. */
static Step step_at(const uint8_t *at, size_t left, size_t distance)
{
    unsigned high = *at >> 4;
    if (high >= 0xe) {
        return single_step(at, left, distance);
    }
    if (high == 0x7 || high == 0xd) {
        return NO_STEP;
    }
    if (high == 0xa || high == 0xb) {
        unsigned rest = left >= 3 ? load_le16(at + 1) : 0;
        return (Step){.head = 3,
                      .literals = *at >> 3 & 3,
                      .length = ((*at & 7u) << 2 | (rest & 3)) + 3,
                      .distance = rest >> 2};
    }
    Step step = {.literals = *at >> 6, .length = (*at >> 3 & 7u) + 3};
    switch (*at & 7) {
    case 6:
        return step_at_last_distance(at, step, distance);
    case 7:
        step.head = 3;
        step.distance = left >= 3 ? load_le16(at + 1) : 0;
        return step;
    default:
        step.head = 2;
        step.distance = (*at & 7u) << 8 | second(at, left);
        return step;
    }
}

bool lzvn_unpack(const uint8_t *stored, size_t stored_length, LzfseOut *out)
{
    size_t in = 0, distance = 0;
    while (in < stored_length) {
        Step step = step_at(stored + in, stored_length - in, distance);
        if (step.head == 0 || step.head + step.literals > stored_length - in) {
            return false;
        }
        if (step.end) {
            return out->made == out->limit;
        }
        in += step.head;
        if (!lzfse_put(out, stored + in, step.literals) ||
            !lzfse_repeat(out, step.length, step.distance)) {
            return false;
        }
        in += step.literals;
        distance = step.distance;
    }
    return false;
}
