"""What the HTML pages of all rooms share: `templates/page.css`, colours for light and dark and the style of text."""

from __future__ import annotations

from pathlib import Path

import jinja2

SHARED = Path(__file__).parent / "templates"


def page_loader(templates: Path) -> jinja2.FileSystemLoader:
    """Finds templates in a directory of a room, and what it includes of the shared ones."""
    return jinja2.FileSystemLoader([templates, SHARED])
