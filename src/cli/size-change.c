/* Sizes of resize: parsed here for the command and for the verb. */
#include "cli/size-change.h"

#include <inttypes.h>

#include "base/bytes.h"
#include "base/errors.h"
#include "formats/option.h"

bool size_change_parse(const char *text, SizeChange *change, GError **error)
{
    change->sign = *text == '+' || *text == '-' ? *text : 0;
    return option_parse_size(text + (change->sign != 0), &change->bytes) ||
           error_set(error, EINVAL,
                     "size is '%s': must be a number of bytes, or one with K, M, G, T, P or E, "
                     "perhaps with + or - before it",
                     text);
}

bool size_change_apply(const SizeChange *change, uint64_t size, uint64_t *result, GError **error)
{
    *result = change->bytes;
    if (change->sign == '-') {
        *result = size - change->bytes;
        return change->bytes <= size ||
               error_set(error, EINVAL,
                         "the disk has %" PRIu64 " bytes: cannot lose %" PRIu64 " of them", size,
                         change->bytes);
    }
    return change->sign == 0 || add_u64(size, change->bytes, result) ||
           error_set(error, EFBIG, "the disk has %" PRIu64 " bytes: %" PRIu64 " more are too many",
                     size, change->bytes);
}
