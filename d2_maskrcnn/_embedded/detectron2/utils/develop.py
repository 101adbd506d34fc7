"""Placeholders for classes and functions whose dependency is not installed."""

from typing import Any, NoReturn

__all__ = ["create_dummy_class", "create_dummy_func"]


def create_dummy_class(klass: str, dependency: str | list[str], message: str = "") -> type:
    """Return a class named ``klass`` that raises ImportError for any use and names the missing ``dependency``."""
    text = _text(klass, dependency, message)

    class _Dummy(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
            raise ImportError(text)

        def __getattr__(cls, name: str) -> NoReturn:
            raise AttributeError(name) if name.startswith("__") else ImportError(text)

    return _Dummy(klass, (), {})


def create_dummy_func(func: str, dependency: str | list[str], message: str = "") -> Any:
    """Return a function that raises ImportError and names the missing ``dependency``."""

    def dummy(*args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(_text(func, dependency, message))

    return dummy


def _text(name: str, dependency: str | list[str], message: str) -> str:
    names = dependency if isinstance(dependency, str) else ", ".join(dependency)
    return f"{name} needs {names}, which cannot be imported. {message}".rstrip()
