/* Fuzz target: a dmg image made of any bytes (fuzz-image.h). */
#include "fuzz-image.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    fuzz_image_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_image(&format_dmg, data, size);
    return 0;
}
