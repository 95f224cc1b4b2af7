/*
 * vmdk: the content ID, by which children know their parent.
 *
 * It is changed in place, before the guest's data are changed for the first time: eight hexadecimal digits in the
 * descriptor, wherever that lies. A cut in the middle of a sector leaves the old sector or the new one, so only digits
 * that lie in one sector are changed. A shorter number keeps its length.
 */
#include "base/bytes.h"
#include "formats/vmdk-impl.h"

uint32_t vmdk_cid(const Image *image)
{
    return vmdk_state(image)->descriptor->cid;
}

uint32_t vmdk_cid_new(uint32_t other)
{
    uint32_t cid;
    do {
        cid = g_random_int();
    } while (cid == 0 || cid == other || cid >= VMDK_NO_PARENT - 1);
    return cid;
}

/* Where the descriptor begins in image->store. */
static uint64_t descriptor_offset(const VmdkState *state)
{
    return state->embedded ? state->extents[0].sparse->descriptor_offset : 0;
}

int vmdk_cid_change(Image *image)
{
    VmdkState *state = image->state;
    VmdkDescriptor *descriptor = state->descriptor;
    if (descriptor->cid_digits == 0) {
        return 0; /* COWD without a descriptor: it has no CID, and nobody's parent can it be */
    }
    uint64_t start = descriptor_offset(state) + descriptor->cid_at;
    uint64_t end = start + descriptor->cid_digits;
    uint64_t from = max_u64(start, align_down(end - 1, VMDK_SECTOR)); /* the last sector's digits */
    uint32_t mask = UINT32_MAX >> (32 - 4 * (end - from)), cid;
    do {
        cid = (descriptor->cid & ~mask) | (vmdk_cid_new(0) & mask);
    } while (cid == descriptor->cid || cid >= VMDK_NO_PARENT - 1);
    char digits[9];
    g_snprintf(digits, sizeof digits, "%08x", cid);
    int r = store_write(image->store, digits + 8 - (end - from), end - from, from);
    if (r == 0) {
        descriptor->cid = cid;
    }
    return r;
}
