"""Check that the entries of a COCO JSON file have the keys, types and ranges that the format defines."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from d2_maskrcnn.data.flaws.flaw import Flaw, flaw, shorten

Rule = tuple[str, Callable[[Any], bool], str]  # key, whether a value is accepted, what is expected

_MISSING = object()
_BIGGEST = 2**53  # larger integers are not exact in floating point, through which some tools pass them


def is_id(value: Any) -> bool:
    """Return whether ``value`` is an integer that can be an id."""
    return type(value) is int and -_BIGGEST < value < _BIGGEST


def is_number(value: Any) -> bool:
    """Return whether ``value`` is a float or an integer that a float represents exactly; not bool."""
    return type(value) is float or is_id(value)


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_text(value: Any) -> bool:
    """Accept non-empty text without NUL and surrogates, which file names and UTF-8 files cannot contain."""
    if not isinstance(value, str) or value == "":
        return False
    return "\0" not in value and (value.isascii() or not any("\ud800" <= each <= "\udfff" for each in value))


def is_box(value: Any) -> bool:
    """Return whether ``value`` is a list of four numbers, which may be NaN or infinite."""
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


def is_area(value: Any) -> bool:
    """Return whether ``value`` is a finite number that is not negative."""
    return is_number(value) and 0 <= value < math.inf


IMAGE_RULES: tuple[Rule, ...] = (
    ("id", is_id, "an integer"),
    ("file_name", _is_text, "the path of the image in the image folder"),
    ("width", _is_length, "the width of the upright image in pixels, an integer above 0"),
    ("height", _is_length, "the height of the upright image in pixels, an integer above 0"),
)
CATEGORY_RULES: tuple[Rule, ...] = (("id", is_id, "an integer"), ("name", _is_text, "the name of the category"))
REFERENCE_RULES: tuple[Rule, ...] = (
    ("id", is_id, "an integer"),
    ("image_id", is_id, "the id of an image, an integer"),
    ("category_id", is_id, "the id of a category, an integer"),
)
ANNOTATION_RULES: tuple[Rule, ...] = (*REFERENCE_RULES, ("bbox", is_box, "[x, y, width, height] in pixels"))
EVALUATION_RULES: tuple[Rule, ...] = (
    ("area", is_area, "the area of the object in square pixels, finite and not negative (COCO's metrics need it)"),
    ("iscrowd", lambda value: value in (0, 1), "0, or 1 for a crowd (COCO's metrics need it)"),
)
OPTIONAL_RULES: tuple[Rule, ...] = (
    *EVALUATION_RULES,
    ("ignore", lambda value: not value, "no such key: it is not part of COCO's format; use 'iscrowd', or delete it"),
)


def check_structure(data: dict[str, Any], evaluate: bool) -> Iterator[Flaw]:
    """Yield the flaws in the entries of ``images``, ``categories`` and ``annotations``.

    Args:
        data: as :func:`~d2_maskrcnn.data.coco.reader.read_coco_json` returns it.
        evaluate: whether COCO's metrics are computed on it, which need more keys than training.
    """
    rules = ANNOTATION_RULES + (EVALUATION_RULES if evaluate else ())
    optional = tuple(rule for rule in OPTIONAL_RULES if rule not in rules)
    for key, required, others in (
        ("images", IMAGE_RULES, ()),
        ("categories", CATEGORY_RULES, ()),
        ("annotations", rules, optional),
    ):
        yield from _check_entries(data[key], key, required, others)


def first_fault(entry: dict[str, Any], rules: tuple[Rule, ...]) -> tuple[str, str] | None:
    """Return what is wrong with one entry, and the value; None if it passes all rules."""
    for key, accepts, expected in rules:
        if key not in entry:
            return f"no {key!r}; expected {expected}", ""
        if not accepts(entry[key]):
            return f"a bad {key!r}; expected {expected}", shorten(entry[key])
    return None


def is_sound(entry: Any, rules: tuple[Rule, ...]) -> bool:
    """Return whether an entry is an object whose values the rules accept."""
    return type(entry) is dict and all(accepts(entry.get(key, _MISSING)) for key, accepts, _ in rules)


def _check_entries(
    entries: list[Any], plural: str, required: tuple[Rule, ...], optional: tuple[Rule, ...]
) -> Iterator[Flaw]:
    yield from flaw(
        "not-an-object",
        [index for index, entry in enumerate(entries) if type(entry) is not dict],
        f"{plural} not written as JSON objects",
        lambda index: f"the one at position {index} is {shorten(entries[index])}",
        'expected {"id": ..., ...}',
        entries=plural,
        structural=True,
    )
    objects = [index for index, entry in enumerate(entries) if type(entry) is dict]
    for rule in required:
        yield from _check_rule(entries, objects, plural, rule)
    for rule in optional:
        yield from _check_rule(entries, [index for index in objects if rule[0] in entries[index]], plural, rule)


def _check_rule(entries: list[Any], indices: list[int], plural: str, rule: Rule) -> Iterator[Flaw]:
    key, accepts, expected = rule
    if all(accepts(entries[index].get(key, _MISSING)) for index in indices):
        return
    values = {index: entries[index].get(key, _MISSING) for index in indices}
    missing = [index for index, value in values.items() if value is _MISSING]
    wrong = [index for index, value in values.items() if value is not _MISSING and not accepts(value)]

    def which(index: int) -> str:
        number = entries[index].get("id", _MISSING)
        return f"position {index}" if number is _MISSING or key == "id" else f"id {shorten(number)}"

    yield from flaw(
        f"{key.replace('_', '-')}-missing",
        missing,
        f"{plural} without {key!r}",
        which,
        f"expected {expected}",
        entries=plural,
        structural=True,
    )
    yield from flaw(
        f"{key.replace('_', '-')}-invalid",
        wrong,
        f"{plural} with a bad {key!r}",
        lambda index: f"{which(index)}: {shorten(values[index])}",
        f"expected {expected}",
        entries=plural,
        structural=True,
    )
