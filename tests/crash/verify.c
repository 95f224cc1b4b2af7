/*
 * Whether a state of an image is good.
 *
 * First it is opened read-only and read as a whole, then opened for writing, as the next start of a
 * server would, and checked. The order matters: opening for writing may change the image.
 */
#include "verify.h"

#include <string.h>

void verifier_init(Verifier *verifier, const Fixture *fixture, Machine *machine)
{
    *verifier = (Verifier){.fixture = fixture, .machine = machine};
    verifier->disk = g_malloc(fixture->setup->disk_size);
}

static bool corrupt(Findings *findings, const char *what, const char *detail)
{
    findings->corrupt++;
    findings_say(findings, "%s: %s", what, detail);
    return false;
}

static bool read_disk(Verifier *verifier, const ImageFiles *files, Findings *findings)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(verifier->fixture, files, false, &error);
    if (!image) {
        return corrupt(findings, "does not open read-only", error->message);
    }
    const Setup *setup = verifier->fixture->setup;
    bool may_be_smaller = setup->resizes || setup->created_size;
    if (image->size > setup->disk_size || (image->size < setup->disk_size && !may_be_smaller)) {
        return corrupt(findings, "opens", "with another size of the disk");
    }
    memset(verifier->disk + image->size, 0, setup->disk_size - image->size);
    int r = chain_read(image, verifier->disk, image->size, 0);
    return r == 0 || corrupt(findings, "cannot be read", g_strerror(-r));
}

static void check_message(void *opaque, const char *text)
{
    findings_say(opaque, "    check: %s", text);
}

static bool check_image(Verifier *verifier, const ImageFiles *files, VerifyLeaks leaks,
                        Findings *findings)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Image) image = fixture_open(verifier->fixture, files, true, &error);
    if (!image) {
        return corrupt(findings, "does not open for writing", error->message);
    }
    if (!image->format->check) {
        return true;
    }
    Findings messages;
    findings_init(&messages);
    CheckResult result = {.message = check_message, .opaque = &messages};
    bool checked = image->format->check(image, CHECK_REPORT_ONLY, &result, &error);
    bool good = true;
    if (!checked) {
        good = corrupt(findings, "cannot be checked", error->message);
    } else if (result.corruptions || result.check_errors) {
        good = corrupt(findings, "check finds corruption", messages.text->str);
    } else if (result.leaks && leaks == VERIFY_NO_LEAKS) {
        good = corrupt(findings, "leaks after an orderly end", messages.text->str);
    }
    verifier->leaking += checked && result.leaks;
    findings_clear(&messages);
    return good;
}

bool verify_state(Verifier *verifier, const ImageFiles *files, Model *model, VerifyLeaks leaks,
                  Findings *findings)
{
    if (!read_disk(verifier, files, findings)) {
        return false;
    }
    bool allowed = model_check(model, verifier->disk, findings);
    return check_image(verifier, files, leaks, findings) && allowed;
}
