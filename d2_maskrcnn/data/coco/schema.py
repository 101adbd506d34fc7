"""Whether the entries of a COCO JSON file have the keys and the types that COCO's format gives them."""

from collections.abc import Callable, Iterator
from typing import Any

from d2_maskrcnn.data.coco.report import Problem, problem, shorten

Entries = list[dict[str, Any]]
Rule = tuple[str, Callable[[Any], bool], str]  # key, whether a value is accepted, what is expected

_MISSING = object()
_BIGGEST = 2**53  # ids beyond this do not survive the way through floating point that some tools take


def is_id(value: Any) -> bool:
    """Whether ``value`` is a whole number that can be an id."""
    return type(value) is int and -_BIGGEST < value < _BIGGEST


def is_number(value: Any) -> bool:
    """Whether ``value`` is a number; truth values are none."""
    return type(value) in (int, float)


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_box(value: Any) -> bool:
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


def _is_flag(value: Any) -> bool:
    return value in (0, 1)  # True and False are equal to these


IMAGE_RULES: tuple[Rule, ...] = (
    ("id", is_id, "a whole number"),
    ("file_name", _is_text, "the image's path inside its folder"),
    ("width", _is_length, "the image's width in pixels, a whole number above 0"),
    ("height", _is_length, "the image's height in pixels, a whole number above 0"),
)
CATEGORY_RULES: tuple[Rule, ...] = (("id", is_id, "a whole number"), ("name", _is_text, "the category's name"))
ANNOTATION_RULES: tuple[Rule, ...] = (
    ("id", is_id, "a whole number"),
    ("image_id", is_id, "the id of an image, a whole number"),
    ("category_id", is_id, "the id of a category, a whole number"),
    ("bbox", _is_box, "[x, y, width, height] in pixels"),
)
EVALUATION_RULES: tuple[Rule, ...] = (
    ("area", is_number, "the object's area in square pixels (COCO's measure needs it)"),
    ("iscrowd", _is_flag, "0, or 1 for a crowd (COCO's measure needs it)"),
)


def check_structure(data: dict[str, Any], evaluate: bool) -> Iterator[Problem]:
    """Yields the problems in the form of the entries of ``images``, ``categories`` and ``annotations``.

    Args:
        data: as read, the three lists there.
        evaluate: whether COCO's measure is to be computed on it, which reads more keys than training does.
    """
    yield from _check_entries(data["images"], "images", IMAGE_RULES)
    yield from _check_entries(data["categories"], "categories", CATEGORY_RULES)
    rules = ANNOTATION_RULES + (EVALUATION_RULES if evaluate else ())
    yield from _check_entries(data["annotations"], "annotations", rules)
    if not evaluate:
        entries = [entry for entry in data["annotations"] if isinstance(entry, dict) and "iscrowd" in entry]
        yield from _check_rule(entries, "annotations", EVALUATION_RULES[1])


def _check_entries(entries: list[Any], plural: str, rules: tuple[Rule, ...]) -> Iterator[Problem]:
    odd = [index for index, entry in enumerate(entries) if type(entry) is not dict]
    yield from problem(
        odd,
        f"{plural} not written as objects",
        lambda index: f"the one at position {index} is {shorten(entries[index])}",
        'expected {"id": ..., ...}',
        structural=True,
    )
    if not odd:
        for rule in rules:
            yield from _check_rule(entries, plural, rule)


def _check_rule(entries: Entries, plural: str, rule: Rule) -> Iterator[Problem]:
    key, accepts, expected = rule
    values = [entry.get(key, _MISSING) for entry in entries]
    if all(map(accepts, values)):
        return
    missing = [index for index, value in enumerate(values) if value is _MISSING]
    wrong = [index for index, value in enumerate(values) if value is not _MISSING and not accepts(value)]

    def which(index: int) -> str:
        number = entries[index].get("id", _MISSING)
        return f"position {index}" if number is _MISSING or key == "id" else f"id {shorten(number)}"

    yield from problem(missing, f"{plural} without {key!r}", which, f"expected {expected}", structural=True)
    yield from problem(
        wrong,
        f"{plural} with a bad {key!r}",
        lambda index: f"{which(index)}: {shorten(values[index])}",
        f"expected {expected}",
        structural=True,
    )
