/*
 * Transfers. What does not fit the page cache goes to the worker's asynchronous I/O; encoded
 * extents go to the pool, which reads and decodes them. Encrypted ones are decrypted by the worker: that
 * costs less than to hand them over.
 */
#include "engine/transfer.h"

#include <string.h>

#include "base/log.h"
#include "map/encryption.h"

typedef struct Piece {
    Transfer *transfer;
    struct Piece *next;
    StoreIo io;
    struct iovec iov[TRANSFER_IOV_MAX];
    Extent extent; /* encoded, or encrypted and read: whole sectors */
    uint8_t *out;
    uint64_t skip, wanted; /* encrypted: what of the extent goes to out */
    bool decrypts;
    /* Encrypted: what lies in the store, where that is not what lies in out; or NULL. */
    uint8_t *sectors;
    PoolJob job;
    WorkerMessage message;
} Piece;

struct Transfer {
    Disk *disk;
    Request *request;
    TransferDone *done;
    Piece *pieces, **end;
    unsigned pending;
    int result;
};

Transfer *transfer_new(Disk *disk, Request *request, TransferDone *done)
{
    Transfer *transfer = g_new0(Transfer, 1);
    transfer->disk = disk;
    transfer->request = request;
    transfer->done = done;
    transfer->end = &transfer->pieces;
    return transfer;
}

static void transfer_finish(Transfer *transfer)
{
    for (Piece *piece = transfer->pieces, *next; piece != NULL; piece = next) {
        next = piece->next;
        g_free(piece->sectors);
        g_free(piece);
    }
    Request *request = transfer->request;
    TransferDone *done = transfer->done;
    int result = transfer->result;
    g_free(transfer);
    done(request, result);
}

void transfer_fail(Transfer *transfer, int error)
{
    if (transfer->result == 0) {
        transfer->result = error;
    }
}

static void piece_done(Piece *piece, int result)
{
    Transfer *transfer = piece->transfer;
    transfer_fail(transfer, result);
    if (--transfer->pending == 0) {
        transfer_finish(transfer);
    }
}

static Piece *piece_new(Transfer *transfer)
{
    Piece *piece = g_new0(Piece, 1);
    piece->transfer = transfer;
    *transfer->end = piece;
    transfer->end = &piece->next;
    return piece;
}

/* The piece's bytes have been read or written: what is left to be done with them. */
static int piece_arrived(Piece *piece)
{
    if (!piece->decrypts) {
        return 0;
    }
    int r = extent_decrypt(&piece->extent, piece->sectors ? piece->sectors : piece->out);
    if (r == 0 && piece->sectors) {
        memcpy(piece->out, piece->sectors + piece->skip, piece->wanted);
    }
    return r;
}

static void io_done(StoreIo *io)
{
    Piece *piece = (Piece *)((char *)io - offsetof(Piece, io));
    if (io->result < 0) {
        log_limited(LOG_LEVEL_ERROR,
                    "%s: %s of %" G_GUINT64_FORMAT " bytes at %" G_GUINT64_FORMAT ": %s",
                    io->store->name, io->kind == STORE_IO_READ ? "read" : "write", io->length,
                    io->offset, g_strerror(-io->result));
    }
    piece_done(piece, io->result < 0 ? io->result : piece_arrived(piece));
}

static void piece_set_io(Piece *piece, StoreIoKind kind, Store *store, uint64_t offset,
                         const struct iovec *iov, int count)
{
    piece->io = (StoreIo){.kind = kind, .store = store, .offset = offset, .done = io_done};
    piece->io.iov = piece->iov;
    piece->io.iov_count = count;
    for (int i = 0; i < count; i++) {
        piece->iov[i] = iov[i];
        piece->io.length += iov[i].iov_len;
    }
}

/* [pool] Reads the stored bytes of a unit and decodes it. */
static int decode_unit(const Extent *extent, uint8_t **unit)
{
    *unit = NULL;
    g_autofree uint8_t *stored = g_try_malloc(extent->stored_length);
    g_autofree uint8_t *bytes = g_try_malloc(extent->unit_length);
    if (stored == NULL || bytes == NULL) {
        return -ENOMEM;
    }
    int r = store_read(extent->store, stored, extent->stored_length, extent->host_offset);
    if (r == 0) {
        r = extent->image->format->decode(extent->image, extent, stored, extent->stored_length,
                                          bytes);
    }
    if (r == 0) {
        *unit = g_steal_pointer(&bytes);
    }
    return r;
}

static void decode_done(WorkerMessage *message)
{
    Piece *piece = (Piece *)((char *)message - offsetof(Piece, message));
    piece_done(piece, piece->io.result);
}

static void decode_job(PoolJob *job)
{
    Piece *piece = (Piece *)((char *)job - offsetof(Piece, job));
    UnitCache *units = piece->transfer->disk->units;
    const Extent *extent = &piece->extent;
    if (!unitcache_copy(units, extent, piece->out)) {
        uint8_t *unit;
        piece->io.result = decode_unit(extent, &unit);
        if (unit != NULL) {
            memcpy(piece->out, unit + extent->unit_offset, extent->length);
            unitcache_add(units, extent, unit);
        }
    }
    piece->message.run = decode_done;
    worker_post(piece->transfer->request->worker, &piece->message);
}

/* Part of a sector is read into memory of its own. */
static void read_encrypted(Transfer *transfer, const Extent *extent, uint8_t *out)
{
    Extent whole = extent_whole_sectors(extent);
    uint8_t *sectors = NULL;
    if (!extent_has_whole_sectors(extent)) {
        sectors = g_try_malloc(whole.length);
        if (sectors == NULL) {
            transfer_fail(transfer, -ENOMEM);
            return;
        }
    }
    Piece *piece = piece_new(transfer);
    piece->extent = whole;
    piece->out = out;
    piece->skip = extent->offset - whole.offset;
    piece->wanted = extent->length;
    piece->decrypts = true;
    piece->sectors = sectors;
    struct iovec iov = {sectors ? sectors : out, whole.length};
    piece_set_io(piece, STORE_IO_READ, whole.store, whole.host_offset, &iov, 1);
}

void transfer_read(Transfer *transfer, const Extent *extent, uint8_t *out)
{
    if (extent_is_zero(extent)) {
        memset(out, 0, extent->length);
        return;
    }
    if (extent_is_encrypted(extent)) {
        read_encrypted(transfer, extent, out);
        return;
    }
    Piece *piece = piece_new(transfer);
    if (extent->type == EXTENT_ENCODED) {
        piece->extent = *extent;
        piece->out = out;
        return;
    }
    struct iovec iov = {out, extent->length};
    piece_set_io(piece, STORE_IO_READ, extent->store, extent->host_offset, &iov, 1);
}

/* Encrypts into memory of its own: the bytes are the client's. */
static void write_encrypted(Transfer *transfer, const Extent *extent, const struct iovec *iov,
                            int count)
{
    uint8_t *sectors = g_try_malloc(extent->length);
    int r = sectors ? extent_encrypt(extent, iov, count, sectors) : -ENOMEM;
    if (r < 0) {
        g_free(sectors);
        transfer_fail(transfer, r);
        return;
    }
    Piece *piece = piece_new(transfer);
    piece->sectors = sectors;
    struct iovec all = {sectors, extent->length};
    piece_set_io(piece, STORE_IO_WRITE, extent->store, extent->host_offset, &all, 1);
}

void transfer_write(Transfer *transfer, const Extent *extent, const struct iovec *iov, int count)
{
    if (extent_is_encrypted(extent)) {
        write_encrypted(transfer, extent, iov, count);
        return;
    }
    Piece *piece = piece_new(transfer);
    piece_set_io(piece, STORE_IO_WRITE, extent->store, extent->host_offset, iov, count);
}

static int piece_try(Piece *piece)
{
    StoreIo *io = &piece->io;
    if (io->store == NULL) {
        return unitcache_copy(piece->transfer->disk->units, &piece->extent, piece->out) ? 0
                                                                                        : -EAGAIN;
    }
    return io->kind == STORE_IO_READ
               ? store_read_nowait(io->store, io->iov, io->iov_count, io->offset)
               : store_write_nowait(io->store, io->iov, io->iov_count, io->offset);
}

static void piece_submit(Piece *piece)
{
    if (piece->io.store != NULL) {
        store_submit(&piece->io);
        return;
    }
    piece->job.run = decode_job;
    pool_submit(piece->transfer->disk->pool, &piece->job);
}

void transfer_start(Transfer *transfer)
{
    transfer->pending = 1; /* ours, so that nothing finishes before all are started */
    for (Piece *piece = transfer->pieces; piece != NULL; piece = piece->next) {
        int r = piece_try(piece);
        r = r == 0 ? piece_arrived(piece) : r;
        if (r == -EAGAIN) {
            transfer->pending++;
            piece_submit(piece);
        } else {
            transfer_fail(transfer, r);
        }
    }
    if (--transfer->pending == 0) {
        transfer_finish(transfer);
    }
}

int transfer_read_nowait(Disk *disk, const Extent *extent, uint8_t *out)
{
    if (extent_is_zero(extent)) {
        memset(out, 0, extent->length);
        return 0;
    }
    if (extent->type == EXTENT_ENCODED) {
        return unitcache_copy(disk->units, extent, out) ? 0 : -EAGAIN;
    }
    bool encrypted = extent_is_encrypted(extent);
    if (encrypted && !extent_has_whole_sectors(extent)) {
        return -EAGAIN;
    }
    struct iovec iov = {out, extent->length};
    int r = store_read_nowait(extent->store, &iov, 1, extent->host_offset);
    return r == 0 && encrypted ? extent_decrypt(extent, out) : r;
}
