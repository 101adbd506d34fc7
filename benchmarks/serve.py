"""Load the server with many clients, check every answer, and compare its throughput with batched prediction.

    python benchmarks/serve.py --output benchmarks/results/serve.md

The real server runs in a process of its own on a free port of 127.0.0.1. The clients send crops of the package's two
images; one request in eight is bad: a truncated image, a PNG of 30,000 x 30,000 pixels, a text file, another content
type, or a client that goes away. Each answer is compared with the prediction of that image alone, made before. At the
end the server gets SIGTERM under load: each request must be answered or never have been accepted, as its log says.
Batched prediction is one process that reads the same files and writes the same JSON, before and after the server.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from serve_clients import Clients, Load, bad_requests, make_images

from d2_maskrcnn import Predictor, example

THRESHOLD = 0.5
IMAGES_PER_MEASUREMENT = 64
TOLERANCES = {"score": 1e-4, "bbox": 0.05, "area": 0.005}  # absolute, pixels, relative
WAIT = 120.0  # seconds for an answer


class ServerProcess:
    """The server, its log, and its memory once a second.

    Attributes:
        url: where it listens.
        log: its lines.
        megabytes: resident memory.
    """

    def __init__(self, model: str, clients: int) -> None:
        words = [sys.executable, "-m", "d2_maskrcnn", "serve", model, "--port", "0", "--timeout", str(WAIT)]
        words += ["--max-queue", str(2 * clients)]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        self.log: list[dict[str, Any]] = []
        self.megabytes: list[float] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._wait_for("Application startup complete.")
        self.url = httpx.URL(self._wait_for("serving")["url"])
        threading.Thread(target=self._watch, daemon=True).start()

    def metrics(self) -> dict[str, float]:
        """Return the metrics without labels."""
        text = httpx.get(self.url.join("/metrics"), timeout=WAIT, trust_env=False).text
        lines = [line.split() for line in text.splitlines() if not line.startswith("#") and "{" not in line]
        return {name: float(value) for name, value in lines}

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end and return the status."""
        status = self.process.wait(2 * WAIT)
        self._reader.join()
        return status

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.log.append(json.loads(line) if line.startswith("{") else {"message": line})

    def _wait_for(self, message: str) -> dict[str, Any]:
        while True:
            if found := [line for line in self.log if line["message"] == message]:
                return found[0]
            if self.process.poll() is not None:
                raise SystemExit("The server did not start:\n" + "\n".join(str(line["message"]) for line in self.log))
            time.sleep(0.05)

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        while self.process.poll() is None:
            try:
                self.megabytes.append(int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * page)
            except (OSError, IndexError):  # it has just ended
                return
            time.sleep(1)


def batched_prediction(predictor: Predictor, paths: list[Path]) -> tuple[float, float]:
    """Return the images per second and the CPU seconds per image, from files to COCO JSON."""
    batch = (paths * (IMAGES_PER_MEASUREMENT // len(paths) + 1))[:IMAGES_PER_MEASUREMENT]
    start, cpu = time.monotonic(), time.process_time()
    for number, results in enumerate(predictor(batch), 1):
        json.dumps(results[results.scores > THRESHOLD].to_coco(number))
    return len(batch) / (time.monotonic() - start), (time.process_time() - cpu) / len(batch)


def differs(body: bytes, expected: list[dict[str, Any]]) -> str:
    """Say how an answer differs from the prediction of its image; "" if it does not."""
    actual = json.loads(body)["annotations"]
    if [each["category_id"] for each in actual] != [each["category_id"] for each in expected]:
        return f"{len(actual)} detections or other classes instead of {len(expected)}"
    for one, other in zip(actual, expected, strict=True):
        if abs(one["score"] - other["score"]) > TOLERANCES["score"]:
            return f"score {one['score']} instead of {other['score']}"
        if max(abs(a - b) for a, b in zip(one["bbox"], other["bbox"], strict=True)) > TOLERANCES["bbox"]:
            return f"box {one['bbox']} instead of {other['bbox']}"
        if abs(one["area"] - other["area"]) > max(2, TOLERANCES["area"] * other["area"]):
            return f"area {one['area']} instead of {other['area']}"
    return ""


def measure(args: argparse.Namespace, folder: Path) -> str:
    """Run everything and return the report."""
    images = make_images()
    paths = [folder / f"{index}.jpg" for index in range(len(images))]
    for path, content in zip(paths, images, strict=True):
        path.write_bytes(content)
    predictor = Predictor(args.model, device=args.device, threshold=0.05)
    expected = [(each := predictor(path))[each.scores > THRESHOLD].to_coco(1) for path in paths]
    batched_prediction(predictor, paths)  # warm-up
    rates = [batched_prediction(predictor, paths)]

    server = ServerProcess(args.model, args.clients)
    try:
        clients = Clients(server.url, images, args.clients)
        asyncio.run(clients.run(args.warm_up))
        warm, clients.load = clients.load, Load()
        before = server.metrics()
        seconds = asyncio.run(clients.run(args.seconds))
        after = server.metrics()
        steady, clients.load = clients.load, Load()
        megabytes = list(server.megabytes)
        asyncio.run(clients.run(min(5.0, args.seconds), server.terminate))
        status = server.wait()
    finally:
        server.process.kill()
    rates.append(batched_prediction(predictor, paths))
    change = {name: value - before.get(name, 0.0) for name, value in after.items()}
    rows = describe_speed(steady, seconds, rates, change) + describe_load(steady, megabytes)
    rows += describe_stop(server, clients.load, status)
    everything = [*warm.answers, *steady.answers, *clients.load.answers]
    wrong = [text for index, body in everything if (text := differs(body, expected[index]))]
    rows.append(("wrong answers", f"{len(wrong)} of {len(everything)}" + "".join(f" ({text})" for text in wrong[:1])))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"# Server under load\n\n{args.clients} clients on the same machine, {Path(args.model).name}, {len(images)} "
        f"different images, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, load average "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. Batched prediction reads the same files and writes the "
        "same JSON, measured before and after the server. Made by `python benchmarks/serve.py`.\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def describe_speed(
    load: Load, seconds: float, batched: list[tuple[float, float]], change: dict[str, float]
) -> list[tuple[str, str]]:
    """Return the rows of the report that compare with batched prediction, of which there are two measurements."""
    rate, cpu = len(load.answers) / seconds, change["process_cpu_seconds_total"] / len(load.answers)
    batched_rate, batched_cpu = (statistics.mean(values) for values in zip(*batched, strict=True))
    per_batch = change["d2_maskrcnn_batch_images_sum"] / change["d2_maskrcnn_batch_images_count"]
    times = statistics.quantiles(load.seconds, n=100)
    return [
        ("answers", f"{len(load.answers)} in {seconds:.1f} s"),
        ("images per second: server, batched prediction", f"{rate:.2f}, {batched_rate:.2f}"),
        ("their ratio (goal: at least 0.90)", f"{rate / batched_rate:.2f}"),
        ("CPU seconds per image: server, batched prediction", f"{cpu:.4f}, {batched_cpu:.4f}"),
        ("images per forward pass", f"{per_batch:.1f}"),
        ("time of an answer, median and 99%", f"{times[49]:.2f} s, {times[98]:.2f} s"),
    ]


def describe_load(load: Load, megabytes: list[float]) -> list[tuple[str, str]]:
    """Return the rows of the report about bad requests and memory."""
    bad = bad_requests(b"")
    unexpected = {kind: statuses for kind, statuses in load.refused.items() if set(statuses) != {bad[kind][2]}}
    refused = ", ".join(f"{len(statuses)} {kind}" for kind, statuses in sorted(load.refused.items()))
    steps = [megabytes[len(megabytes) * part // 4] for part in (1, 2, 3)] + [megabytes[-1]]
    return [
        ("bad requests, refused", refused),
        ("bad requests with another status than expected", str(unexpected or 0)),
        ("clients that went away", str(load.gone)),
        ("good requests refused or without an answer", f"{len(load.other)}, {len(load.failed)}"),
        ("memory at 25, 50, 75 and 100% of the time", ", ".join(f"{value:.0f}" for value in steps) + " MiB"),
        ("peak memory", f"{max(megabytes):.0f} MiB"),
    ]


def describe_stop(server: ServerProcess, load: Load, status: int) -> list[tuple[str, str]]:
    """Return the rows of the report about the SIGTERM."""
    logged = {line.get("id"): line["status"] for line in server.log if line["message"] == "request"}
    lost = [request for request in load.failed if logged.get(request) not in (None, 503)]
    faults = [line for line in server.log if line.get("level") in ("error", "critical") or "traceback" in line]
    return [
        ("SIGTERM under load: answered, refused with 503", f"{len(load.answers)}, {len(load.other)}"),
        ("SIGTERM under load: not accepted, accepted and lost", f"{len(load.failed) - len(lost)}, {len(lost)}"),
        ("exit status", str(status)),
        ("errors in the log", str(len(faults)) + (f" ({faults[0]['message']})" if faults else "")),
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(example.WEIGHTS), help="weights (default: the package's example)")
    parser.add_argument("--device", help="cpu, cuda, ... of the batched prediction; the server takes its default")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load (60)")
    parser.add_argument("--warm-up", type=float, default=5.0, metavar="SECONDS", help="before it (5)")
    parser.add_argument("--output", type=Path, help="also write the report to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = measure(args, Path(folder))
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
