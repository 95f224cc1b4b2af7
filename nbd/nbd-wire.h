/*
 * The NBD protocol's numbers, and its fixed-size messages packed and unpacked.
 *
 * Pure: no sockets, no state, no memory of its own. [any] All fields on the wire are big-endian.
 * The names follow the protocol document,
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
 */
#ifndef NBD_NBD_WIRE_H
#define NBD_NBD_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NBD_DEFAULT_PORT "10809"

/* Magics. */
#define NBD_INIT_MAGIC             0x4e42444d41474943ull /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC           0x49484156454f5054ull /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC     0x0003e889045565a9ull
#define NBD_REQUEST_MAGIC          0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC     0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_EXTENDED_REPLY_MAGIC   0x6e8a278cu

/* Handshake flags: the server's, then the client's. */
#define NBD_FLAG_FIXED_NEWSTYLE   (1u << 0)
#define NBD_FLAG_NO_ZEROES        (1u << 1)
#define NBD_FLAG_C_FIXED_NEWSTYLE (1u << 0)
#define NBD_FLAG_C_NO_ZEROES      (1u << 1)

typedef enum {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
} NbdOption;

#define NBD_REP_ACK                 1u
#define NBD_REP_SERVER              2u
#define NBD_REP_INFO                3u
#define NBD_REP_META_CONTEXT        4u
#define NBD_REP_ERR_UNSUP           0x80000001u
#define NBD_REP_ERR_POLICY          0x80000002u
#define NBD_REP_ERR_INVALID         0x80000003u
#define NBD_REP_ERR_TLS_REQD        0x80000005u
#define NBD_REP_ERR_UNKNOWN         0x80000006u
#define NBD_REP_ERR_SHUTDOWN        0x80000007u
#define NBD_REP_ERR_TOO_BIG         0x80000009u
#define NBD_REP_ERR_EXT_HEADER_REQD 0x8000000au

#define NBD_INFO_EXPORT             0u
#define NBD_INFO_NAME               1u
#define NBD_INFO_DESCRIPTION        2u
#define NBD_INFO_BLOCK_SIZE         3u

/* Transmission flags of an export. */
#define NBD_FLAG_HAS_FLAGS            (1u << 0)
#define NBD_FLAG_READ_ONLY            (1u << 1)
#define NBD_FLAG_SEND_FLUSH           (1u << 2)
#define NBD_FLAG_SEND_FUA             (1u << 3)
#define NBD_FLAG_ROTATIONAL           (1u << 4)
#define NBD_FLAG_SEND_TRIM            (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES    (1u << 6)
#define NBD_FLAG_SEND_DF              (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN       (1u << 8)
#define NBD_FLAG_SEND_RESIZE          (1u << 9)
#define NBD_FLAG_SEND_CACHE           (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO       (1u << 11)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD (1u << 12)

typedef enum {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
    NBD_CMD_RESIZE = 8,
} NbdCommand;

#define NBD_CMD_FLAG_FUA                (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE            (1u << 1)
#define NBD_CMD_FLAG_DF                 (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE            (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO          (1u << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN        (1u << 5)

#define NBD_REPLY_FLAG_DONE             (1u << 0)
#define NBD_REPLY_TYPE_NONE             0u
#define NBD_REPLY_TYPE_OFFSET_DATA      1u
#define NBD_REPLY_TYPE_OFFSET_HOLE      2u
#define NBD_REPLY_TYPE_BLOCK_STATUS     5u
#define NBD_REPLY_TYPE_BLOCK_STATUS_EXT 6u
#define NBD_REPLY_TYPE_ERROR            0x8001u

#define NBD_STATE_HOLE                  (1u << 0)
#define NBD_STATE_ZERO                  (1u << 1)

/* Error values of replies. They happen to be Linux's errno values, but they are the protocol's. */
#define NBD_SUCCESS   0u
#define NBD_EPERM     1u
#define NBD_EIO       5u
#define NBD_ENOMEM    12u
#define NBD_EINVAL    22u
#define NBD_ENOSPC    28u
#define NBD_EOVERFLOW 75u
#define NBD_ENOTSUP   95u
#define NBD_ESHUTDOWN 108u

/* Sizes on the wire, bytes. */
#define NBD_GREETING_SIZE            18
#define NBD_CLIENT_FLAGS_SIZE        4
#define NBD_OPTION_SIZE              16
#define NBD_OPTION_REPLY_SIZE        20
#define NBD_EXPORT_REPLY_SIZE        10 /* of EXPORT_NAME, without the zeroes */
#define NBD_EXPORT_REPLY_ZEROES      124
#define NBD_REQUEST_SIZE             28
#define NBD_EXTENDED_REQUEST_SIZE    32
#define NBD_SIMPLE_REPLY_SIZE        16
#define NBD_CHUNK_HEAD_MAX           32 /* of every chunk: 20 structured, 32 extended */
#define NBD_CHUNK_MAX                (NBD_CHUNK_HEAD_MAX + 12) /* up to data, message, descriptors */
#define NBD_STATUS_DESCRIPTOR_SIZE   8
#define NBD_EXTENDED_DESCRIPTOR_SIZE 16
#define NBD_STATUS_PAYLOAD_SIZE      8    /* of BLOCK_STATUS, up to the context numbers */
#define NBD_STRING_MAX               4096 /* names and meta context queries, by the protocol */

typedef struct NbdOptionHeader {
    uint32_t option; /* NbdOption, or one that we do not know */
    uint32_t length; /* of the data that follows */
} NbdOptionHeader;

typedef struct NbdRequestHeader {
    uint16_t flags;
    uint16_t command; /* NbdCommand, or one that we do not know */
    uint64_t cookie;
    uint64_t offset;
    uint64_t length;  /* of the range; of the payload where that is another thing */
    uint64_t payload; /* bytes that follow the header */
} NbdRequestHeader;

/* What all chunks of a reply have in common. */
typedef struct NbdChunkHead {
    bool extended; /* extended headers were negotiated */
    uint64_t cookie;
    uint64_t offset; /* of the request */
} NbdChunkHead;

/* The data of INFO and GO. name is not terminated; infos are count big-endian 16-bit numbers in
 * place. */
typedef struct NbdInfoRequest {
    const char *name;
    uint32_t name_length;
    const uint8_t *infos;
    uint16_t info_count;
} NbdInfoRequest;

/* The data of LIST_META_CONTEXT and SET_META_CONTEXT; the queries are taken one by one. */
typedef struct NbdMetaRequest {
    const char *name;
    uint32_t name_length;
    uint32_t query_count;
    const uint8_t *queries;
    size_t queries_length;
} NbdMetaRequest;

/* What the client sends. False: the magic or a length is wrong. The input has the size given above,
 * or length. */
bool nbd_unpack_option(const uint8_t *in, NbdOptionHeader *out);
bool nbd_unpack_request(const uint8_t *in, NbdRequestHeader *out);
bool nbd_unpack_extended_request(const uint8_t *in, NbdRequestHeader *out);
bool nbd_unpack_info_request(const uint8_t *in, size_t length, NbdInfoRequest *out);
bool nbd_unpack_meta_request(const uint8_t *in, size_t length, NbdMetaRequest *out);
/* Takes the next query off the front of out->queries; false when its length does not fit. */
bool nbd_next_meta_query(NbdMetaRequest *meta, const char **query, uint32_t *query_length);

/* The other way, for a request that is handed on. */
size_t nbd_pack_request(uint8_t *out, const NbdRequestHeader *in, bool extended);

/* What we send. Each returns the number of bytes written: one of the sizes above, at most
 * NBD_CHUNK_MAX. */
size_t nbd_pack_greeting(uint8_t *out);
size_t nbd_pack_option_reply(uint8_t *out, uint32_t option, uint32_t type, uint32_t length);
size_t nbd_pack_export_reply(uint8_t *out, uint64_t size, uint16_t transmission_flags);
size_t nbd_pack_simple_reply(uint8_t *out, uint32_t error, uint64_t cookie);
size_t nbd_pack_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags, uint16_t type,
                      uint32_t length);
size_t nbd_pack_data_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags, uint64_t offset,
                           uint32_t data_length);
size_t nbd_pack_hole_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags, uint64_t offset,
                           uint32_t hole_length);
size_t nbd_pack_error_chunk(uint8_t *out, const NbdChunkHead *head, uint32_t error,
                            uint16_t message_length);
size_t nbd_pack_status_chunk(uint8_t *out, const NbdChunkHead *head, uint16_t flags,
                             uint32_t context, unsigned descriptors);
/* A descriptor of a status chunk; length has 32 bits where head is not extended. */
size_t nbd_pack_descriptor(uint8_t *out, const NbdChunkHead *head, uint64_t length,
                           uint32_t status);

/* An errno value (positive or negative) as the protocol's error: the same where it has one, else
 * the nearest. */
uint32_t nbd_error_from_errno(int error);

#endif
