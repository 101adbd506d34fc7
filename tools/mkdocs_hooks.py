"""MkDocs hook: show the cross-references in docstrings, such as :func:`~package.name`, as code."""

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Remove the roles, which only Sphinx interprets, from a rendered page."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>~?", "<code>", html)
