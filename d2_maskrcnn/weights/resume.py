"""Which checkpoint of a folder a training goes on from."""

import logging
import re
from pathlib import Path

from d2_maskrcnn.errors import UserError
from d2_maskrcnn.weights.formats import check_whole

LAST_CHECKPOINT = "last_checkpoint"
_PERIODIC = re.compile(r"model_(\d+|final)\.pth")  # what periodic saving writes; weights of other origin may lie beside

logger = logging.getLogger(__name__)


def find_checkpoints(folder: str | Path) -> list[str]:
    """The checkpoints to go on from, the best first: what ``last_checkpoint`` names, then the others, newest first."""
    folder = Path(folder or ".")
    tag = folder / LAST_CHECKPOINT
    named = [tag.read_text(errors="replace").strip()] if tag.is_file() else []
    others = [path for path in folder.glob("model_*.pth") if _PERIODIC.fullmatch(path.name)]
    newest_first = sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    names = dict.fromkeys(named + [path.name for path in newest_first])
    return [str(folder / name) for name in names if name]


def newest_whole(folder: str | Path) -> str:
    """The first of :func:`find_checkpoints` that is a whole file; a warning names those that are not.

    Renaming makes checkpoints whole or absent, so broken ones come from elsewhere: a copy that stopped, a bad disk.

    Raises:
        UserError: there is none.
    """
    reason = "there is none"
    for count, path in enumerate(find_checkpoints(folder)):
        try:
            check_whole(path)
        except UserError as error:
            reason = str(error).rstrip(".")
            logger.warning("Not resuming from a checkpoint: %s", error)
            continue
        if count:
            logger.warning("Going back to an older checkpoint, which is whole: %s", path)
        return path
    raise UserError(
        f"No checkpoint in OUTPUT_DIR {folder} can be read ({reason}): start anew without --resume and with another "
        "OUTPUT_DIR."
    )
