#!/usr/bin/python3
"""contrib/xen/block-cownbd without Xen: xenstore is a folder, cownbd and /sys are made up.

What it does under the real toolstack is in tests/vm/xen-guest.sh.
"""

import os
import pathlib
import subprocess
import time

from cli import Workdir, expect, expect_equal

SCRIPT = pathlib.Path(os.environ["COWNBD_SOURCE"]) / "contrib/xen/block-cownbd"
FIRST = "/local/domain/0/backend/vbd/1/51712"
SECOND = "/local/domain/0/backend/vbd/2/51712"

# The four tools that the script calls, by the name under which it calls them.
XENSTORE = """#!/bin/bash
tool=${0##*/}
case $tool in
xenstore-write)
    while [[ $# -gt 1 ]]; do
        mkdir -p "$STORE$1" && printf '%s\\n' "$2" >"$STORE$1/.value"
        shift 2
    done
    ;;
xenstore-read) cat "$STORE$1/.value" ;;
xenstore-list) ls "$STORE$1" ;;
xenstore-rm) rm -r "$STORE$1" ;;
esac
"""

# Says what it was called with; `wait` in the folder: how often detach has to fail first; `fail`: what attach says.
# It has /dev/null for a device, as that is there everywhere and has a number.
COWNBD = """#!/bin/bash
printf '%s\\n' "$*" >>calls
ls -l /proc/self/fd >>descriptors
case $1 in
attach)
    if [[ -e fail ]]; then cat fail >&2; exit 1; fi
    mkdir -p sys/block/nbd0
    echo "cownbd:${@: -1}" >sys/block/nbd0/backend
    echo /dev/null
    ;;
detach)
    if [[ -s wait ]]; then
        left=$(($(<wait) - 1))
        if [[ $left -ge 0 ]]; then echo $left >wait; echo "cownbd: $2: is in use" >&2; exit 1; fi
    fi
    [[ -e sys/block/nbd0/backend ]] || { echo "cownbd: $2: is not attached" >&2; exit 1; }
    rm sys/block/nbd0/backend
    ;;
esac
"""


def program(path, text):
    path.write_text(text)
    path.chmod(0o755)


class Host:
    """A fresh host: its xenstore is empty and nothing is attached."""

    def __init__(self, name):
        self.top = pathlib.Path(name).absolute()
        (self.top / "bin").mkdir(parents=True)
        (self.top / "store").mkdir()
        for tool in ("read", "write", "list", "rm"):
            program(self.top / "bin" / f"xenstore-{tool}", XENSTORE)
        program(self.top / "bin/logger", "#!/bin/sh\n")
        program(self.top / "bin/cownbd", COWNBD)
        self.image = self.top / "x.qcow2"
        self.image.touch()

    def environment(self, backend):
        return dict(os.environ, PATH=f"{self.top}/bin:{os.environ['PATH']}", STORE=f"{self.top}/store",
                    XENBUS_PATH=backend, COWNBD=f"{self.top}/bin/cownbd", COWNBD_XEN_RUN=f"{self.top}/run",
                    COWNBD_XEN_SYS=f"{self.top}/sys", COWNBD_XEN_LIMIT="3")

    def tool(self, name, *arguments):
        return subprocess.run([self.top / "bin" / f"xenstore-{name}", *map(str, arguments)], check=False,
                              env=self.environment(""), capture_output=True, text=True).stdout.strip()

    def disk(self, backend, params=None, mode="w", vm=None):
        """What the toolstack writes before it calls the script."""
        domain = backend.split("/")[-2]
        self.tool("write", f"{backend}/params", params or self.image, f"{backend}/mode", mode,
                  f"{backend}/frontend-id", domain, f"/local/domain/{domain}/vm", vm or f"/vm/{domain}")

    def call(self, command, backend=FIRST):
        return subprocess.run([SCRIPT, command], cwd=self.top, env=self.environment(backend), timeout=60,
                              capture_output=True, text=True, check=False)

    def calls(self):
        path = self.top / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def status(self, backend=FIRST):
        return self.tool("read", f"{backend}/hotplug-status")

    def expect_added(self, backend=FIRST):
        result = self.call("add", backend)
        expect_equal(result.returncode, 0, result.stderr)
        expect_equal(self.status(backend), "connected", result.stderr)

    def expect_refused(self, *words, backend=FIRST):
        result = self.call("add", backend)
        error = self.tool("read", f"{backend}/hotplug-error")
        expect_equal(result.returncode, 1, result.stderr)
        expect_equal(self.status(backend), "error")
        expect(all(word in error for word in words), "the error lacks one of", words, error)
        expect_equal(self.tool("read", f"{backend}/physical-device"), "")


def adds_and_removes():
    host = Host("plain")
    host.disk(FIRST)
    host.expect_added()
    expect_equal(host.tool("read", f"{FIRST}/physical-device"), "1:3")
    expect_equal(host.tool("read", f"{FIRST}/physical-device-path"), "/dev/null")
    host.expect_added()
    expect_equal(host.calls(), [f"attach -- {host.image}"] * 2)
    for _ in range(2):
        expect_equal(host.call("remove").returncode, 0)
    expect_equal(host.calls(), [f"detach {host.image}"])
    # What cownbd leaves running must not hold the lock of the script that started it.
    expect(".lock" not in (host.top / "descriptors").read_text(), "cownbd inherits the lock")


def takes_options():
    host = Host("options")
    host.disk(FIRST, f"{host.image},fast-path=off,name=a,,b,dead-timeout=60", mode="r")
    host.expect_added()
    expect_equal(host.calls(), [f"attach --read-only --fast-path=off --name=a,b --dead-timeout=60 -- {host.image}"])
    strange = host.top / "one, two,,'$(x).qcow2"
    strange.touch()
    host.disk(FIRST, str(strange).replace(",", ",,"))
    host.expect_added()
    expect_equal(host.calls(), [f"attach -- {strange}"])


def follows_links():
    host = Host("links")
    (host.top / "link").symlink_to(host.image)
    host.disk(FIRST, host.top / "link")
    host.expect_added()
    expect_equal(host.calls(), [f"attach -- {host.image}"])


def refuses_wrong_targets():
    host = Host("wrong")
    for params, word in ((f"{host.image},b.qcow2", "'b.qcow2'"), (f"{host.image},", "''"),
                         (f"{host.image},adopt=yes", "'adopt=yes'"), (f"{host.image},=x", "'=x'"),
                         (f"{host.image},fast-path", "'fast-path'")):
        host.disk(FIRST, params)
        host.expect_refused(word, "written twice")
    host.disk(FIRST, "x.qcow2")
    host.expect_refused("no absolute path")
    host.disk(FIRST, "/nowhere/x.qcow2")
    host.expect_refused("/nowhere/x.qcow2", "no such image")
    expect_equal(host.calls(), [])
    expect_equal(host.call("online").returncode, 1)


def tells_why_attach_failed():
    host = Host("fails")
    (host.top / "fail").write_text("some warning\ncownbd: x: the kernel has no nbd: modprobe nbd\n")
    host.disk(FIRST)
    host.expect_refused("the kernel has no nbd")
    # The toolstack cleans up after a failure: there is nothing to wait for.
    start = time.monotonic()
    expect_equal(host.call("remove").returncode, 0)
    expect(time.monotonic() - start < 2, "remove waited for nothing")


def waits_for_the_backend():
    host = Host("waits")
    host.disk(FIRST)
    host.expect_added()
    (host.top / "wait").write_text("3")
    host.calls()
    expect_equal(host.call("remove").returncode, 0)
    expect_equal(len(host.calls()), 4)
    host.expect_added()
    (host.top / "wait").write_text("1000")
    result = host.call("remove")
    expect_equal(result.returncode, 1)
    expect("is in use" in result.stderr, result.stderr)
    # Not forgotten: the next call takes it up.
    (host.top / "wait").write_text("0")
    host.calls()
    expect_equal(host.call("remove").returncode, 0)
    expect_equal(len(host.calls()), 1)


def one_writer():
    host = Host("writers")
    host.disk(FIRST)
    host.expect_added()
    host.calls()
    for mode in ("w", "r"):
        host.disk(SECOND, mode=mode)
        host.expect_refused("domain 1", "overlay", backend=SECOND)
    # The toolstack removes what it could not add: the first domain keeps its disk.
    expect_equal(host.call("remove", SECOND).returncode, 0)
    expect_equal(host.calls(), [])
    host.disk(SECOND, mode="w!")
    host.expect_added(SECOND)
    # The last one detaches.
    for backend, calls in ((FIRST, []), (SECOND, [f"detach {host.image}"])):
        host.calls()
        expect_equal(host.call("remove", backend).returncode, 0)
        expect_equal(host.calls(), calls)


def many_readers():
    host = Host("readers")
    for backend in (FIRST, SECOND):
        host.disk(backend, mode="r")
        host.expect_added(backend)
    expect_equal(host.calls(), [f"attach --read-only -- {host.image}"] * 2)


def the_same_guest_moves():
    host = Host("moves")
    host.disk(FIRST, vm="/vm/7")
    host.expect_added()
    host.disk(SECOND, vm="/vm/7")
    host.expect_added(SECOND)
    host.calls()
    expect_equal(host.call("remove").returncode, 0)
    expect_equal(host.calls(), [])


def refuses_what_is_used_here():
    host = Host("here")
    holders = host.top / "sys/dev/block/1:3/holders"
    (holders / "dm-7").mkdir(parents=True)
    host.disk(FIRST)
    host.expect_refused("dm-7")
    host.calls()
    expect_equal(host.call("remove").returncode, 0)
    expect_equal(host.calls(), [], "what was attached by hand stays")
    host.disk(FIRST, mode="w!")
    host.expect_added()


with Workdir():
    adds_and_removes()
    takes_options()
    follows_links()
    refuses_wrong_targets()
    tells_why_attach_failed()
    waits_for_the_backend()
    one_writer()
    many_readers()
    the_same_guest_moves()
    refuses_what_is_used_here()
