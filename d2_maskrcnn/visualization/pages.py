"""Templates of the web pages that this project writes."""

from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from d2_maskrcnn.visualization.palette import THEMES


def page_environment(package: str, extensions: Sequence[str] = ()) -> Environment:
    """Return the templates in the folder ``templates`` of a package, with escaped values; unknown names are errors.

    Each can include ``theme.css``, which sets the colors of the light and the dark theme.

    Args:
        package: such as ``d2_maskrcnn.inspection``.
        extensions: of Jinja.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader(__package__)]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        extensions=extensions,
    )
    environment.globals["themes"] = THEMES
    return environment
