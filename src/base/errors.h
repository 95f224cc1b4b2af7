/*
 * Errors of the control path (open, create, check, configuration).
 *
 * The code of a GError of this domain is an errno value: ENOENT, EACCES, EINVAL (the caller asked
 * for something impossible), EUCLEAN (the image is damaged), ENOTSUP (valid, but not supported
 * here), EBUSY (locked by another). The message is one line: which file, which field, which value,
 * what would be right.
 *
 * The data path does not use GError: 0 or a negative errno. [any]
 */
#ifndef BASE_ERRORS_H
#define BASE_ERRORS_H

#include <errno.h>
#include <stdbool.h>
#include <glib.h>

#define COWNBD_ERROR (cownbd_error_quark())
GQuark cownbd_error_quark(void);

/* Sets *error (if error is not NULL) and returns false, so that a check is one line:
 *     return error_set(error, EUCLEAN, "%s: cluster_bits is %u: must be 9 to 21", ...); */
bool error_set(GError **error, int errno_code, const char *format, ...) G_GNUC_PRINTF(3, 4);

/* The same, with ": " and the text of errno_code at the end. */
bool error_set_errno(GError **error, int errno_code, const char *format, ...) G_GNUC_PRINTF(3, 4);

#endif
