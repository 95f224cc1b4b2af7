/*
 * What the checks of several formats share. A finding is either still there at the end or fixed, so
 * whoever is told to mend it must do so, or end the check with an error.
 */
#include "formats/check-result.h"

#include <stdarg.h>

void check_result_say(const CheckResult *result, const char *format, ...)
{
    if (result->message) {
        va_list args;
        va_start(args, format);
        g_autofree char *text = g_strdup_vprintf(format, args);
        va_end(args);
        result->message(result->opaque, text);
    }
}

bool check_result_corruption(CheckResult *result, CheckRepair repair)
{
    bool mend = repair == CHECK_REPAIR_ALL;
    result->corruptions += !mend;
    result->corruptions_fixed += mend;
    return mend;
}
