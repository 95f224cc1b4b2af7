#!/usr/bin/python3
"""Gives hostile images to every command that opens one: each is refused in one line, or read, within limits.

    run.py SANITIZER [CASE-GLOB...]         COWNBD: the program; SANITIZER: what it was built with, or none

make.py makes the images. A case goes to `info`, `map`, `check` and `convert`, and to one server as an export that a
client reads. It fails when

  * the program ends by a signal, by a sanitizer, by a complaint of GLib about how it is used, or not at all,
  * a refusal is not one line that names the file, and the field and value that the case says,
  * it takes more than a second of processor or, in a build without sanitizers, more than 64 MiB.

COWNBD_TEST_SCALE is the percentage of the pairs of case and command that are tried; the server gets all cases.
"""
import concurrent.futures
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import nbd

MIB = 1 << 20
COMMANDS = ["info", "map", "check", "convert"]
COWNBD = os.environ["COWNBD"]
SANITIZED = sys.argv[1] != "none"
CPU_MOST = 10 if SANITIZED else 1        # seconds
MEMORY_MOST = 64 * MIB
PATIENCE = 240                           # seconds, after which something hangs
READ_PIECE, READ_MOST = 4 * MIB, 64 * MIB
STATUSES = {"info": (0, 1), "map": (0, 1), "check": (0, 1, 2, 3, 63), "convert": (0, 1)}

failures = []
most = {"cpu": (0, ""), "memory": (0, "")}


def fail(case, command, *what):
    failures.append("%s, %s: %s" % (case.name, command, " ".join(map(str, what))))
    print("FAIL", failures[-1], flush=True)


def note(case, command, cpu, memory):
    """The limits, and the worst of what was seen."""
    for key, value in (("cpu", cpu), ("memory", memory)):
        most[key] = max(most[key], (value, "%s, %s" % (case.name, command)))
    if cpu > CPU_MOST:
        fail(case, command, "took %.2f s of processor" % cpu)
    if memory > MEMORY_MOST and not SANITIZED:
        fail(case, command, "took %d MiB of memory" % (memory // MIB))


class Case:
    """Of make.py; case.py says what its members mean."""

    def __init__(self, name, top, words, at):
        self.name, self.words, self.at = name, words, at
        self.path = os.path.join(name, top)


def make_cases(wanted):
    """In another process: what this one has in memory would count as that of those that it starts."""
    subprocess.run([sys.executable, "-B", pathlib.Path(__file__).with_name("make.py"), ".", *wanted], check=True)
    with open("cases.json") as file:
        return [Case(**case) for case in json.load(file)]


# ---- the commands ----

def arguments(case, command):
    if command == "convert":
        return ["convert", "-O", "raw", "-S", "64k", case.path, case.name + ".out"]
    return [command, "--json", case.path] if command == "map" else [command, case.path]


def run(case, command):
    """(exit status, or minus the signal; stderr), with the limits looked at."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([COWNBD, *arguments(case, command)], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=said)
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (60 * CPU_MOST, 60 * CPU_MOST))
        end = os.pidfd_open(process.pid)
        if not select.select([end], [], [], PATIENCE)[0]:
            process.kill()
        os.close(end)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        note(case, command, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
        return process.returncode, said.read(1 << 20).decode(errors="replace")


def errors_in(text):
    return [line for line in text.splitlines() if line.startswith("cownbd: ")]


def check_refusal(case, command, status, text):
    lines = text.splitlines()
    if status != 1 or len(lines) != 1:
        fail(case, command, "must be refused in one line, exit status 1, but:", status, text)
    elif not lines[0].startswith("cownbd: ") or not all(word in lines[0] for word in (case.name + "/", *case.words)):
        fail(case, command, "does not name", case.words, ":", text)


def check_command(case, command):
    status, text = run(case, command)
    if command == "convert" and os.path.exists(case.name + ".out"):
        os.unlink(case.name + ".out")
    if status not in STATUSES[command] or "Sanitizer" in text or "runtime error" in text:
        fail(case, command, "exit", status, text)
    elif case.at == "open" or (case.at == "chain" and command in ("map", "convert")):
        check_refusal(case, command, status, text)
    elif status == 1 and case.name not in text and not text.startswith("ERROR "):
        fail(case, command, "does not name the file:", text)
    elif case.at == "read" and command == "info" and status != 0:
        fail(case, command, "must be opened:", text)
    elif case.at == "read" and command == "convert":
        if status != 1 or not all(word in text for word in case.words):
            fail(case, command, "must fail and name", case.words, ":", status, text)


def chosen_pairs(cases):
    """Each case once, with another command each, before any of them twice; so a part of it is a part of each."""
    shuffled = list(cases)
    random.Random(1).shuffle(shuffled)
    pairs = [(case, COMMANDS[(index + turn) % len(COMMANDS)])
             for turn in range(len(COMMANDS)) for index, case in enumerate(shuffled)]
    scale = int(os.environ.get("COWNBD_TEST_SCALE") or 100)
    return pairs[:max(1, len(pairs) * min(scale, 100) // 100)]


def check_commands(cases):
    pairs = chosen_pairs(cases)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(check_command, *pair) for pair in pairs]:
            done.result()
    return len(pairs)


# ---- the server ----

class Server:
    """One process to which each image is added, and from which it is removed again."""

    def __enter__(self):
        self.said = open("server.log", "w+b")
        self.process = subprocess.Popen([COWNBD, "serve", "--listen=unix:nbd.sock", "--control=control.sock",
                                         "--config=server.conf"], stdout=subprocess.DEVNULL, stderr=self.said)
        self.clock = (~self.process.pid << 3) | 2  # clock_getcpuclockid(3) of that process
        self.control = self.connect()
        return self

    def connect(self):
        end = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < end:
            try:
                control = socket.socket(socket.AF_UNIX)
                control.settimeout(PATIENCE)
                control.connect("control.sock")
                return control.makefile("rw")
            except (FileNotFoundError, ConnectionRefusedError):
                control.close()
                time.sleep(0.05)
        raise SystemExit("the server does not answer: " + pathlib.Path("server.log").read_text())

    def ask(self, **request):
        self.control.write(json.dumps(request) + "\n")
        self.control.flush()
        return json.loads(self.control.readline())

    def cpu(self):
        return time.clock_gettime(self.clock)

    def memory(self):
        """The most that it had since the last time, or ever, on a kernel that cannot forget it."""
        status = pathlib.Path("/proc/%d/status" % self.process.pid).read_text()
        forget = pathlib.Path("/proc/%d/clear_refs" % self.process.pid)
        if forget.exists():
            forget.write_text("5")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

    def __exit__(self, kind, value, trace):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE)
        self.said.close()
        text = pathlib.Path("server.log").read_text(errors="replace")
        if status != 0 or "Sanitizer" in text or "runtime error" in text:
            failures.append("the server ended with %d" % status)
            print(text[-20000:])


def read_all(name):
    """As much as a client can read of it, in pieces, its beginning and its end. What cannot be read is an error to the
    client, which goes on."""
    client = nbd.NBD()
    client.set_export_name(name)
    client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    client.connect_unix("nbd.sock")
    size = client.get_size()
    places = list(range(0, min(size, READ_MOST // 2), READ_PIECE))
    places += list(range(max(len(places) * READ_PIECE, size - READ_MOST // 2), size, READ_PIECE))
    for offset in places:
        length = min(READ_PIECE, size - offset)
        for call in (lambda: client.pread(length, offset), lambda: client.block_status(length, offset, lambda *_: 0)):
            try:
                call()
            except nbd.Error:
                pass
    client.shutdown()


def check_served(server, case):
    before = server.cpu()
    answer = server.ask(verb="add", image=os.path.abspath(case.path), name=case.name, **{"read-only": True})
    if answer["ok"]:
        read_all(case.name)
        gone = server.ask(verb="remove", name=case.name, mode="hard")
        if not gone["ok"]:
            fail(case, "serve", "is not removed:", gone)
    elif not all(word in answer["error"] for word in (case.name + "/", *case.words)):
        fail(case, "serve", "does not name", case.words, ":", answer["error"])
    if answer["ok"] and case.at in ("open", "chain"):
        fail(case, "serve", "must be refused")
    note(case, "serve", server.cpu() - before, server.memory())


def check_server(cases):
    pathlib.Path("server.conf").write_text("[server]\n")
    with Server() as server:
        for case in cases:
            check_served(server, case)


def main():
    os.environ.update(LC_ALL="C", G_DEBUG="fatal-criticals")
    scratch = tempfile.mkdtemp(prefix="cownbd-hostile-")
    os.chdir(scratch)
    try:
        cases = make_cases(sys.argv[2:])
        pairs = check_commands(cases)
        check_server(cases)
    finally:
        os.chdir("/")
        shutil.rmtree(scratch)
    print("%d images, %d commands, each image served; most: %.2f s of processor (%s), %d MiB (%s); %d failures" % (
        len(cases), pairs, *most["cpu"], most["memory"][0] // MIB, most["memory"][1], len(failures)))
    return 1 if failures or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
