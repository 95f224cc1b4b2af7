#!/usr/bin/python3
"""attach, detach, rescue and their verbs where they refuse: nothing here needs (or touches) a kernel with nbd."""

import json
import os
import socket
import subprocess

from cli import COWNBD, Workdir, cownbd, expect, expect_equal, expect_refused, ours

COMMANDS = ("attach", "detach", "rescue")


def helps():
    top = ours("--help")
    for command in COMMANDS:
        expect(command in top, command, "is not in --help")
        expect("Example:" in ours(command, "--help"), command)


def wrong_calls():
    for command in COMMANDS:
        expect_refused(cownbd(command), command, "given", "--help")
        expect_refused(cownbd(command, "--frobnicate"), "frobnicate")
    expect_refused(cownbd("attach", "a", "b", "c"), "one image")
    expect_refused(cownbd("detach", "a", "b"), "one device")
    expect_refused(cownbd("attach", "none.qcow2"), "none.qcow2", "No such file")
    for option in ("fast-path-lines", "dead-timeout", "request-timeout"):
        for value in ("0", "-1", "2147483647"):
            expect_refused(cownbd("attach", f"--{option}={value}", "disk.qcow2"), f"--{option} is {value}", "1 to")
    for command in ("detach", "rescue"):
        expect_refused(cownbd(command, "disk.qcow2"), "is not attached")
        expect_refused(cownbd(command, "/dev/null"), "/dev/null", "is no block device")
        expect_refused(cownbd(command, "/dev/nbd99999"), "/dev/nbd99999", "is no block device")
    expect_refused(cownbd("attach", "--control", "none.sock", "disk.qcow2"), "none.sock", "no server listens there")


def wrong_options_of_serve():
    for option, words in (("--fast-path=fast", ("'fast'", "linear")), ("--fast-path-lines=0", ("0", "1 to")),
                          ("--dead-timeout=-1", ("-1", "1 to")), ("--request-timeout=4000", ("4000", "3600")),
                          ("--connections=17", ("17", "1 to 16")), ("--attach-name=a/b", ("'a/b'", "letters"))):
        expect_refused(cownbd("serve", "--listen=none", "--control=none", option, "disk.qcow2"), *words)
    expect_refused(cownbd("serve", "--attach-name=x", "disk.qcow2", "disk.qcow2"), "single image")
    expect_refused(cownbd("serve", "--image-control", "--control=x", "disk.qcow2"), "choose one")


def ask(request):
    """The answer of the control socket."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect("control")
    client.sendall(json.dumps(request).encode() + b"\n")
    answer = client.makefile().readline()
    client.close()
    return json.loads(answer)


def refused(request, *words):
    answer = ask(request)
    expect(answer["ok"] is False and all(w in answer["error"] for w in words), request, answer)


def wrong_verbs():
    image = os.path.realpath("disk.qcow2")
    for verb in ("attach", "detach"):
        refused({"verb": verb}, "image is missing")
        refused({"verb": verb, "image": 7}, "image")
        refused({"verb": verb, "image": "/none"}, "/none", "not served here")
        refused({"verb": verb, "image": "disk.qcow2"}, "not served here")
        refused({"verb": verb, "image": image, "colour": "red"}, "colour")
    refused({"verb": "detach", "image": image}, "is not attached")
    for key, value, word in (("fast-path", "fast", "'fast'"), ("fast-path", 1, "fast-path"),
                             ("name", "../x", "'../x'"), ("name", "x" * 65, "at most 64"),
                             ("device", "/dev/sda", "nbd device"), ("device", "/dev/nbd1 ", "nbd device"),
                             ("lines", 0, "lines"), ("lines", -1, "lines"), ("lines", 1 << 62, "lines"),
                             ("lines", "many", "lines"), ("read-only", "yes", "read-only"),
                             ("dead-timeout", 0, "dead-timeout"), ("request-timeout", 3601, "request-timeout"),
                             ("fast-path", "snapshot", "served for writing")):
        refused({"verb": "attach", "image": image, key: value}, word)


def with_server(function):
    server = subprocess.Popen([COWNBD, "serve", "--sandbox=off", "-l", "unix:socket", "--control", "control",
                               "disk.qcow2"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        expect("listening" in server.stdout.readline(), "the server did not start")
        function()
    finally:
        server.terminate()
        _, errors = server.communicate(timeout=60)
    expect_equal(server.returncode, 0, errors)
    expect("error:" not in errors, errors)


with Workdir():
    ours("create", "-f", "qcow2", "disk.qcow2", "4M")
    helps()
    wrong_calls()
    wrong_options_of_serve()
    with_server(wrong_verbs)
