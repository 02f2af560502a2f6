"""A server under load, on loopback: few clients, a flood of them, and few beside others that are slow or send no image.
Each client sends one photograph after the other, and waits for each answer.

python -m benchmarks serve RUN [--photo PHOTO] [--seconds 14]
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

FEW, FLOOD, SLOW = 4, 64, 100
TEXT = b"Dear Sir,\n"


class Load:
    """What clients were answered, and when."""

    def __init__(self, port: int, until: float):
        self.port, self.until = port, until
        self.seconds: list[float] = []
        self.statuses: Counter[int | str] = Counter()

    def ask(self, content: bytes) -> None:
        """Send an image again and again; after a 503 wait as long as it says."""
        while time.perf_counter() < self.until:
            began = time.perf_counter()
            connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request("POST", "/predict", content)
                response = connection.getresponse()
                response.read()
            except OSError:
                self.statuses["lost"] += 1
                continue
            self.statuses[response.status] += 1
            if response.status == 200:
                self.seconds.append(time.perf_counter() - began)
            elif response.status == 503:
                time.sleep(float(response.headers["retry-after"]))

    def crawl(self) -> None:
        """Say that an image comes, and send a byte a second."""
        while time.perf_counter() < self.until:
            with socket.create_connection(("127.0.0.1", self.port)) as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
                try:
                    while time.perf_counter() < self.until:
                        connection.sendall(b"x")
                        time.sleep(1)
                except OSError:
                    self.statuses["slow, left"] += 1


def memory(process: subprocess.Popen[str]) -> float:
    """The server's resident memory, in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def measure(
    name: str, port: int, process: subprocess.Popen[str], jobs: list[str], photo: bytes, seconds: float
) -> None:
    """Prints a row."""
    before = memory(process)
    load = Load(port, time.perf_counter() + seconds)
    targets = {"ask": (load.ask, (photo,)), "text": (load.ask, (TEXT,)), "crawl": (load.crawl, ())}
    threads = [threading.Thread(target=targets[job][0], args=targets[job][1]) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    middle, late = (np.percentile(load.seconds, q) * 1000 for q in (50, 99))
    speed = f"{len(load.seconds) / seconds:.1f} | {middle:.0f} | {late:.0f}"
    others = ", ".join(f"{count} x {status}" for status, count in load.statuses.items() if status != 200)
    print(f"| {name} | {speed} | {others or 'none'} | {before:.0f} | {memory(process):.0f} |", flush=True)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks serve", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--photo", type=Path, help="default: a drawn JPEG of 640 x 480")
    parser.add_argument("--seconds", type=float, default=14)
    options = parser.parse_args(arguments)
    photo = options.photo.read_bytes() if options.photo else drawn()
    print(f"python -m benchmarks serve {' '.join(arguments)}\n")
    print("| clients | answers a second | median, ms | p99, ms | other answers | MB before | MB after |")
    print("|---|---|---|---|---|---|---|")
    command = [sys.executable, "-m", "tl_research", "serve", options.run, "--port", "0"]
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.terminate)
        assert process.stdout
        port = int(process.stdout.readline().split()[0].rstrip("/").rpartition(":")[2])
        measure("one", port, process, ["ask"], photo, options.seconds)
        measure(f"{FEW}", port, process, ["ask"] * FEW, photo, options.seconds)
        measure(f"{FLOOD}", port, process, ["ask"] * FLOOD, photo, options.seconds)
        jobs = ["ask"] * FEW + ["text"] * FEW + ["crawl"] * SLOW
        measure(f"{FEW}, {FEW} that send text, {SLOW} slow ones", port, process, jobs, photo, options.seconds)


def drawn() -> bytes:
    """A JPEG of smooth noise."""
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
