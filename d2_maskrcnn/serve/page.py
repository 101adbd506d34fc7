"""Render the web page, one file that needs no other; the HTML is in ``templates/``."""

import base64
import hashlib
import re

from d2_maskrcnn.serve.settings import Settings
from d2_maskrcnn.visualization.pages import page_environment
from d2_maskrcnn.visualization.palette import PALETTE, text_color, to_hex


def render_page(settings: Settings) -> str:
    """Render the page: an image in, its detections over a movable threshold, and downloads."""
    environment = page_environment("d2_maskrcnn.serve")
    colors = [{"fill": to_hex(color), "text": to_hex(text_color(color))} for color in PALETTE]
    return environment.get_template("index.html.jinja").render(
        colors=colors, lowest=settings.lowest_threshold, threshold=settings.default_threshold
    )


def content_security_policy(html: str) -> str:
    """Return the ``Content-Security-Policy`` of a page: its own script and style, and requests to its own server."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
