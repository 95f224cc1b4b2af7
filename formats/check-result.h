/*
 * What the checks of several formats share: saying a finding, counting it. Pure. [any]
 */
#ifndef FORMATS_CHECK_RESULT_H
#define FORMATS_CHECK_RESULT_H

#include <stdarg.h>

#include "formats/format.h"

/* One line for who listens; after some thousand of them, that there are more: a broken table would give millions. */
void check_result_say(CheckResult *result, const char *format, ...) G_GNUC_PRINTF(2, 3);
void check_result_say_va(CheckResult *result, const char *format, va_list args) G_GNUC_PRINTF(2, 0);

/* One more corruption; true when it is to be mended, and it counts as fixed then. */
bool check_result_corruption(CheckResult *result, CheckRepair repair);

#endif
