"""What the build of the pages needs beside its settings: formulas without the network, and links that leave the pages.

Formulas stand in fences named `math`, as GitHub renders them, and become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def formula(source: str, *_: Any, **__: Any) -> str:
    """Turn a fence named `math` into MathML, one formula a line."""
    lines = [line for line in source.splitlines() if line.strip()]
    return f'<div class="formula">{"".join(convert(line, display="block") for line in lines)}</div>'


def on_config(config: Any) -> Any:
    """Have fences named `math` drawn as formulas."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "formula", "format": formula})
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Keep the words of links to files of the repository that are no pages, and drop the links."""
    folder = Path(config.docs_dir) / Path(page.file.src_uri).parent

    def kept(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match[2]))
        inside = (
            path.is_relative_to(config.docs_dir) or not path.exists()
        )  # what is missing is left to the build's check
        return match[0] if inside else match[1]

    return _OUTSIDE.sub(kept, markdown)
