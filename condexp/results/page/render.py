"""From what a page shows to its HTML: the template, with everything inlined and escaped."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from condexp.errors import InputError
from condexp.results.page.packing import compress

REFRESH_SECONDS = 10
ASSETS = files("condexp.results.page") / "assets"


def require_packages() -> None:
    """Refuse early to write a page without what it is made with.

    Raises:
        InputError: If plotly or jinja2 is missing.
    """
    missing = [name for name in ("plotly", "jinja2") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"report --format html needs {' and '.join(missing)}: pip install 'condexp[report]'."
        )


def render(template: str, content: Mapping[str, Any], scripts: Sequence[str] = ()) -> bytes:
    """Write a page.

    A content security policy lets it load nothing at all, and run its own scripts alone.

    Args:
        template: Name of the template.
        content: What it shows; texts of any origin. ``data`` is what scripts read, plain values,
            and ``blobs`` packed numbers by name.
        scripts: Names of the scripts that draw; none where nothing is drawn.

    Returns:
        The page.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    code = "\n".join(_asset(name) for name in ("page.js", *scripts))
    blobs, allowed = dict(content.get("blobs", {})), [code]
    if scripts:
        blobs["plotly"], plotly = _plotly()
        allowed.append(plotly)
    live = bool(content.get("live"))
    data = {**content.get("data", {}), "refresh_seconds": REFRESH_SECONDS if live else 0}
    page = environment.get_template(template).render({
        "notes": [],
        **content,
        "live": live,
        "refresh_seconds": REFRESH_SECONDS,
        "version": version("condexp"),
        "script_sources": " ".join(f"'sha256-{_hash(each)}'" for each in allowed),
        "css": _safe(_asset("page.css")),
        "script": _safe(code),
        "blobs": blobs,
        "data_json": _safe(_json(data)),
    })
    return page.encode(errors="replace")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _plotly() -> tuple[str, str]:
    """Return plotly.js, packed, and as it is."""
    spec = find_spec("plotly")  # not imported: all of it would take a second
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_bytes()
    return compress(text), text.decode()


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(data: Mapping[str, Any]) -> str:
    """Return plain values as JSON in which no text can end the element that it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _safe(text: str) -> Any:
    """Return a text marked as HTML: our own files, and JSON that was escaped for it."""
    from markupsafe import Markup

    return Markup(text)
