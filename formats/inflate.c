/*
 * Compressed units of images, by zlib and libzstd.
 *
 * Both loops must end whatever the stream says: zlib is given all of its input and output at once;
 * the zstd loop goes on only while a call has consumed or produced something.
 */
#include "formats/inflate.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <zlib.h>
#include <zstd.h>

int inflate_unit(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t out_length,
                 int window_bits)
{
    if (stored_length > UINT_MAX || out_length > UINT_MAX) {
        return -EIO;
    }
    z_stream stream = {
        .next_in = (uint8_t *)stored,
        .avail_in = stored_length,
        .next_out = out,
        .avail_out = out_length,
    };
    int r = inflateInit2(&stream, window_bits);
    if (r != Z_OK) {
        return r == Z_MEM_ERROR ? -ENOMEM : -EIO;
    }
    /* A stream that has more to give than fits ends with Z_BUF_ERROR, not Z_STREAM_END. */
    r = inflate(&stream, Z_FINISH);
    bool whole = r == Z_STREAM_END && stream.avail_out == 0;
    inflateEnd(&stream);
    return whole ? 0 : r == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

int inflate_unit_zstd(const uint8_t *stored, size_t stored_length, uint8_t *out, size_t out_length)
{
    ZSTD_DStream *stream = ZSTD_createDStream();
    if (stream == NULL) {
        return -ENOMEM;
    }
    ZSTD_inBuffer in = {stored, stored_length, 0};
    ZSTD_outBuffer to = {out, out_length, 0};
    size_t r = 1; /* 0: a frame has just ended */
    bool moved = true;
    while (moved && !ZSTD_isError(r) && (to.pos < to.size || r != 0)) {
        size_t in_before = in.pos, out_before = to.pos;
        r = ZSTD_decompressStream(stream, &to, &in);
        moved = in.pos != in_before || to.pos != out_before;
    }
    ZSTD_freeDStream(stream);
    return r == 0 && to.pos == to.size ? 0 : -EIO;
}
