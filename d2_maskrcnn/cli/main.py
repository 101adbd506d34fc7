"""The command ``d2-maskrcnn`` and its subcommands.

Each command is a module of this package with ``add_arguments(parser)`` and ``run(args)``, which is imported only when
the command runs. The modules import nothing heavy, so that ``--help`` is fast; ``run`` imports what it needs. What
needs PyTorch at the top is in a second module, such as ``train_job.py``. A module may name such imports in
``IMPORTS``: they are done before ``run``, where Ctrl-C ends the program at once; before them, ``check_arguments(args)``
refuses what can be refused without them. ``with_option_names(words)`` inserts the name of an option that may be left
out where :mod:`argparse` cannot.
"""

import argparse
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

from d2_maskrcnn._version import __version__
from d2_maskrcnn.cli.interrupts import end_on_interrupt, interrupt_ends_program, is_spawned_worker
from d2_maskrcnn.errors import UserError, did_you_mean, run_main

PROGRAM = "d2-maskrcnn"


class Command(NamedTuple):
    """A command: the module that implements it, and its line in ``d2-maskrcnn --help``."""

    module: str
    help: str


COMMANDS = {
    "train": Command("d2_maskrcnn.cli.train", "train a model"),
    "eval": Command("d2_maskrcnn.cli.eval", "evaluate a model with the COCO metrics"),
    "predict": Command("d2_maskrcnn.cli.predict", "detect objects in images, videos, cameras and streams"),
    "batch": Command("d2_maskrcnn.cli.batch", "predict many images with Ray, on one machine or a cluster"),
    "export": Command("d2_maskrcnn.cli.export", "export a model to ONNX, OpenVINO or torch.export"),
    "serve": Command("d2_maskrcnn.cli.serve", "serve a model over HTTP"),
    "inspect": Command("d2_maskrcnn.cli.inspect", "write a report of what happens inside a model"),
    "convert": Command("d2_maskrcnn.cli.convert", "convert a dataset between the formats of annotation tools"),
    "check": Command("d2_maskrcnn.cli.check", "list and repair the flaws of a dataset"),
    "split": Command("d2_maskrcnn.cli.split", "split a dataset into train, val and test"),
    "env": Command("d2_maskrcnn.cli.env", "print versions and devices, for a bug report"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``d2-maskrcnn`` and return its exit status (see :func:`d2_maskrcnn.errors.run_main`).

    Args:
        arguments: the command and its arguments; default: ``sys.argv[1:]``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_main(lambda: _run(words))


def run_module(module: str, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run the module of a command and return its exit status, for programs such as ``train_net.py``.

    Args:
        module: its full name.
        program: name of the program in its help and messages.
        arguments: arguments of the command; default: ``sys.argv[1:]``.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_main(lambda: _run_module(module, words, program))


def _run(words: list[str]) -> None:
    if words and not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            hint = did_you_mean(words[0], COMMANDS) or f" The commands are {', '.join(COMMANDS)}."
            raise UserError(f"{PROGRAM} has no command {words[0]!r}.{hint}")
        _run_module(COMMANDS[words[0]].module, words[1:], f"{PROGRAM} {words[0]}")
        return
    parser = _main_parser()
    parser.parse_args(words)  # --help and --version end the program, anything else is refused
    parser.print_help()


def _main_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND ...",
        description="Mask R-CNN for instance segmentation.",
        epilog="\n".join(["commands:", *lines, "", f"{PROGRAM} COMMAND --help shows the options of a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"d2_maskrcnn {__version__}")
    return parser


def _run_module(name: str, words: list[str], program: str) -> None:
    with interrupt_ends_program():
        module = importlib.import_module(name)
        words = getattr(module, "with_option_names", list)(words)
        args = _parse(build_parser(module, program), words)
        _expand_paths(args)
        getattr(module, "check_arguments", bool)(args)
        for each in getattr(module, "IMPORTS", ()):
            importlib.import_module(each)
    try:
        module.run(args)
    except UserError as error:
        if "set overwrite" not in str(error):
            raise
        raise UserError(str(error).replace("set overwrite", "add --overwrite")) from error


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, without the usage, and suggests the option that was meant."""

    def error(self, message: str) -> NoReturn:
        """Report a mistake.

        Raises:
            UserError: always.
        """
        unknown = message.partition("unrecognized arguments: ")[2].split()
        word = next((word for word in unknown if word.startswith("--") and word != "--"), "")
        options = [option for action in self._actions for option in action.option_strings]
        names = {part: option for option in options for part in option.strip("-").split("-")}
        names |= {option.strip("-"): option for option in options}
        for nearest in difflib.get_close_matches(word.partition("=")[0].strip("-"), names, n=1) if word else ():
            message += f"; did you mean {names[nearest]}?"
        end = "" if message.endswith("?") else "."
        raise UserError(f"{self.prog}: {message}{end} {self.prog} --help lists the options.")


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse words of which options may stand between the others, as in ``predict model.pth --output out a.jpg``."""
    try:
        return parser.parse_intermixed_args(words)
    except TypeError:  # the last argument takes all words that follow, such as KEY VALUE pairs
        return parser.parse_args(words)


def _expand_paths(args: argparse.Namespace) -> None:
    """Replace ``~`` in all arguments that are paths, in place."""
    for name, value in vars(args).items():
        if isinstance(value, Path):
            setattr(args, name, Path(os.path.expanduser(value)))


def build_parser(module: ModuleType, program: str) -> argparse.ArgumentParser:
    """Build the parser of a command; its docstring is the help, with ``{program}`` for the program's name."""
    description, _, examples = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    parser = _Parser(
        prog=program,
        description=description,
        epilog=examples.replace("{program}", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


# A spawned worker imports this module, and then what it runs. d2_maskrcnn.engine.launch restores Python's own handler.
if is_spawned_worker():
    end_on_interrupt()
