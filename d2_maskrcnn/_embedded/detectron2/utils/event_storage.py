"""Storage of what a training measures: numbers with their history, images, histograms."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer

_open_storages: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """Return the innermost storage opened by ``with EventStorage(...)``.

    Raises:
        RuntimeError: no storage is open.
    """
    if not _open_storages:
        raise RuntimeError("get_event_storage() works inside `with EventStorage(...):` only, and no storage is open")
    return _open_storages[-1]


def has_event_storage() -> bool:
    """Return whether a storage is open."""
    return len(_open_storages) > 0


class EventStorage:
    """Measurements up to the current iteration.

    Examples:
        >>> with EventStorage(start_iter=10) as storage:
        ...     storage.put_scalar("total_loss", 0.5)
        ...     get_event_storage().put_scalars(lr=0.01, smoothing_hint=False)
        ...     storage.step()
        >>> storage.latest()
        {'total_loss': (0.5, 10), 'lr': (0.01, 10)}
    """

    def __init__(self, start_iter: int = 0) -> None:
        """Start at ``start_iter``, the first iteration of a resumed training."""
        self._iter = start_iter
        self._prefix = ""
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        # For the writers, which clear them: (name, (C, H, W) image, iteration), and TensorBoard's histograms.
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []

    @property
    def iter(self) -> int:
        """The current iteration, ``start_iter`` before the first :meth:`step`."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The same as :attr:`iter`."""
        return self._iter

    def step(self) -> None:
        """Begin the next iteration; the trainer calls this at the end of each one."""
        self._iter += 1

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Append a number to the history of ``name``.

        Args:
            name: "a/b" is grouped under "a" in TensorBoard.
            value: converted by ``float()``, also a tensor of one element (which blocks on a GPU).
            smoothing_hint: whether the number is noisy, so that writers show a median rather than the latest value.
            cur_iter: iteration of the measurement; None for the current one.

        Raises:
            ValueError: ``name`` had another hint before.
        """
        name = self._prefix + name
        value = float(value)
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"Scalar {name!r} had smoothing_hint={not smoothing_hint} before")
        iteration = self._iter if cur_iter is None else cur_iter
        self._history[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float) -> None:
        """Call :meth:`put_scalar` for each keyword argument."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Store an image for the writers: (3, H, W) RGB, uint8, or float in [0, 1]; an array or a tensor."""
        self._vis_data.append((self._prefix + img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: torch.Tensor, bins: int = 1000) -> None:
        """Store the histogram of a tensor for the writers, with ``bins`` bins between its minimum and maximum."""
        values = hist_tensor.detach().flatten().float()
        low, high = values.min().item(), values.max().item()
        counts = torch.histc(values, bins=bins, min=low, max=high)
        edges = torch.linspace(low, high, steps=bins + 1, dtype=torch.float32)
        self._histograms.append(
            {
                "tag": self._prefix + hist_name,
                "min": low,
                "max": high,
                "num": values.numel(),
                "sum": float(values.sum()),
                "sum_squares": float(values.square().sum()),
                "bucket_limits": edges[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def history(self, name: str) -> HistoryBuffer:
        """Return the history of ``name``; KeyError if there is none."""
        if name not in self._history:
            raise KeyError(f"There is no history of {name!r}; expected one of {', '.join(self._history) or '(none)'}")
        return self._history[name]

    def histories(self) -> Mapping[str, HistoryBuffer]:
        """Return all histories by name."""
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return {name: (latest value, its iteration)}."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return :meth:`latest`, with medians of the last ``window_size`` iterations for noisy numbers."""
        return {
            name: (self._smoothed(name, window_size) if self._smoothing_hints[name] else value, iteration)
            for name, (value, iteration) in self._latest.items()
        }

    def _smoothed(self, name: str, window_size: int) -> float:
        return float(self._history[name].median(self.count_samples(name, window_size)))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Return how many values ``name`` has in the ``window_size`` iterations up to its latest one."""
        values = self.history(name).values()
        first = values[-1][1] - window_size
        return next((i for i, (_, iteration) in enumerate(reversed(values)) if iteration <= first), len(values))

    def smoothing_hints(self) -> dict[str, bool]:
        """Return {name: whether its values are noisy}."""
        return self._smoothing_hints

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix all names inside ``with storage.name_scope("x"):`` with "x/"."""
        before = self._prefix
        self._prefix = before + name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = before

    def clear_images(self) -> None:
        """Remove the images; a writer calls this after writing them."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Remove the histograms; a writer calls this after writing them."""
        self._histograms = []

    def __enter__(self) -> "EventStorage":
        _open_storages.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        last = _open_storages.pop()
        assert last is self, "storages must be closed in the opposite order of their opening"
