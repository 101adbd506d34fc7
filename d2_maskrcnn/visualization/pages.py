"""Templates of the web pages that this project writes."""

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_environment(package: str, extensions: Sequence[str] = ()) -> Environment:
    """Return the templates in the folder ``templates`` of a package, with escaped values; unknown names are errors.

    Args:
        package: such as ``d2_maskrcnn.inspection``.
        extensions: of Jinja.
    """
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        extensions=extensions,
    )
