"""MkDocs hook: make code in running text readable, in docstrings and on narrow screens."""

import re
from typing import Any

_ROLES = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?")
_INLINE_CODE = re.compile(r"(?<!<pre>)<code>([^<]+)</code>")
_WORD = re.compile(r"[^\s&]+")


def on_page_content(html: str, **_: Any) -> str:
    """Show Sphinx's cross-references as code, and choose where lines may break inside code of a rendered page."""
    return _INLINE_CODE.sub(
        lambda code: f"<code>{_WORD.sub(_with_breaks, ' '.join(code[1].split()))}</code>", _ROLES.sub("<code>", html)
    )


def _with_breaks(word: re.Match[str]) -> str:
    """Keep a short word with a hyphen, such as --force-reinstall, on one line; let a long one break after dots."""
    text = word[0]
    if len(text) <= 30 and "-" in text:
        return f'<span class="word">{text}</span>'
    marks = "_" if not re.search(r"\w[./]\w", text) else "./" if len(text) < 40 else "./_"
    return re.sub(rf"(?<=\w)([{marks}])(?=\w)", r"\1<wbr>", text) if len(text) > 18 else text
