/*
 * Writes an image from its front to its end.
 *
 *     many threads, any order       read a piece, encode its units that are not zero
 *     one at a time, in order       the format says what comes before each unit; all of it is written
 *
 * What must stay true: bytes leave in the order in which the format placed them.
 */
#include "tools/stream.h"

#include <errno.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "tools/buffers.h"
#include "tools/bulk.h"
#include "tools/reader.h"

typedef struct Unit {
    uint64_t offset; /* of the disk */
    guint length;    /* stored bytes */
} Unit;

/* What a thread has made of its piece. */
typedef struct Encoded {
    GByteArray *bytes; /* of all its units, one behind the other */
    GArray *units;     /* Unit */
} Encoded;

typedef struct Stream {
    Image *source;
    const FormatStreaming *format;
    FormatStream *made;
    const StreamOptions *options;
    uint32_t unit;
    Buffers *buffers;              /* one a thread: a piece of the source */
    Encoded *encoded;              /* of each thread */
    GByteArray *out;               /* what is written next */
    _Atomic uint64_t write_failed; /* the piece that could not be written; UINT64_MAX */
} Stream;

static int encode_unit(const Stream *stream, Encoded *encoded, uint64_t offset,
                       const uint8_t *bytes)
{
    if (!stream->options->all && bytes_are_zero(bytes, stream->unit)) {
        return 0;
    }
    guint before = encoded->bytes->len;
    int r = stream->format->encode(stream->made, offset, bytes, encoded->bytes);
    Unit unit = {.offset = offset, .length = encoded->bytes->len - before};
    g_array_append_val(encoded->units, unit);
    return r;
}

/* start: of the piece in the source, offset: in the image. */
static int encode_data(Stream *stream, unsigned slot, uint64_t offset, uint64_t start,
                       uint64_t length, const ExtentList *map)
{
    uint8_t *buffer = buffers_get(stream->buffers, slot);
    /* The last unit of the disk may be cut short; what is stored is a whole one. */
    uint64_t whole = align_up(length, stream->unit);
    int r = buffer ? salvage_read(stream->options->salvage, map, start, length, buffer) : -ENOMEM;
    if (r == 0) {
        memset(buffer + length, 0, whole - length);
    }
    for (uint64_t at = 0; r == 0 && at < whole; at += stream->unit) {
        r = encode_unit(stream, &stream->encoded[slot], offset + at, buffer + at);
    }
    return r;
}

static int encode_piece(void *opaque, unsigned slot, uint64_t offset, uint64_t length,
                        uint64_t *next)
{
    Stream *stream = opaque;
    const StreamOptions *options = stream->options;
    uint64_t start = options->source_offset + offset;
    ExtentList map;
    g_byte_array_set_size(stream->encoded[slot].bytes, 0);
    g_array_set_size(stream->encoded[slot].units, 0);
    extent_list_init(&map);
    int r = salvage_map(options->salvage, stream->source, start, length, &map);
    if (r == 0 && !options->all && reader_all_zero(&map)) {
        uint64_t end = options->source_offset + options->length;
        *next = reader_zero_until(stream->source, start + length, end) - options->source_offset;
    } else if (r == 0) {
        r = encode_data(stream, slot, offset, start, length, &map);
    }
    extent_list_clear(&map);
    return r;
}

static int write_out(Stream *stream)
{
    GByteArray *out = stream->out;
    int r = out->len > 0 ? stream->options->write(stream->options->sink, out->data, out->len) : 0;
    g_byte_array_set_size(out, 0);
    return r;
}

static int write_piece(void *opaque, unsigned slot, uint64_t offset, uint64_t length)
{
    Stream *stream = opaque;
    const Encoded *encoded = &stream->encoded[slot];
    const uint8_t *bytes = encoded->bytes->data;
    int r = 0;
    for (guint i = 0; r == 0 && i < encoded->units->len; i++) {
        const Unit *unit = &g_array_index(encoded->units, Unit, i);
        r = stream->format->place(stream->made, unit->offset, unit->length, stream->out);
        g_byte_array_append(stream->out, bytes, unit->length);
        bytes += unit->length;
    }
    r = r < 0 ? r : write_out(stream);
    if (r < 0) {
        stream->write_failed = offset;
    }
    return r;
}

static int write_pieces(Stream *stream, unsigned threads, uint64_t piece, CopyFailure *failure)
{
    const StreamOptions *options = stream->options;
    Bulk bulk = {
        .length = options->length,
        .piece = piece,
        .threads = threads,
        .rate = options->rate,
        .work = encode_piece,
        .in_order = write_piece,
        .opaque = stream,
        .progress = options->progress,
        .context = options->context,
    };
    int r = bulk_run(&bulk, &failure->offset);
    failure->writing = stream->write_failed == failure->offset;
    if (r < 0) {
        return r;
    }
    failure->offset = options->length;
    failure->writing = true;
    r = stream->format->end(stream->made, stream->out);
    return r < 0 ? r : write_out(stream);
}

int stream_disk(Image *source, const FormatStreaming *format, FormatStream *made,
                const StreamOptions *options, CopyFailure *failure)
{
    uint64_t piece = buffers_piece(format->unit(made));
    unsigned threads = buffers_threads(options->threads, piece);
    g_autoptr(Buffers) buffers = buffers_new(threads, piece);
    g_autoptr(GByteArray) out = g_byte_array_new();
    Stream stream = {
        .source = source,
        .format = format,
        .made = made,
        .options = options,
        .unit = format->unit(made),
        .buffers = buffers,
        .encoded = g_new0(Encoded, threads),
        .out = out,
        .write_failed = UINT64_MAX,
    };
    for (unsigned i = 0; i < threads; i++) {
        stream.encoded[i].bytes = g_byte_array_new();
        stream.encoded[i].units = g_array_new(false, false, sizeof(Unit));
    }
    int r = write_pieces(&stream, threads, piece, failure);
    for (unsigned i = 0; i < threads; i++) {
        g_byte_array_unref(stream.encoded[i].bytes);
        g_array_unref(stream.encoded[i].units);
    }
    g_free(stream.encoded);
    return r;
}
