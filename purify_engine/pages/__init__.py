"""Pages for people: one HTML file each, without scripts, from templates that share their looks; names and pictures to show.

Free of torch. A template is named by its place in the package, `evaluation/report.html.j2`, and extends `pages/page.html.j2`.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from purify_engine.pages.visible import visible


def render(template: str, **values: Any) -> str:
    """The page that `template` makes of `values`, every text escaped; jinja2.UndefinedError where a value is missing."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_source),
    )
    environment.filters["visible"] = visible
    return environment.get_template(template).render(values)


def _source(template: str) -> str:
    return files("purify_engine").joinpath(template).read_text(encoding="utf-8")
