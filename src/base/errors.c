/*
 * Errors of the control path: one line of text and an errno value.
 *
 * Messages quote names that images chose. Control characters in them are shown as '?', as in the log.
 */
#include "base/errors.h"

#include "base/log-sink.h"

G_DEFINE_QUARK(cownbd - error - quark, cownbd_error)

bool error_set(GError **error, int errno_code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    GError *made = g_error_new_valist(COWNBD_ERROR, errno_code, format, args);
    va_end(args);
    log_make_harmless(made->message);
    g_propagate_error(error, made);
    return false;
}

bool error_set_errno(GError **error, int errno_code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    g_autofree char *text = g_strdup_vprintf(format, args);
    va_end(args);
    return error_set(error, errno_code, "%s: %s", text, g_strerror(errno_code));
}
