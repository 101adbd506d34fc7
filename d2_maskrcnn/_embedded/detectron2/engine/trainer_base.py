"""The loop of a training, and what can be hooked into it.

A trainer calls every hook's methods in the order of registration::

    hook.before_train()
    for iteration in range(start_iter, max_iter):
        hook.before_step()
        trainer.run_step()      # with hook.after_backward() inside
        hook.after_step()
    hook.after_train()          # also after an error
"""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from detectron2.utils.events import EventStorage

__all__ = ["HookBase", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Something to do at certain moments of the training. Overwrite the moments that matter.

    A hook that must remember something across a restart gives it in ``state_dict()`` and takes it back in
    ``load_state_dict(state)``, which only hooks with a state have.

    Attributes:
        trainer: the trainer (a weak reference to it), from the registration on. While a hook runs,
            ``trainer.iter`` is the current iteration and ``trainer.storage`` the event storage.
    """

    trainer: "TrainerBase" = None  # type: ignore[assignment]

    def before_train(self) -> None:
        """Called before the first iteration."""

    def after_train(self) -> None:
        """Called after the last iteration, or when an error ends the training."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_backward(self) -> None:
        """Called when the gradients are there and the weights are not yet updated."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this hook; nothing by default."""
        return {}


class TrainerBase:
    """Iterates with hooks; what an iteration does is up to :meth:`run_step` of a subclass.

    Attributes:
        iter: the current iteration, from 0; the number of iterations once all are done.
        start_iter: the first iteration of this run.
        max_iter: where the training ends.
        storage: the event storage of this run, open during the training.
    """

    iter: int
    start_iter: int
    max_iter: int
    storage: EventStorage

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0

    def register_hooks(self, hooks: Sequence[HookBase | None]) -> None:
        """Adds hooks behind those that are registered already; None is skipped.

        Raises:
            TypeError: an element is no ``HookBase``.
        """
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must be a HookBase, got {hook!r}")
            # A strong reference would be a cycle, which would keep the model's memory until the garbage collector runs.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Runs the iterations ``start_iter``, ..., ``max_iter - 1``."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # From here on `iter` counts finished iterations, so that hooks can tell the end from an error.
                self.iter = max(start_iter, max_iter)
            except Exception as error:
                logger.error("Training stopped in iteration %d by %s", self.iter, type(error).__name__)
                raise
            finally:
                self.after_train()

    def before_train(self) -> None:
        """Calls the hooks."""
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        """Calls the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        """Moves the storage to this iteration and calls the hooks."""
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        """Calls the hooks."""
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        """Calls the hooks."""
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration."""
        raise NotImplementedError(f"{type(self).__name__} does not say what an iteration is")

    def state_dict(self) -> dict[str, Any]:
        """The iteration, and the states of the hooks that have one, by class name (the first of each class)."""
        hooks: dict[str, Any] = {}
        for hook in self._hooks:
            state = hook.state_dict()
            if state:
                hooks.setdefault(type(hook).__qualname__, state)
        return {"iteration": self.iter, "hooks": hooks} if hooks else {"iteration": self.iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave. A hook that is not registered any more is named in a warning."""
        self.iter = state_dict["iteration"]
        for name, state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("The checkpoint has a state of the hook %r, which is not registered: ignored", name)
            else:
                hook.load_state_dict(state)  # type: ignore[attr-defined]
