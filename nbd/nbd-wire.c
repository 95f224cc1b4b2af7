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
    out->payload = out->command == NBD_CMD_WRITE ? out->length : 0;
    return load_be32(in) == NBD_REQUEST_MAGIC;
}

bool nbd_unpack_extended_request(const uint8_t *in, NbdRequestHeader *out)
{
    out->flags = load_be16(in + 4);
    out->command = load_be16(in + 6);
    out->cookie = load_be64(in + 8);
    out->offset = load_be64(in + 16);
    out->length = load_be64(in + 24);
    /* The flag must be on every WRITE, says the document; qemu leaves it out, and sends the payload. */
    bool payload = out->command == NBD_CMD_WRITE || out->flags & NBD_CMD_FLAG_PAYLOAD_LEN;
    out->payload = payload ? out->length : 0;
    return load_be32(in) == NBD_EXTENDED_REQUEST_MAGIC;
}

size_t nbd_pack_request(uint8_t *out, const NbdRequestHeader *in, bool extended)
{
    store_be32(out, extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    store_be16(out + 4, in->flags);
    store_be16(out + 6, in->command);
    store_be64(out + 8, in->cookie);
    store_be64(out + 16, in->offset);
    if (extended) {
        store_be64(out + 24, in->length);
        return NBD_EXTENDED_REQUEST_SIZE;
    }
    store_be32(out + 24, in->length);
    return NBD_REQUEST_SIZE;
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

size_t nbd_pack_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags, uint16_t type,
                      uint32_t length)
{
    store_be16(out + 4, flags);
    store_be16(out + 6, type);
    store_be64(out + 8, head->cookie);
    if (head->extended) {
        store_be32(out, NBD_EXTENDED_REPLY_MAGIC);
        store_be64(out + 16, head->offset);
        store_be64(out + 24, length);
        return 32;
    }
    store_be32(out, NBD_STRUCTURED_REPLY_MAGIC);
    store_be32(out + 16, length);
    return 20;
}

size_t nbd_pack_data_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags, uint64_t offset,
                           uint32_t data_length)
{
    size_t n = nbd_pack_chunk(out, head, flags, NBD_REPLY_TYPE_OFFSET_DATA, 8 + data_length);
    store_be64(out + n, offset);
    return n + 8;
}

size_t nbd_pack_hole_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags, uint64_t offset,
                           uint32_t hole_length)
{
    size_t n = nbd_pack_chunk(out, head, flags, NBD_REPLY_TYPE_OFFSET_HOLE, 12);
    store_be64(out + n, offset);
    store_be32(out + n + 8, hole_length);
    return n + 12;
}

size_t nbd_pack_error_chunk(uint8_t *out, const NbdChunkHead *head, uint32_t error,
                            uint16_t message_length)
{
    size_t n =
        nbd_pack_chunk(out, head, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_ERROR, 6u + message_length);
    store_be32(out + n, error);
    store_be16(out + n + 4, message_length);
    return n + 6;
}

size_t nbd_pack_status_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags,
                             uint32_t context, unsigned descriptors)
{
    if (head->extended) {
        size_t n = nbd_pack_chunk(out, head, flags, NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
                                  8 + descriptors * NBD_EXTENDED_DESCRIPTOR_SIZE);
        store_be32(out + n, context);
        store_be32(out + n + 4, descriptors);
        return n + 8;
    }
    size_t n = nbd_pack_chunk(out, head, flags, NBD_REPLY_TYPE_BLOCK_STATUS,
                              4 + descriptors * NBD_STATUS_DESCRIPTOR_SIZE);
    store_be32(out + n, context);
    return n + 4;
}

size_t nbd_pack_descriptor(uint8_t *out, const NbdChunkHead *head, uint64_t length, uint32_t status)
{
    if (head->extended) {
        store_be64(out, length);
        store_be64(out + 8, status);
        return NBD_EXTENDED_DESCRIPTOR_SIZE;
    }
    store_be32(out, length);
    store_be32(out + 4, status);
    return NBD_STATUS_DESCRIPTOR_SIZE;
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
