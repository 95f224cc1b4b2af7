/*
 * The NBD protocol's fixed-size messages, packed and unpacked.
 *
 * Everything here is arithmetic on bytes that the caller holds. What must stay true: an _unpack
 * never reads past the length it was given, whatever the lengths inside the message say.
 */
#include "nbd/nbd-wire.h"

#include <errno.h>

#include "base/bytes.h"

bool nbd_unpack_option(const uint8_t *in, NbdOptionHeader *out)
{
    out->option = load_be32(in + 8);
    out->length = load_be32(in + 12);
    return load_be64(in) == NBD_OPTION_MAGIC;
}

bool nbd_unpack_request(const uint8_t *in, NbdRequestHeader *out)
{
    out->flags = load_be16(in + 4);
    out->command = load_be16(in + 6);
    out->cookie = load_be64(in + 8);
    out->offset = load_be64(in + 16);
    out->length = load_be32(in + 24);
    return load_be32(in) == NBD_REQUEST_MAGIC;
}

void nbd_pack_request(uint8_t *out, const NbdRequestHeader *in)
{
    store_be32(out, NBD_REQUEST_MAGIC);
    store_be16(out + 4, in->flags);
    store_be16(out + 6, in->command);
    store_be64(out + 8, in->cookie);
    store_be64(out + 16, in->offset);
    store_be32(out + 24, in->length);
}

/* Takes a string with a 32-bit length before it off the front of the input. */
static bool take_string(const uint8_t **in, size_t *length, const char **string,
                        uint32_t *string_length)
{
    if (*length < 4) {
        return false;
    }
    uint32_t n = load_be32(*in);
    if (n > NBD_STRING_MAX || n > *length - 4) {
        return false;
    }
    *string = (const char *)*in + 4;
    *string_length = n;
    *in += 4 + n;
    *length -= 4 + n;
    return true;
}

bool nbd_unpack_info_request(const uint8_t *in, size_t length, NbdInfoRequest *out)
{
    if (!take_string(&in, &length, &out->name, &out->name_length) || length < 2) {
        return false;
    }
    out->info_count = load_be16(in);
    out->infos = in + 2;
    return length - 2 == 2u * out->info_count;
}

bool nbd_unpack_meta_request(const uint8_t *in, size_t length, NbdMetaRequest *out)
{
    if (!take_string(&in, &length, &out->name, &out->name_length) || length < 4) {
        return false;
    }
    out->query_count = load_be32(in);
    out->queries = in + 4;
    out->queries_length = length - 4;
    return out->query_count <= out->queries_length / 4;
}

bool nbd_next_meta_query(NbdMetaRequest *meta, const char **query, uint32_t *query_length)
{
    return take_string(&meta->queries, &meta->queries_length, query, query_length);
}

size_t nbd_pack_greeting(uint8_t *out)
{
    store_be64(out, NBD_INIT_MAGIC);
    store_be64(out + 8, NBD_OPTION_MAGIC);
    store_be16(out + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    return NBD_GREETING_SIZE;
}

size_t nbd_pack_option_reply(uint8_t *out, uint32_t option, uint32_t type, uint32_t length)
{
    store_be64(out, NBD_OPTION_REPLY_MAGIC);
    store_be32(out + 8, option);
    store_be32(out + 12, type);
    store_be32(out + 16, length);
    return NBD_OPTION_REPLY_SIZE;
}

size_t nbd_pack_export_reply(uint8_t *out, uint64_t size, uint16_t transmission_flags)
{
    store_be64(out, size);
    store_be16(out + 8, transmission_flags);
    return NBD_EXPORT_REPLY_SIZE;
}

size_t nbd_pack_simple_reply(uint8_t *out, uint32_t error, uint64_t cookie)
{
    store_be32(out, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(out + 4, error);
    store_be64(out + 8, cookie);
    return NBD_SIMPLE_REPLY_SIZE;
}

size_t nbd_pack_chunk(uint8_t *out, uint16_t flags, uint16_t type, uint64_t cookie, uint32_t length)
{
    store_be32(out, NBD_STRUCTURED_REPLY_MAGIC);
    store_be16(out + 4, flags);
    store_be16(out + 6, type);
    store_be64(out + 8, cookie);
    store_be32(out + 16, length);
    return NBD_CHUNK_SIZE;
}

size_t nbd_pack_data_chunk(uint8_t *out, uint16_t flags, uint64_t cookie, uint64_t offset,
                           uint32_t data_length)
{
    nbd_pack_chunk(out, flags, NBD_REPLY_TYPE_OFFSET_DATA, cookie, 8 + data_length);
    store_be64(out + 20, offset);
    return NBD_DATA_CHUNK_SIZE;
}

size_t nbd_pack_hole_chunk(uint8_t *out, uint16_t flags, uint64_t cookie, uint64_t offset,
                           uint32_t hole_length)
{
    nbd_pack_chunk(out, flags, NBD_REPLY_TYPE_OFFSET_HOLE, cookie, 12);
    store_be64(out + 20, offset);
    store_be32(out + 28, hole_length);
    return NBD_HOLE_CHUNK_SIZE;
}

size_t nbd_pack_error_chunk(uint8_t *out, uint64_t cookie, uint32_t error, uint16_t message_length)
{
    nbd_pack_chunk(out, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, cookie, 6u + message_length);
    store_be32(out + 20, error);
    store_be16(out + 24, message_length);
    return NBD_ERROR_CHUNK_SIZE;
}

size_t nbd_pack_status_chunk(uint8_t *out, uint64_t cookie, uint32_t context, unsigned descriptors)
{
    nbd_pack_chunk(out, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, cookie,
                   4 + descriptors * NBD_STATUS_DESCRIPTOR_SIZE);
    store_be32(out + 20, context);
    return NBD_STATUS_CHUNK_SIZE;
}

uint32_t nbd_error_from_errno(int error)
{
    switch (error < 0 ? -error : error) {
    case 0:
        return NBD_SUCCESS;
    case EPERM:
    case EROFS:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}
