/*
 * A format for tests: the first bytes of the store are letters, one for each unit of 4 KiB of the
 * disk.
 *
 *     .  not here         Z  zeroes         D  data, at host offset 4096 * (1 + unit)
 *     E  encoded: one stored byte, at host offset 4096 * (1 + unit), which fills the unit
 *
 *  and answers that a format may not give, for the check of answers:
 *
 *     N  DATA that says it is NEW           W  DATA that says it is WRITABLE
 *     S  DATA without a store               O  DATA far beyond the end of the store
 *     G  begins one unit too late           L  goes on one unit beyond the range
 *     0  nothing at all                     X  ENCODED, larger than its unit
 *     T  an unknown type                    I  -EIO
 */
#ifndef TESTS_LIB_FORMAT_LETTERS_H
#define TESTS_LIB_FORMAT_LETTERS_H

#include "formats/format.h"

#define LETTERS_UNIT 4096u

extern const Format format_letters;

/* An image in memory with these letters; data of unit u is the byte fill + u. Aborts when it cannot
 * be opened. */
Image *letters_open(const char *letters, uint8_t fill, Image *backing);

#endif
