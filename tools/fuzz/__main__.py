"""Run malformed inputs of every kind through the program, and print a table of what happened.

    python -m tools.fuzz --seed 0                      # about 950 inputs
    python -m tools.fuzz --areas coco videos --scale 5 # five times as many of these
    python -m tools.fuzz --seed 0 --only coco:17       # one of them again

The status is 1 if an input ended in a traceback, hung, needed too much memory or was silently misread.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

import d2_maskrcnn  # noqa: F401  # chooses the engine
from tools.fuzz.harness import AREAS, OUTCOMES, Result, run_area


def main() -> int:
    """Run the inputs that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--areas", nargs="+", choices=AREAS, default=AREAS)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of inputs (1)")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--only", metavar="AREA:NUMBER", help="a single input")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg", WANDB_MODE="offline")
    torch.set_num_threads(1)  # as in the workers, whose trainings are compared with those of `prepare`
    results: dict[str, list[Result]] = {}
    only_area, _, only = (args.only or "").partition(":")
    with tempfile.TemporaryDirectory(prefix="d2_fuzz_") as folder:
        for area in [only_area] if args.only else args.areas:
            start, module, shared = time.monotonic(), importlib.import_module(f"tools.fuzz.{area}"), Path(folder, area)
            shared.mkdir()
            module.prepare(shared)
            indices = [int(only)] if args.only else list(range(max(1, round(module.COUNT * args.scale))))
            results[area] = run_area(area, args.seed, indices, args.jobs, shared)
            _print_failures(area, results[area])
            print(f"{area}: {len(indices)} inputs in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
            if args.only:
                print(results[area][0])
    _print_table(results)
    return int(any(not each.is_clean for group in results.values() for each in group))


def _print_failures(area: str, results: list[Result]) -> None:
    for result in results:
        if not result.is_clean:
            print(f"--- {area}:{result.index}: {result.outcome}: {result.label}\n{result.detail}\n", flush=True)


def _print_table(results: dict[str, list[Result]]) -> None:
    print("| input | tried | " + " | ".join(OUTCOMES) + " |")
    print("|---" * (len(OUTCOMES) + 2) + "|")
    total: Counter[str] = Counter()
    for area, group in results.items():
        counts = Counter(result.outcome for result in group)
        total += counts
        print(f"| {area.replace('_', ' ')} | {len(group)} | " + " | ".join(str(counts[o]) for o in OUTCOMES) + " |")
    print(f"| all | {total.total()} | " + " | ".join(str(total[outcome]) for outcome in OUTCOMES) + " |")


if __name__ == "__main__":
    sys.exit(main())
