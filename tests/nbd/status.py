"""The status page: what it says, in a form that monitoring systems take, and what it must bear."""
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.parse

import wire
from handover import Relay
from wire import EINVAL, FLUSH, READ

CLIENTS_MAX = 32
HELP = re.compile(r"# HELP ([a-z_:][a-z0-9_:]*) (\S.*)")
TYPE = re.compile(r"# TYPE ([a-z_:][a-z0-9_:]*) (counter|gauge|histogram)")
SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*)(?:\{((?:[a-z_][a-z0-9_]*="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)')
LABEL = re.compile(r'([a-z_][a-z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse(text):
    """{(sample's name, labels): value}, of a text that keeps every rule of the format."""
    samples, types, family, helped = {}, {}, None, None
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if match := HELP.fullmatch(line):
            helped = match[1]
            assert helped not in types, f"two blocks of {helped}"
        elif match := TYPE.fullmatch(line):
            family = match[1]
            assert family == helped and family not in types, line
            types[family] = match[2]
        else:
            match = SAMPLE.fullmatch(line)
            assert match, f"no sample: {line!r}"
            name, labels = match[1], match[2] or ""
            suffixes = ("_bucket", "_count", "_sum") if types[family] == "histogram" else ("",)
            assert name in [family + suffix for suffix in suffixes], line
            assert (types[family] == "counter") == family.endswith("_total"), family
            pairs = [(key, re.sub(r'\\[\\"n]', lambda found: ESCAPED[found[0]], value))
                     for key, value in LABEL.findall(labels)]
            assert len({key for key, _ in pairs}) == len(pairs)
            key = (name, frozenset(pairs))
            assert key not in samples, f"twice: {line}"
            samples[key] = float(match[3])
    check_histograms(samples, [name for name, kind in types.items() if kind == "histogram"])
    return samples


def check_histograms(samples, names):
    """Buckets ascend, end with +Inf, which is the count."""
    for name in names:
        series = {}
        for (sample, labels), value in samples.items():
            if sample == name + "_bucket":
                labels = dict(labels)
                bound = float(labels.pop("le"))
                series.setdefault(frozenset(labels.items()), []).append((bound, value))
        for labels, buckets in series.items():
            bounds, counts = zip(*sorted(buckets))
            assert bounds[-1] == float("inf") and list(counts) == sorted(counts)
            assert samples[name + "_count", labels] == counts[-1]
            assert samples[name + "_sum", labels] >= 0


def value(samples, name, **labels):
    return samples["cownbd_" + name, frozenset(labels.items())]


class Status(Relay):
    """A server with a status page."""

    def __init__(self, *options, **how):
        super().__init__("--status", ":0", *options, **how)
        line = self.process.stdout.readline().decode().strip()
        assert line.startswith("status page on http://127.0.0.1:"), line
        uri = urllib.parse.urlsplit(line.split()[-1])
        self.page = (uri.hostname, uri.port)

    def ask(self, path, method="GET", body=None):
        connection = http.client.HTTPConnection(*self.page, timeout=wire.TIMEOUT)
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer, text

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def metrics(self):
        answer, text = self.ask("/metrics")
        assert answer.status == 200
        assert answer.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
        return parse(text)


def test_numbers_are_those_of_the_clients():
    with Status() as server:
        before = server.metrics()
        assert value(before, "requests_total", export="disk.raw", command="read") == 0
        with server.connect() as client:
            client.go(b"disk.raw")
            client.write(0, bytes(8192))
            for _ in range(3):
                client.read(0, 4096)
            assert client.request(FLUSH) == 0
            assert client.request(READ, 1 << 40, 4096) == EINVAL
            samples = server.metrics()
            expected = {"read": (3, 3 * 4096), "write": (1, 8192)}
            for command, (requests, size) in expected.items():
                assert value(samples, "requests_total", export="disk.raw", command=command) == requests
                assert value(samples, "bytes_total", export="disk.raw", command=command) == size
                assert value(samples, "request_duration_seconds_count", export="disk.raw",
                             command=command) == requests
            assert value(samples, "errors_total", export="disk.raw", kind="EINVAL") == 1
            assert value(samples, "errors_total", export="disk.raw", kind="EIO") == 0
            assert value(samples, "connections", export="disk.raw") == 1
            assert value(samples, "requests_in_flight", export="disk.raw") == 0
            assert value(samples, "flushes_total", export="disk.raw") == 1
            assert value(samples, "clients") == 1
            assert value(samples, "mode", export="disk.raw", mode="normal") == 1


def test_totals_keep_what_removed_exports_did():
    with Status(images=("a.raw", "b.raw")) as server:
        for name in (b"a.raw", b"b.raw"):
            with server.connect() as client:
                client.go(name).read(0, 4096)
                assert client.request(READ, 1 << 40, 4096) == EINVAL
        assert server.ctl("remove", "a.raw", "--mode=hard").returncode == 0
        samples = server.metrics()
        assert ("cownbd_requests_total", frozenset({"export": "a.raw", "command": "read"}.items())) not in samples
        assert value(samples, "server_requests_total", command="read") == 2
        assert value(samples, "server_bytes_total", command="read") == 8192
        assert value(samples, "server_errors_total", kind="EINVAL") == 2
        assert value(samples, "memory_limit_bytes") == 1 << 30
        assert value(samples, "clients_waiting") == value(samples, "clients_dropped_total") == 0


def test_map_cache_and_allocations():
    with Status(image_format="qcow2", images=("disk.qcow2",)) as server, server.connect() as client:
        client.go(b"disk.qcow2")
        client.write(0, b"x" * 65536)
        client.read(0, 4096)
        samples = server.metrics()
        assert value(samples, "allocated_bytes_total", export="disk.qcow2") == 65536
        assert value(samples, "map_cache_misses_total", export="disk.qcow2") >= 1
        assert value(samples, "map_cache_hits_total", export="disk.qcow2") >= 1


def test_label_values_are_escaped():
    name = 'a"b\\c\nd<e>'
    with Status("--name", name) as server:
        samples = server.metrics()
        assert value(samples, "connections", export=name) == 0
        _, page = server.ask("/")
        assert "a&quot;b\\c\nd&lt;e&gt;" in page and "<e>" not in page


def test_status_is_what_stats_says():
    with Status() as server:
        with server.connect() as client:
            client.go().read(0, 512)
        answer, text = server.ask("/status")
        assert answer.status == 200 and answer.getheader("Content-Type") == "application/json"
        page, verb = json.loads(text), json.loads(server.stats())
        for one in (page, verb):
            for moving in ("ok", "seconds", "clients"):
                one.pop(moving, None)
            one["exports"][0].pop("connections")
            one["total"].pop("connections")
            one["memory"].pop("held")
        assert page == verb
        buckets = page["exports"][0]["latency"]["read"]["buckets"]
        assert len(buckets) == len(page["latency-bounds-us"]) + 1 and sum(buckets) == 1


def test_what_is_not_there():
    with Status() as server:
        assert server.ask("/nothing")[0].status == 404
        assert server.ask("/metrics/..")[0].status == 404
        assert server.ask("/metrics", method="DELETE")[0].status in (405, 501)
        assert server.ask("/metrics", method="POST", body=b"x" * 100)[0].status in (405, 413, 501)
        assert server.ask("/" + "x" * 100000)[0].status in (400, 413)
        answer, text = server.ask("/metrics", method="HEAD")
        assert answer.status == 200 and text == ""
        assert server.ask("/metrics?x=y")[0].status == 200
        for nonsense in (b"\0" * 64 + b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            with socket.create_connection(server.page, wire.TIMEOUT) as raw:
                raw.sendall(nonsense)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):
                    pass
        server.metrics()


def test_silent_clients_are_few_and_leave():
    """Beyond the limit they wait to be accepted; they are all let go in the end, and others get on."""
    with Status() as server:
        before = server.descriptors()
        silent = [socket.create_connection(server.page, wire.TIMEOUT) for _ in range(CLIENTS_MAX + 8)]
        server.metrics()  # waits until some of them have been dropped
        assert server.descriptors() <= before + CLIENTS_MAX
        for one in silent:
            one.close()
        server.metrics()


def test_goes_over_to_the_next_process():
    with Status() as server:
        with server.connect() as client:
            client.go().read(0, 512)
            server.handover()
            client.read(0, 512)
            samples = server.metrics()
            assert value(samples, "clients") == 1
            assert value(samples, "requests_total", export="disk.raw", command="read") == 1


def test_addresses():
    with Status() as server, tempfile.NamedTemporaryFile() as image:
        image.truncate(4096)
        taken = f"127.0.0.1:{server.page[1]}"
        for address, text in ((taken, "cannot listen on"), ("nonsense", "must be HOST:PORT"),
                              ("127.0.0.1:", "must be HOST:PORT"), ("[::1:9", "status page")):
            result = subprocess.run([os.environ["COWNBD"], "serve", "-l", "none", "--control", "none",
                                     "--status", address, image.name], capture_output=True,
                                    text=True, timeout=wire.TIMEOUT)
            assert result.returncode == 1 and text in result.stderr, result
            assert result.stderr.count("\n") == 1


if __name__ == "__main__":
    wire.main(sys.modules[__name__])
