/*
 * What a range of a disk reads as, for tools: its map with the holes of the host files taken out,
 * and its bytes.
 *
 * Ranges may reach beyond the end of the disk: it reads as zeroes there, so that disks of different
 * sizes can be compared and copied. Any thread, blocks; the image is not changed meanwhile.
 */
#ifndef TOOLS_READER_H
#define TOOLS_READER_H

#include "map/extent.h"
#include "map/image.h"

/* Appends the map of all of the range: ZERO (image is NULL where no image has it) or what must be
 * read. 0 or -errno. */
int reader_map(Image *image, uint64_t offset, uint64_t length, ExtentList *list);

/* Fills buffer with the bytes of a range that lies in a list that reader_map made. 0 or -errno. */
int reader_read(const ExtentList *list, uint64_t offset, uint64_t length, uint8_t *buffer);

bool reader_all_zero(const ExtentList *list);

/* How many bytes of a disk lie in units that hold data, as far as the map says; whole units are
 * counted. 0 or -errno. */
int reader_count_data(Image *image, uint64_t unit, uint64_t *bytes);

/* Up to where, beginning at offset, the map says zeroes without a look at any data: at most `limit`,
 * offset itself when that is not even the next byte. Answers what costs little, not what is the
 * most. */
uint64_t reader_zero_until(Image *image, uint64_t offset, uint64_t limit);

/* True when both give the same bytes for sure, because they lie at one place of one file. They are
 * of one range. */
bool reader_same_place(const Extent *a, const Extent *b);

#endif
