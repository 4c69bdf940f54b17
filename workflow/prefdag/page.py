"""The report as one HTML file that needs no network and no other file."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from prefdag.licences import packages

TEMPLATE = "page.html.jinja"


def page(figures: Mapping[str, bytes], template: str = TEMPLATE, **content: Any) -> str:
    """Fill a template. figures: name -> PNG bytes; everything that is no markup of ours is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = {name: base64.b64encode(image).decode() for name, image in figures.items()}
    return environment.get_template(template).render(figures=images, packages=packages(), **content) + "\n"
