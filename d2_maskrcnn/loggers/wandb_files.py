"""What a killed process's run of Weights & Biases has on disk, read from the run's own files, and what it has lost.

A ``.wandb`` file is a log in LevelDB's format (its doc/log_format.md): 7 bytes of header, then blocks of 32 KiB with
fragments of records. What W&B's process had not yet written when it was killed is lost, whatever it had been given.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # of a file and of each fragment
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of fragments


def last_written_step(folder: Path, run_id: str) -> int | None:
    """The last step of a run that any of its processes has written under ``folder/wandb``; -1 for none.

    Returns:
        None where the run has no files there.
    """
    files = sorted(folder.glob(f"wandb/*run-*-{run_id}/*.wandb"), key=_date, reverse=True)
    if not files:
        return None
    found = (max(_steps(file), default=-1) for file in files)  # steps only go up: the newest file that has one counts
    return next((step for step in found if step >= 0), -1)


def lost_numbers(metrics_file: Path, after: int, before: int) -> dict[int, dict[str, float]]:
    """What ``metrics.json`` has of the iterations between two others, in their order: its lines outlive every kill.

    Args:
        metrics_file: as Detectron2's ``JSONWriter`` writes it; where an iteration comes twice, the later line counts.
        after, before: iterations that are left out themselves.
    """
    lines: dict[int, dict[str, float]] = {}
    for text in metrics_file.read_text().splitlines() if metrics_file.is_file() else ():
        try:
            line = json.loads(text)
            iteration = int(line.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError):  # torn by the kill
            continue
        if after < iteration < before:
            lines[iteration] = lines.get(iteration, {}) | line
    return dict(sorted(lines.items()))


def _date(file: Path) -> str:
    """The part of ``offline-run-<date>_<time>-<id>`` by which the processes of a run can be put in order."""
    return file.parent.name.split("run-", 1)[1]


def _steps(file: Path) -> Iterator[int]:
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2  # its classes are made when it is imported
    for content in _records(file.read_bytes()):
        record = messages.Record()
        try:
            record.ParseFromString(content)
        except DecodeError:  # torn by the kill
            return
        if record.WhichOneof("record_type") == "history":
            yield record.history.step.num


def _records(data: bytes) -> Iterator[bytes]:
    """The whole records, up to the first that was torn."""
    position, fragments = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # filled up with zeros
            position += left
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        position += HEADER
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or position + length > len(data):
            return
        begun = b"" if kind in (WHOLE, FIRST) else fragments
        fragments = begun + data[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            yield fragments
