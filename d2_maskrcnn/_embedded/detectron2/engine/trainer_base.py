"""Define the training loop and the moments at which hooks take part in it.

A trainer calls the methods of all hooks in the order of registration::

    hook.before_train()
    for iteration in range(start_iter, max_iter):
        hook.before_step()
        trainer.run_step()      # which calls hook.after_backward()
        hook.after_step()
    hook.after_train()          # also after an error
"""

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detectron2.utils.events import EventStorage

__all__ = ["HookBase", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Base class of what happens around the iterations. Subclasses override the methods that they need.

    A hook that must survive a restart returns its state from ``state_dict()`` and restores it in
    ``load_state_dict(state)``, a method that only hooks with a state have.

    Attributes:
        trainer: weak reference to the trainer, set by ``register_hooks``. ``trainer.iter`` is the current iteration,
            ``trainer.storage`` the event storage.
    """

    trainer: "TrainerBase" = None  # type: ignore[assignment]

    def before_train(self) -> None:
        """Run before the first iteration."""

    def after_train(self) -> None:
        """Run after the last iteration, or when an error ends the training."""

    def before_step(self) -> None:
        """Run before each iteration."""

    def after_backward(self) -> None:
        """Run when the gradients are computed and the weights are not updated yet."""

    def after_step(self) -> None:
        """Run after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores of this hook; nothing by default."""
        return {}


class TrainerBase:
    """Run iterations with hooks around them. Subclasses define an iteration in :meth:`run_step`.

    Attributes:
        iter: the current iteration, from 0; ``max_iter`` when all are finished.
        start_iter: the first iteration of this run.
        max_iter: the iteration before which the training ends.
        storage: the event storage of this run, open during the training.
    """

    iter: int
    start_iter: int
    max_iter: int
    storage: EventStorage

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = self.start_iter = 0

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Append hooks to those registered before; None is skipped.

        Raises:
            TypeError: an element is not a ``HookBase``.
        """
        added = [hook for hook in hooks if hook is not None]
        for hook in added:
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must be a HookBase, got {hook!r}")
            # A strong reference would be a cycle, which keeps the model in memory until the garbage collector runs.
            hook.trainer = weakref.proxy(self)
        self._hooks += added

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the iterations ``start_iter``, ..., ``max_iter - 1``."""
        logger.info("Starting training from iteration %d", start_iter)
        self.start_iter, self.iter, self.max_iter = start_iter, start_iter, max_iter
        with EventStorage(start_iter) as self.storage, self._training_hooks():
            while self.iter < max_iter:
                for part in (self.before_step, self.run_step, self.after_step):
                    part()
                self.iter += 1

    @contextmanager
    def _training_hooks(self) -> Iterator[None]:
        try:
            self.before_train()
            yield
        except Exception as error:
            logger.error("Training stopped in iteration %d by %s", self.iter, type(error).__name__)
            raise
        finally:
            self.after_train()

    def _notify(self, moment: str) -> None:
        if moment in ("before_step", "after_train"):  # an iteration begins, or the last one is finished
            self.storage.iter = self.iter
        for hook in self._hooks:
            getattr(hook, moment)()

    def before_train(self) -> None:
        """Run the hooks' ``before_train``."""
        self._notify("before_train")

    def after_train(self) -> None:
        """Run the hooks' ``after_train``."""
        self._notify("after_train")

    def before_step(self) -> None:
        """Run the hooks' ``before_step``."""
        self._notify("before_step")

    def after_backward(self) -> None:
        """Run the hooks' ``after_backward``."""
        self._notify("after_backward")

    def after_step(self) -> None:
        """Run the hooks' ``after_step``."""
        self._notify("after_step")

    def run_step(self) -> None:
        """Run one iteration; defined by subclasses."""
        raise NotImplementedError(f"{type(self).__name__} does not define run_step")

    def state_dict(self) -> dict[str, Any]:
        """Return the iteration and the states of hooks, by class name (of each class, the first hook with a state)."""
        states: dict[str, Any] = {}
        for hook in self._hooks:
            if state := hook.state_dict():
                states.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter} | ({"hooks": states} if states else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, with a warning for hooks that are no longer registered."""
        registered = {type(hook).__qualname__: hook for hook in reversed(self._hooks)}
        for name, state in state_dict.get("hooks", {}).items():
            if name in registered:
                registered[name].load_state_dict(state)  # type: ignore[attr-defined]
            else:
                logger.warning("The checkpoint has a state of the hook %r, which is not registered: ignored", name)
        self.iter = int(state_dict["iteration"])
