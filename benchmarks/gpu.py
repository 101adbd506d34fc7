"""Test and measure the project on one GPU in less than ten minutes.

    python benchmarks/gpu.py                           # writes benchmarks/results/gpu.md
    python benchmarks/gpu.py --parts inference profile --minutes 4
    python benchmarks/gpu.py --device cpu --output gpu.md    # tiny sizes, to test the script itself

Every part runs in a process of its own with a time limit. A part that fails or exceeds its limit is reported with what
it printed so far, and the next one starts. The Markdown file is rewritten after each part.
"""

import argparse
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision

REPO = Path(__file__).resolve().parent.parent
ERROR_LINES = 25  # of a failed part's standard error that are reported


class Part(NamedTuple):
    """A section of the report."""

    title: str
    command: str  # arguments of the Python interpreter; --device is added for the scripts
    limit: int  # seconds
    plain: bool = False  # whether the output is plain text rather than Markdown


PARTS = {
    "tests": Part(
        "Tests of the operators and of mask pasting",
        "-m pytest -q --tb=short -n 8 -k 'gpu or cuda or stream or self_check' tests/ops tests/structures",
        150,
        plain=True,
    ),
    "parity": Part("Whole model, CUDA against CPU", "benchmarks/gpu_checks.py parity", 60),
    "roi_align": Part("ROIAlign", "benchmarks/roi_align.py --rounds 5", 100),
    "inference": Part("Inference", "benchmarks/gpu_speed.py inference", 120),
    "training": Part("Training step", "benchmarks/gpu_speed.py training", 120),
    "profile": Part("Host synchronizations", "benchmarks/gpu_checks.py profile", 60),
    "compile": Part("torch.compile of the backbone", "benchmarks/gpu_speed.py compile", 150),
}
TINY_COMMANDS = {
    "tests": "-m pytest -q -p no:cacheprovider tests/ops/roi_align/test_backends.py",
    "roi_align": "benchmarks/roi_align.py --rounds 1 --dtypes float32 --formats channels_last",
}


def run_part(part: Part, device: str, limit: float) -> str:
    """Run one part and return its section of the report."""
    command = [sys.executable, *shlex.split(part.command)]
    if not part.plain:
        command += ["--device", device]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=REPO, env=env, stdout=output, stderr=errors, start_new_session=True)
        try:
            outcome = describe_status(process.wait(timeout=limit))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = f"**Stopped at its time limit of {limit:.0f} s.**"
        output.seek(0)
        errors.seek(0)
        text, messages = output.read().strip(), errors.read().strip().splitlines()[-ERROR_LINES:]
    if part.plain:
        text = f"```\n{text}\n```"
    if outcome:
        text += f"\n\n{outcome}" + (f"\n\n```\n{chr(10).join(messages)}\n```" if messages else "")
    return f"## {part.title}\n\n{text}\n\n{time.perf_counter() - start:.0f} s.\n"


def describe_status(status: int) -> str:
    """Return the report's line about an exit status; empty for 0."""
    return "" if status == 0 else f"**Failed with exit status {status}.**"


def describe_machine(device: str) -> str:
    """Describe the GPU, its driver and the library versions."""
    lines = [f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}, Python {platform.python_version()}"]
    if device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        result = subprocess.run(query, capture_output=True, text=True, check=False)
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
        lines.insert(0, result.stdout.strip() if result.returncode == 0 else name)
    lines.append(f"{os.cpu_count()} CPU cores, {platform.machine()}, load average {os.getloadavg()[0]:.1f}")
    return "; ".join(lines)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for tiny sizes that only test this script")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of all parts together (default: 9)")
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks" / "results" / "gpu.md")
    return parser.parse_args()


def main() -> int:
    """Run the parts and write the report; return 1 if a part failed or was not run."""
    args = parse_args()
    end = time.perf_counter() + 60 * args.minutes
    sections = [f"# One GPU\n\n{describe_machine(args.device)}. Made by `python benchmarks/gpu.py`.\n"]
    failed = False
    for name in args.parts:
        part, remaining = PARTS[name], end - time.perf_counter()
        if args.device == "cpu":
            part = part._replace(command=TINY_COMMANDS.get(name, part.command))
        if remaining < 10:
            sections.append(f"## {part.title}\n\n**Not run: the limit of {args.minutes:g} minutes was reached.**\n")
        else:
            sections.append(run_part(part, args.device, min(part.limit, remaining)))
        failed = failed or "\n**" in sections[-1]
        print(sections[-1], flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(sections))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
