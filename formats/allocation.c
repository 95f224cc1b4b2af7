/*
 * What formats that answer allocate and commit share: going over the ranges, and saying where one goes.
 *
 * What must stay true: the extents of a range follow each other from its start, and a range whose result is an error
 * has none.
 */
#include "formats/allocation.h"

int allocation_reserve_all(Image *image, Allocation **list, unsigned count, int refused,
                           AllocationStep reserve)
{
    int first_error = 0;
    for (unsigned i = 0; i < count; i++) {
        Allocation *a = list[i];
        extent_list_reset(&a->extents);
        a->result = refused < 0 ? refused : reserve(image, a);
        if (a->result < 0) {
            extent_list_reset(&a->extents);
        }
        first_error = first_error < 0 ? first_error : a->result;
    }
    return first_error;
}

int allocation_commit_all(Image *image, Allocation **list, unsigned count, AllocationStep commit)
{
    int first_error = 0;
    for (unsigned i = 0; i < count; i++) {
        list[i]->result = commit(image, list[i]);
        first_error = first_error < 0 ? first_error : list[i]->result;
    }
    return first_error;
}

static uint64_t next_offset(const Allocation *a)
{
    return a->extents.count > 0 ? extent_list_end(&a->extents) : a->offset;
}

void allocation_add(Image *image, Allocation *a, Store *store, uint64_t host_offset,
                    uint64_t length, bool fresh)
{
    Extent extent = {
        .offset = next_offset(a),
        .length = length,
        .host_offset = host_offset,
        .store = store,
        .image = image,
        .type = EXTENT_DATA,
        .flags = EXTENT_NEW | (fresh ? EXTENT_FRESH : 0),
    };
    extent_list_add(&a->extents, &extent);
}

void allocation_add_encoded(Image *image, Allocation *a, uint64_t host_offset)
{
    Extent extent = {
        .offset = a->offset,
        .length = a->length,
        .host_offset = host_offset,
        .store = image->store,
        .image = image,
        .stored_length = a->stored_length,
        .unit_length = image->largest_unit,
        .type = EXTENT_ENCODED,
        .flags = EXTENT_NEW,
    };
    extent_list_add(&a->extents, &extent);
}
