"""Resumed trainings: ``last_checkpoint``, the states in a checkpoint, its bytes, and other configs."""

import functools
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from d2_maskrcnn.engine import Trainer
from tools.fuzz import tiny
from tools.fuzz.harness import Input, expect
from tools.fuzz.values import damage, odd_value

COUNT = 60
NO_EVALUATION = {"D2_MASKRCNN__DATA__VAL_JSON": "", "D2_MASKRCNN__DATA__VAL_IMAGES": "", "DATASETS__TEST": "()"}
LAST = "model_0000001.pth"
TAGS = (
    "",
    "..",
    "/etc/passwd",
    "../a.pth",
    "model_0000000.pth",
    "model_final.pth",
    "x" * 5000,
    "a\0b",
    "a\nb",
    "\udcff",
    "~",
    ".",
)
OTHER = (
    {"SOLVER__BASE_LR": 0.5}, {"SOLVER__MAX_ITER": 1}, {"SOLVER__IMS_PER_BATCH": 1}, {"SEED": 9},
    {"D2_MASKRCNN__SOLVER__OPTIMIZER": "AdamW"}, {"MODEL__FPN__OUT_CHANNELS": 32}, {"SOLVER__STEPS": "(1,)"},
    {"D2_MASKRCNN__EMA__ENABLED": True}, {"SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR"}, {"SOLVER__MOMENTUM": 0.5},
)  # fmt: skip


def prepare(folder: Path) -> None:
    """Train two iterations, and continue a copy to the fourth."""
    tiny.draw(folder)
    for name, iterations in (("run", 2), ("whole", 4)):
        if name == "whole":
            shutil.copytree(folder / "run", folder / "whole")
        trainer = Trainer(tiny.config(tiny.options(folder, folder / name, **NO_EVALUATION)))
        trainer.resume_or_load(resume=name == "whole")
        trainer.max_iter = iterations
        trainer.train()
    (folder / "run" / "model_final.pth").unlink(missing_ok=True)
    (folder / "run" / "last_checkpoint").write_text(LAST)


def make(rng: random.Random, shared: Path, folder: Path) -> Input:
    """Damage the folder of a training, or resume with another config."""
    out = folder / "out"
    shutil.copytree(shared / "run", out)
    action = rng.choice(("state", "state", "state", "tag", "bytes", "config", "intact"))
    label, more = action, {}
    if action == "state":
        content = torch.load(out / LAST, weights_only=True)
        place = rng.choice(list(_places({key: value for key, value in content.items() if key != "model"})))
        label = _mutate(rng, content, place)
        torch.save(content, out / LAST)
    elif action == "tag":
        tag = rng.choice(TAGS)
        (out / "last_checkpoint").write_bytes(tag.encode(errors="surrogateescape"))
        label = f"last_checkpoint {tag!r:.60}"
    elif action == "bytes":
        label, data = damage(rng, (out / LAST).read_bytes())
        (out / LAST).write_bytes(data)
    elif action == "config":
        more = rng.choice(OTHER)
        label = f"config {more}"
    return Input(label, lambda: check(out, shared, more, is_intact=action == "intact"))


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every container and value; of the moments of an optimizer, only a few."""
    if isinstance(node, dict | list) and "run" not in path[-1:]:
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node))[:12]:
            yield (*path, key)
            yield from _places(value, (*path, key))


def _mutate(rng: random.Random, content: Any, place: tuple[Any, ...]) -> str:
    *parents, key = place
    for parent in parents:
        content = content[parent]
    if rng.random() < 0.25:
        del content[key]
        return f"removed {place}"
    old = content[key]
    if isinstance(old, torch.Tensor):
        content[key] = rng.choice((old * float("nan"), old.flatten()[:1], old.double(), "abc", None))
    else:
        value = odd_value(rng)
        content[key] = value if not isinstance(value, str) or "\ud800" not in value else "abc"
    return f"{place} = {content[key]!r:.60}"


def check(out: Path, shared: Path, more: dict[str, Any], is_intact: bool) -> None:
    """Resume, compare the model and the iteration with a checkpoint of the folder, and finish the training."""
    # Only the final checkpoint is written: writing them takes most of the time.
    opts = tiny.options(shared, out, **{"SOLVER__CHECKPOINT_PERIOD": 100, **NO_EVALUATION, **more})
    trainer = Trainer(tiny.config(opts))
    trainer.resume_or_load(resume=True)
    expect(type(trainer.start_iter) is int and 1 <= trainer.start_iter <= 2, f"resumed at {trainer.start_iter}")
    source = _load(shared / "run" / f"model_{trainer.start_iter - 1:07d}.pth")
    for name, value in trainer.checkpointer.model.state_dict().items():
        expect(torch.equal(value, source["model"][name]), f"{name} differs from the checkpoint's")
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    stored = {group["lr"] for group in source["trainer"]["_trainer"]["optimizer"]["param_groups"]}
    expect(all(type(rate) is float and 0 < rate < 10 for rate in rates), f"learning rates {rates}")
    expect(more or rates == stored, f"learning rates {rates}, the checkpoint's are {stored}")
    trainer.train()
    final = torch.load(out / "model_final.pth", weights_only=True)["model"]
    expect(all(torch.isfinite(value).all() for value in final.values()), "weights that are not finite")
    if is_intact:
        whole = _load(shared / "whole" / "model_final.pth")["model"]
        expect(all(torch.equal(value, whole[name]) for name, value in final.items()), "not equal to an unbroken run")


@functools.lru_cache
def _load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content
