/*
 * Copying up: what a unit of the disk reads as becomes data of the image itself. May block. [pool]
 */
#ifndef FORMATS_COPYUP_H
#define FORMATS_COPYUP_H

#include <stdint.h>

#include "map/image.h"

/* Allocates the range, which begins with a unit, and commits it with what it reads as. What lies behind it in its last
 * unit is the format's. 0 or -errno. [exclusive] */
int copy_up(Image *image, uint64_t offset, uint64_t length);

/* The same for all of the range that is not writable where it lies: afterwards the image has all of it itself, also
 * what it reads as because nothing is there. The range begins and ends with units, or at the end of the disk. */
int copy_up_all(Image *image, uint64_t offset, uint64_t length);

#endif
