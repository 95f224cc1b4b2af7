/* Requests: making one ready for use and for the next use. */
#include "engine/request.h"

#include <string.h>

void request_init(Request *request)
{
    memset(request, 0, sizeof *request);
    extent_list_init(&request->extents);
}

void request_clear(Request *request)
{
    extent_list_clear(&request->extents);
}
