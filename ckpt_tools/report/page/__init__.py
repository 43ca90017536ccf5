"""The page around a report: one file with its style, its script and its numbers, which asks nothing of the network.

The content security policy names the hashes of the one script and the one style, so nothing else runs or loads, even
if a text from a results file were ever to become markup.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ..blocks import Blocks
from ..tags import Html, html, shown

SIGNATURE = '<meta name="generator" content="ckpt report">'
SCRIPTS = ("data", "scales", "canvas", "lines", "maps", "scatter", "bars", "controls", "chart", "timeline", "main")

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{signature}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'sha256-{script_hash}'; \
style-src 'sha256-{style_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header><strong>{title}</strong><span class="tools"></span></header>
<main id="content">
<noscript><p>The charts need JavaScript; everything else on this page does not.</p></noscript>
{body}
</main>
<script type="application/json" id="data">{data}</script>
{blocks}
<script>{script}</script>
</body>
</html>
"""


def page(title: str, body: Html, data: Mapping[str, Any], blocks: Blocks) -> str:
    """Return the whole page; `data` is what the script draws from, as JSON."""
    script, style = _script(), _read("style.css")
    return _PAGE.format(
        signature=SIGNATURE,
        script_hash=_hash(script),
        style_hash=_hash(style),
        title=html(shown(title)),
        style=style,
        body=body,
        data=_json(data),
        blocks=blocks.html(),
        script=script,
    )


def _script() -> str:
    parts = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();'


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot end its script element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
