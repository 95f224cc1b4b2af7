"""A server's sandbox, and the user it becomes."""
import ctypes
import os
import pwd
import subprocess
import sys
import tempfile

import wire
from handover import Relay
from log import ALONE

LANDLOCK_CREATE_RULESET, VERSION = 444, 1


def files_are_restricted():
    """Whether this kernel has Landlock."""
    return ctypes.CDLL(None).syscall(LANDLOCK_CREATE_RULESET, None, 0, VERSION) > 0


def status_of(pid):
    with open(f"/proc/{pid}/status") as status:
        return dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)


def filters(pid):
    return int(status_of(pid)["Seccomp_filters"])


def refused(*options):
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(4096)
        result = subprocess.run([os.environ["COWNBD"], "serve", "-l", "none", "--control", "none", *options, image.name],
                                capture_output=True, text=True, timeout=wire.TIMEOUT)
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result
    return result.stderr


def test_on_and_off():
    own = filters("self")
    for options, more in (((), 1), (("--sandbox=on",), 1), (("--sandbox=off",), 0)):
        with Relay(*options) as server:
            assert filters(server.pid) == own + more
            for task in os.listdir(f"/proc/{server.pid}/task"):
                assert filters(f"{server.pid}/task/{task}") == own + more, "a thread was left out"


def test_makes_the_directory_of_its_socket():
    """On a machine where no server has run yet, and before files are restricted."""
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as run:
        image = os.path.join(directory, "image")
        with open(image, "wb") as out:
            out.truncate(4096)
        serve = [os.environ["COWNBD"], "serve", "-f", "raw", "-l", f"unix:{directory}/socket", image]
        with subprocess.Popen([*ALONE, run, *serve], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            try:
                listening = server.stdout.readline()
                control = os.path.join(run, "cownbd/control.sock")
                answer = subprocess.run([os.environ["COWNBD"], "stats", "--json", "--control", control],
                                        capture_output=True, text=True, timeout=wire.TIMEOUT)
            finally:
                server.terminate()
            errors = server.communicate(timeout=wire.TIMEOUT)[1]
        assert listening.startswith("listening on ") and answer.returncode == 0, (errors, answer.stderr)
        assert (server.returncode, errors) == (0, "")


def test_stays_the_same_from_process_to_process():
    with Relay() as server:
        before = filters(server.pid)
        for _ in range(3):
            server.handover()
            assert filters(server.pid) == before
        with server.connect() as client:
            client.go().read(0, 512)


def test_images_that_come_later():
    with tempfile.TemporaryDirectory() as elsewhere, tempfile.TemporaryDirectory() as allowed:
        with Relay("--allow-path", allowed) as server:
            for directory in (server.directory, allowed, elsewhere):
                path = os.path.join(directory, "more.raw")
                with open(path, "wb") as image:
                    image.truncate(4096)
                result = server.ctl("add", path, "--name", directory)
                if directory == elsewhere and files_are_restricted():
                    assert result.returncode == 1 and "the sandbox has files beside" in result.stderr, result
                else:
                    assert result.returncode == 0, result


def test_no_block_devices_inside():
    with Relay() as server:
        result = server.ctl("attach", "image=" + server.images[0])
        assert result.returncode == 1 and "start it with --sandbox=off" in result.stderr, result
    assert "block devices" in refused("--sandbox=on", "--attach")


def test_goes_on_as_somebody_else():
    somebody = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    with Relay("--user", somebody.pw_name) as server:
        for task in os.listdir(f"/proc/{server.pid}/task"):
            status = status_of(f"{server.pid}/task/{task}")
            assert set(status["Uid"].split()) == {str(somebody.pw_uid)}, status
            assert set(status["Gid"].split()) == {str(somebody.pw_gid)}, status
            assert "0" not in status["Groups"].split() or os.getuid() != 0
            if os.getuid() == 0:
                assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        with server.connect() as client:
            client.go()
            assert client.write(0, b"x" * 4096) == 0
            assert client.read(0, 4096) == b"x" * 4096


def test_root_keeps_few_capabilities():
    kept = sum(1 << capability for capability in (0, 1, 2, 3, 10, 14))  # docs/sandbox.md names them
    with Relay() as server:
        for _ in range(2):
            for task in os.listdir(f"/proc/{server.pid}/task"):
                status = status_of(f"{server.pid}/task/{task}")
                for which in ("CapPrm", "CapEff"):
                    assert int(status[which], 16) & ~kept == 0, status
            server.handover()
        with server.connect() as client:
            assert client.go().write(0, b"x" * 4096) == 0


def test_refused():
    assert "must be on or off" in refused("--sandbox=maybe")
    assert "there is no such user" in refused("--user", "no:body")
    assert "there is no such group" in refused("--group", "no:body")
    assert "need a server that is root" in refused("--user", "nobody", "--attach") or os.getuid()


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
