/*
 * What the checks of several formats share. A finding is either still there at the end or fixed, so
 * whoever is told to mend it must do so, or end the check with an error.
 */
#include "formats/check-result.h"

#define MESSAGES_MAX 2000

void check_result_say_va(CheckResult *result, const char *format, va_list args)
{
    if (!result->message || result->messages > MESSAGES_MAX) {
        return;
    }
    bool last = result->messages++ == MESSAGES_MAX;
    g_autofree char *text = g_strdup_vprintf(format, args);
    result->message(result->opaque, last ? "(more, which are not shown)" : text);
}

void check_result_say(CheckResult *result, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    check_result_say_va(result, format, args);
    va_end(args);
}

bool check_result_corruption(CheckResult *result, CheckRepair repair)
{
    bool mend = repair == CHECK_REPAIR_ALL;
    result->corruptions += !mend;
    result->corruptions_fixed += mend;
    return mend;
}
