"""An encoder of LZFSE and LZVN for golden images: every kind of block, and no ambition to be small.

Contents are cut into blocks, and each is written in the way that is asked for: "plain" (bvx-), "lzvn" (bvxn), "tables" (bvx1, whose
frequencies lie there as numbers) or "fse" (bvx2, whose frequencies are packed).
"""
import random
import struct

LITERAL_STATES, L_STATES, M_STATES, D_STATES = 1024, 64, 64, 256


def ladder(bits):
    """The smallest value of each symbol, where symbol n has bits[n] extra bits."""
    bases = [0]
    for n in bits[:-1]:
        bases.append(bases[-1] + (1 << n))
    return bases


L_BITS = [0] * 16 + [2, 3, 5, 8]
M_BITS = [0] * 16 + [3, 5, 8, 11]
D_BITS = [n // 4 for n in range(64)]
L_BASES, M_BASES, D_BASES = ladder(L_BITS), ladder(M_BITS), ladder(D_BITS)
L_MAX, M_MAX, D_MAX = L_BASES[-1] + 255, M_BASES[-1] + 2047, D_BASES[-1] + 32767


def matches(data, begun, l_max, m_max, d_max):
    """(literals, length, distance) steps that make data from begun on; the last has length 0. Greedy."""
    seen, steps, at = {data[n:n + 4]: n for n in range(begun)}, [], begun
    while at < len(data):
        key = data[at:at + 4]
        found, seen[key] = seen.get(key), at
        if len(key) < 4 or found is None or at - found > d_max:
            at += 1
        else:
            length = 4
            while length < m_max and at + length < len(data) and data[found + length] == data[at + length]:
                length += 1
            steps.append((data[begun:at], length, at - found))
            at = begun = at + length
        if at - begun == l_max:
            steps.append((data[begun:at], 0, 1))
            begun = at
    return steps + [(data[begun:], 0, 1)]


class Bits:
    """Bits that are pushed at the end, and pulled from there by the decoder."""

    def __init__(self):
        self.value = self.count = 0

    def push(self, value, count):
        self.value |= value << self.count
        self.count += count

    def bytes(self):
        return self.value.to_bytes((self.count + 7) // 8, "little")

    def excess(self):
        """What the header says of the last byte: 7 for a full one."""
        return 7 - -self.count % 8


class Table:
    """Finite state entropy: which states a symbol has, and what follows from each."""

    def __init__(self, states, symbols, used):
        counts = [used.count(n) for n in range(symbols)]
        total = sum(counts) or 1
        self.frequencies = [max(1, n * states // total) if n else 0 for n in counts]
        while sum(self.frequencies) != states:
            largest = max(range(symbols), key=lambda n: self.frequencies[n])
            self.frequencies[largest] += states - sum(self.frequencies)
            if self.frequencies[largest] <= 0:
                raise ValueError("too many symbols")
        self.rows, self.state, first = [], 0, 0
        for frequency in self.frequencies:
            rows = []
            if frequency:
                k = states.bit_length() - frequency.bit_length()
                few = (2 * states >> k) - frequency
                for j in range(frequency):
                    bits = k if j < few else k - 1
                    delta = (frequency + j << k) - states if j < few else j - few << k - 1
                    rows.append((first + j, bits, delta))
            self.rows.append(rows)
            first += frequency

    def push(self, bits, symbol):
        for state, count, delta in self.rows[symbol]:
            if delta <= self.state < delta + (1 << count):
                bits.push(self.state - delta, count)
                self.state = state
                return
        raise ValueError("no state")


def symbol_of(bases, value):
    return max(n for n, base in enumerate(bases) if base <= value)


def pack_frequencies(frequencies):
    bits = Bits()
    for value in frequencies:
        if value < 8:
            bits.push(*[(0, 2), (2, 2), (1, 3), (5, 3), (3, 5), (11, 5), (19, 5), (27, 5)][value])
        elif value < 24:
            bits.push(7 | value - 8 << 4, 8)
        else:
            bits.push(15 | value - 24 << 4, 14)
    return bits.bytes()


def fse(data, begun, packed):
    steps = [step for step in matches(data, begun, L_MAX, M_MAX, D_MAX) if step[0] or step[1]]
    length = len(data) - begun
    literals = b"".join(step[0] for step in steps)
    literals += bytes(-len(literals) % 4)
    last, rows = 0, []
    for literal, repeated, distance in steps:
        rows.append((len(literal), repeated, 0 if distance == last else distance))
        last = distance
    kinds = [(L_STATES, L_BASES, L_BITS), (M_STATES, M_BASES, M_BITS), (D_STATES, D_BASES, D_BITS)]
    tables = [Table(states, len(bases), [symbol_of(bases, row[n]) for row in rows])
              for n, (states, bases, _) in enumerate(kinds)]
    of_literals = Table(LITERAL_STATES, 256, list(literals))
    # what the decoder pulls first is pushed last
    literal_bits, states = Bits(), [0] * 4
    for n in reversed(range(len(literals))):
        of_literals.state = states[n % 4]
        of_literals.push(literal_bits, literals[n])
        states[n % 4] = of_literals.state
    row_bits = Bits()
    row_bits.push(0, 64)  # so that a decoder may read eight bytes at a time
    for row in reversed(rows):
        for n in (2, 1, 0):
            symbol = symbol_of(kinds[n][1], row[n])
            row_bits.push(row[n] - kinds[n][1][symbol], kinds[n][2][symbol])
            tables[n].push(row_bits, symbol)
    frequencies = [f for table in tables + [of_literals] for f in table.frequencies]
    payload = [literal_bits.bytes(), row_bits.bytes()]
    ends = [table.state for table in tables]
    if packed:
        tail = pack_frequencies(frequencies)
        numbers = [len(literals) | len(payload[0]) << 20 | len(rows) << 40 | literal_bits.excess() << 60,
                   states[0] | states[1] << 10 | states[2] << 20 | states[3] << 30 | len(payload[1]) << 40 |
                   row_bits.excess() << 60,
                   32 + len(tail) | ends[0] << 32 | ends[1] << 42 | ends[2] << 52]
        head = struct.pack("<4sI3Q", b"bvx2", length, *numbers) + tail
    else:
        head = struct.pack("<4s6Ii4Hi3H", b"bvx1", length, len(payload[0]) + len(payload[1]), len(literals), len(rows),
                           len(payload[0]), len(payload[1]), literal_bits.excess() - 7, *states,
                           row_bits.excess() - 7, *ends) + struct.pack("<360H", *frequencies)
    return head + payload[0] + payload[1]


def run(head, n):
    """n literals, or a match of n bytes: 15 at most in the head, up to 271 behind it."""
    return bytes([head, n - 16]) if n > 15 else bytes([head | n])


def lzvn_literals(literal, keep):
    """Those that do not fit into the step behind them."""
    stream = b""
    while len(literal) > keep:
        part = literal[:271]
        stream, literal = stream + run(0xE0, len(part)) + part, literal[len(part):]
    return stream, literal


def lzvn_match(l, length, distance, last):
    """The head of a step, and what of the match is left. No step of this kind begins with 0111, 101 or 1101."""
    few = min(length, [10, 8, 6, 4][l])
    if distance == last:
        return (bytes([l << 6 | few - 3 << 3 | 6]), length - few) if l else (b"", length)
    if distance < 1536 and few == length:
        return bytes([l << 6 | few - 3 << 3 | distance >> 8, distance & 255]), 0
    if distance < 16384:
        long = min(length, 34)
        return bytes([0xA0 | l << 3 | long - 3 >> 2]) + struct.pack("<H", distance << 2 | long - 3 & 3), length - long
    return bytes([l << 6 | few - 3 << 3 | 7]) + struct.pack("<H", distance), length - few


def lzvn(data, begun):
    stream, last = b"\x0e", 0
    for literal, length, distance in matches(data, begun, len(data) + 1, 1 << 20, 65535):
        head, literal = lzvn_literals(literal, 3 if length else 0)
        stream += head
        if length:
            step, left = lzvn_match(len(literal), length, distance, last)
            stream, last = stream + step + literal, distance
            while left:
                stream += run(0xF0, min(left, 271))
                left -= min(left, 271)
    stream += b"\x16\x06" + bytes(7)
    return struct.pack("<4s2I", b"bvxn", len(data) - begun, len(stream)) + stream


def plain(data, begun):
    return struct.pack("<4sI", b"bvx-", len(data) - begun) + data[begun:]


KINDS = {"plain": plain, "lzvn": lzvn, "tables": lambda data, begun: fse(data, begun, False),
         "fse": lambda data, begun: fse(data, begun, True)}


def compress(data, kinds=("fse", "lzvn"), block=20000):
    """The kinds take turns; each block may repeat what is in those before it."""
    stream = b""
    for n, begun in enumerate(range(0, len(data), block)):
        stream += KINDS[kinds[n % len(kinds)]](data[:begun + block], begun)
    return stream + b"bvx$"


def sample(number, length):
    """Contents with repeats near and far, short and long, runs of a byte, and noise."""
    rng = random.Random(number)
    words, data = [rng.randbytes(rng.randrange(1, 40)) for _ in range(300)], b""
    while len(data) < length:
        data += rng.choice([
            lambda: rng.choice(words),
            lambda: rng.choice(words) + rng.choice(words)[:3],
            lambda: rng.choice(words)[:5] * rng.randrange(1, 9),
            lambda: rng.randbytes(1) * rng.randrange(1, 3000),
            lambda: rng.randbytes(rng.randrange(1, 900)),
            lambda: data[-rng.randrange(1, 200000):][:rng.randrange(4, 2000)]])()
    return data[:length]
