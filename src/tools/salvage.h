/*
 * What a damaged disk still reads as: what cannot be read is zeroes, and noted. For convert --salvage. Any thread; blocks.
 */
#ifndef TOOLS_SALVAGE_H
#define TOOLS_SALVAGE_H

#include <glib.h>

#include "tools/reader.h"

typedef struct Salvage Salvage;

/* A range of the disk that could not be read. */
typedef struct SalvageLoss {
    uint64_t offset, length;
    int error; /* the first errno met there */
} SalvageLoss;

Salvage *salvage_new(void);
void salvage_free(Salvage *salvage);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Salvage, salvage_free)

/* The losses (SalvageLoss) in the order of the disk, neighbours joined. Call it when nobody reads any more; owned by
 * salvage. */
const GArray *salvage_losses(Salvage *salvage);

/* reader_map and reader_read, which fail for want of memory only. salvage NULL: exactly these. */
int salvage_map(Salvage *salvage, Image *image, uint64_t offset, uint64_t length, ExtentList *list);
int salvage_read(Salvage *salvage, const ExtentList *list, uint64_t offset, uint64_t length,
                 uint8_t *buffer);

#endif
