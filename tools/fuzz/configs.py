"""YAML configs and ``KEY VALUE`` pairs: values of every key, structure and bytes. What is accepted must be usable."""

import ast
import math
import random
from pathlib import Path
from typing import Any

import torch
import yaml

from d2_maskrcnn.config.keys import get_value
from d2_maskrcnn.config.loading import check_components, load_config
from d2_maskrcnn.config.validation import check_values, leaves
from d2_maskrcnn.data import MaskRCNNMapper, dataset_records, register_own_data
from d2_maskrcnn.engine import Trainer
from detectron2.config import CfgNode
from tools.fuzz import tiny
from tools.fuzz.harness import Input, expect
from tools.fuzz.values import damage, odd_value

COUNT = 220
TEXTS = (
    b"MODEL: &a\n  RESNETS: *a\n",
    b"a: &a [1, 1]\nb: &b [*a, *a]\n"
    + b"".join(b"%c: &%c [*%c, *%c, *%c]\n" % ((c, c) + (c - 1,) * 3) for c in range(99, 121)),
    b"SEED: !!python/object/apply:os.mkdir [CANARY]\n",
    b"_BASE_: https://127.0.0.1:9/base.yaml\n",
    b"_BASE_: a.yaml\n",
    b"_BASE_: /dev/zero\n",
    b"_BASE_: [[a]]\n",
    b"SEED: 1\nSEED: 2\n",
    b"SOLVER:\n\tBASE_LR: 1\n",
    b"[" * 5000,
    b"SEED: " + b"9" * 5000,
    b"SEED: 2026-99-99\n",
    b"MODEL: 3\n",
    b"- a\n- b\n",
    b"? [1]\n: 2\n",
    b"3: 4\n",
    b"MODEL: null\n",
    b"SOLVER: {BASE_LR: 0x_, STEPS: !!set {1}}\n",
    b"\xff\xfe\x00\xd8",
    b"---\nSEED: 1\n---\nSEED: 2\n",
)


def prepare(folder: Path) -> None:
    """Write a dataset."""
    tiny.draw(folder)


def make(rng: random.Random, shared: Path, folder: Path) -> Input:
    """Set one or two keys to odd values, on the command line or in YAML, or write an odd file."""
    kind, canary = rng.choice(("pairs", "pairs", "YAML", "YAML", "text", "bytes")), folder / "canary"
    path = folder / "a.yaml"
    if kind == "text":
        text = rng.choice(TEXTS)
        path.write_bytes(text.replace(b"CANARY", bytes(canary)))
        return Input(f"text {text[:60]!r}", lambda: check(path, [], {}, shared, folder))
    if kind == "bytes":
        label, content = damage(rng, Path(tiny.CONFIG).read_bytes())
        path.write_bytes(content)
        return Input(label, lambda: check(path, [], {}, shared, folder))
    known = list(leaves(load_config(tiny.CONFIG)))
    chosen = {key: _value(rng, old) for key, old in rng.sample(known, rng.choice((1, 1, 2)))}
    if kind == "pairs":
        path.write_text("")
        opts = [item for key, value in chosen.items() for item in (key, str(value))]
        return Input(f"pairs {opts!r:.200}", lambda: check(path, opts, chosen, shared, folder))
    tree: dict[str, Any] = {}
    for key, value in chosen.items():
        node = tree
        *groups, name = key.split(".")
        for group in groups:
            node = node.setdefault(group, {})
        node[name] = list(value) if isinstance(value, tuple) else value
    path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    return Input(f"YAML {chosen!r:.200}", lambda: check(path, [], chosen, shared, folder))


def _value(rng: random.Random, old: Any) -> Any:
    """Return an odd value, often of the type of the default."""
    kind = rng.random()
    if kind < 0.3:
        return odd_value(rng)
    if isinstance(old, bool):
        return rng.choice((True, False, "yes", 1))
    if isinstance(old, int | float):
        return rng.choice((old * 2, -old, old + 0.5, 0, 1, 2, 1e9, 100_000, 0.1, float("nan")))
    if isinstance(old, list | tuple):
        items = list(old)
        return rng.choice((items[:1], items * 2, [*items, -1], [], [odd_value(rng)], items[::-1]))
    return rng.choice((f"{old}x", str(old).lower(), "", "None", "~", "a/b", "\u202e"))


def check(path: Path, opts: list[str], chosen: dict[str, Any], shared: Path, folder: Path) -> None:
    """Load the config over that of a tiny training, then build and run what depends on it."""
    canary = folder / "canary"
    base = folder / "base.yaml"
    base.write_text(f"_BASE_: [{tiny.CONFIG}, {path.name}]\n")
    own = tiny.options(shared, folder / "out")
    pairs = [(key, value) for key, value in zip(own[::2], own[1::2], strict=True) if key not in chosen]
    try:
        cfg = load_config(str(base), [*(item for pair in pairs for item in pair), *opts])
        _compare(cfg, chosen)
        check_components(cfg)
        register_own_data(cfg)
        check_values(cfg)
    finally:
        expect(not canary.exists(), "code in the config was run")
    if all(_is_small(value) for value in chosen.values()):
        _use(cfg)


def _compare(cfg: CfgNode, chosen: dict[str, Any]) -> None:
    """Check that each accepted value is stored as it was given, and finite where a number is."""
    for key, value in chosen.items():
        stored = get_value(cfg, key)
        if isinstance(value, str) and not isinstance(stored, str):
            value = ast.literal_eval(value)
        if isinstance(stored, str):
            expect(stored == str(value) or value in ("~", "~/x"), f"{key} {value!r} is stored as {stored!r}")
            continue
        same = list(stored) == list(value) if isinstance(stored, list | tuple) else stored == value
        expect((same and type(stored) is not type(None)) or value is None, f"{key} {value!r} is stored as {stored!r}")
        expect(isinstance(stored, bool) == isinstance(value, bool), f"{key} {value!r} is stored as {stored!r}")
        if isinstance(stored, float) and key != "SOLVER.CLIP_GRADIENTS.NORM_TYPE":
            expect(math.isfinite(stored), f"{key} is {stored}")


def _is_small(value: Any) -> bool:
    """Leave out sizes that are allowed but need more memory and time than a test has."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return True
    items = value if isinstance(value, list | tuple) else [value]
    return all(not isinstance(item, int | float) or abs(item) <= 512 for item in items)


def _use(cfg: CfgNode) -> None:
    """Build the model, the optimizer, the schedule and a batch, and run one training step."""
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    expect(all(group["lr"] >= 0 for group in optimizer.param_groups), "a negative learning rate")
    if len(cfg.DATASETS.TRAIN) and cfg.D2_MASKRCNN.DATA.TRAIN_JSON:
        records = dataset_records(cfg.DATASETS.TRAIN[0])
        losses = model.train()([MaskRCNNMapper(cfg, True)(records[0])])
        expect(all(torch.isfinite(loss).all() for loss in losses.values()), "losses that are not finite")
    optimizer.step()
    scheduler.step()
