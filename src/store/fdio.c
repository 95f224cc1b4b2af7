/*
 * Whole transfers on a file descriptor.
 *
 * A short transfer ends inside one entry of the vector. The rest of that entry goes by a transfer
 * of its own, then the vector goes on with the next entry: so nothing is copied and the caller's
 * array is not changed.
 */
#include "store/fdio.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"

/* The part of a vector that is still to do: entries from iov, of the first all but `skip` bytes. */
typedef struct Rest {
    const struct iovec *iov;
    int count;
    size_t skip;
} Rest;

/* False when nothing is left. */
static bool rest_advance(Rest *rest, size_t by)
{
    rest->skip += by;
    while (rest->count > 0 && rest->skip >= rest->iov->iov_len) {
        rest->skip -= rest->iov->iov_len;
        rest->iov++;
        rest->count--;
    }
    return rest->count > 0;
}

/* The next piece for one system call: first gives room for a shortened entry. */
static const struct iovec *rest_piece(const Rest *rest, struct iovec *first, int *count)
{
    if (rest->skip == 0) {
        *count = rest->count < IOV_MAX ? rest->count : IOV_MAX;
        return rest->iov;
    }
    first->iov_base = (char *)rest->iov->iov_base + rest->skip;
    first->iov_len = rest->iov->iov_len - rest->skip;
    *count = 1;
    return first;
}

uint64_t iov_length(const struct iovec *iov, int count)
{
    uint64_t length = 0;
    for (int i = 0; i < count; i++) {
        length += iov[i].iov_len;
    }
    return length;
}

void iov_zero_from(const struct iovec *iov, int count, uint64_t skip)
{
    for (int i = 0; i < count; i++) {
        size_t keep = min_u64(skip, iov[i].iov_len);
        if (keep < iov[i].iov_len) {
            memset((char *)iov[i].iov_base + keep, 0, iov[i].iov_len - keep);
        }
        skip -= keep;
    }
}

int fdio_read(int fd, const struct iovec *iov, int count, uint64_t offset)
{
    Rest rest = {iov, count, 0};
    for (bool more = rest_advance(&rest, 0); more;) {
        struct iovec first;
        int pieces;
        const struct iovec *piece = rest_piece(&rest, &first, &pieces);
        ssize_t n = preadv(fd, piece, pieces, offset);
        if (n == 0) {
            iov_zero_from(rest.iov, rest.count, rest.skip);
            return 0;
        }
        if (n < 0 && errno != EINTR) {
            return -errno;
        }
        if (n > 0) {
            offset += n;
            more = rest_advance(&rest, n);
        }
    }
    return 0;
}

int fdio_write(int fd, const struct iovec *iov, int count, uint64_t offset, uint64_t *end)
{
    Rest rest = {iov, count, 0};
    int result = 0;
    for (bool more = rest_advance(&rest, 0); more && result == 0;) {
        struct iovec first;
        int pieces;
        const struct iovec *piece = rest_piece(&rest, &first, &pieces);
        ssize_t n = pwritev(fd, piece, pieces, offset);
        if (n > 0) {
            offset += n;
            more = rest_advance(&rest, n);
        } else if (n == 0) {
            result = -ENOSPC; /* a device that has no more room may say so */
        } else if (errno != EINTR) {
            result = -errno;
        }
    }
    if (end != NULL) {
        *end = offset;
    }
    return result;
}
