/*
 * Copying up: what a unit of the disk reads as becomes data of the image itself. May block. [pool]
 */
#ifndef FORMATS_COPYUP_H
#define FORMATS_COPYUP_H

#include <stdint.h>

#include "map/image.h"

/* Allocates the range, which lies in one unit that is not writable, and commits it with what it reads as. What lies
 * behind it in the unit is the format's. 0 or -errno. [exclusive] */
int copy_up(Image *image, uint64_t offset, uint64_t length);

#endif
