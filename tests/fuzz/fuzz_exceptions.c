/*
 * Fuzz target: a dm-snapshot store made of any bytes is read. It is either refused with an error, or
 * what it says is inside it, in order, and nothing twice.
 */
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "fastpath/exceptions.h"
#include "store-memory.h"

#define DISK (4u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void check_list(const Exceptions *list, uint64_t store_size)
{
    g_autofree uint64_t *places = g_new(uint64_t, list->count + 1);
    for (uint64_t i = 0; i < list->count; i++) {
        const Exception *item = &list->items[i];
        g_assert(item->origin < div_round_up(DISK, list->chunk));
        g_assert(i == 0 || item->origin > item[-1].origin);
        g_assert(range_within(exceptions_offset(list, 0, item->store), list->chunk, store_size));
        places[i] = item->store;
    }
    qsort(places, list->count, sizeof *places, compare);
    for (uint64_t i = 1; i < list->count; i++) {
        g_assert(places[i] != places[i - 1]);
    }
    g_assert(list->chunks_used * list->chunk <= store_size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Store) store = store_memory_new("fuzz", data, size);
    Exceptions list;
    bool good = exceptions_read(store, 0, DISK, &list, &error);
    g_assert(good == (error == NULL));
    if (good) {
        check_list(&list, size);
        exceptions_clear(&list);
    }
    return 0;
}
