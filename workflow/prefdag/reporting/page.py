"""The report as one HTML file that needs no network and no other file."""

import base64
import re
import tomllib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

TEMPLATE = "page.html.jinja"
LOOK = "look.css"  # in the templates of the package; named, so that it is one of the sources of a stage


def render_page(
    catalogue: Mapping[str, Any], images: Mapping[str, bytes], template: str = TEMPLATE, **content: Any
) -> str:
    """Render a page. All content is escaped but the figures' captions.

    Args:
        catalogue: figures by name (`figures.catalogue.Catalogue`).
        images: PNGs by name, of the figures to show.
        template: name of a template.
        content: what the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parents[level] / "templates" for level in (0, 1)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures = [
        {**vars(entry), "image": base64.b64encode(images[name]).decode()}
        for name, entry in catalogue.items()
        if name in images
    ]
    sections = {figure["section"] for figure in figures}
    page = environment.get_template(template)
    return page.render(figures=figures, shown_sections=sections, packages=packages(), **content) + "\n"


PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def packages() -> list[dict[str, str]]:
    """Every direct dependency of `pyproject.toml` in its order; nothing where the package runs outside its tree.

    A package that is not installed, or states no licence, says so.
    """
    if not PROJECT.is_file():
        return []
    pins = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [_about(re.split(r"[=<>!~ ;\[]", pin)[0], pin.partition("==")[2]) for pin in pins]


def _about(name: str, pinned: str) -> dict[str, str]:
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return {"name": name, "version": f"{pinned}, not installed", "licence": ""}
    version = about["Version"].partition("+")[0]  # the build, +cpu or +cu130, is not the version
    return {"name": name, "version": version, "licence": licence(about)}


def licence(about: metadata.PackageMetadata) -> str:
    """The SPDX expression, else the classifiers, else the first line of the licence that the metadata hold."""
    classified = [
        line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if line.startswith("License :: ")
    ]
    stated = (about.get_all("License-Expression") or [""])[0]
    free = (about.get_all("License") or [""])[0].strip().splitlines()
    return stated or ", ".join(classified) or (free[0][:60] if free else "not stated")
