/*
 * What the checks of several formats share: saying a finding, counting it. Pure. [any]
 */
#ifndef FORMATS_CHECK_RESULT_H
#define FORMATS_CHECK_RESULT_H

#include "formats/format.h"

/* One line for who listens. */
void check_result_say(const CheckResult *result, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* One more corruption; true when it is to be mended, and it counts as fixed then. */
bool check_result_corruption(CheckResult *result, CheckRepair repair);

#endif
