"""The directive ``{config-keys}``: every key of ``conf/``, its default, its type and its meaning.

Types and limits are those of the dataclasses that check a configuration, defaults and meanings
those of the files of ``conf/``.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from omegaconf import OmegaConf
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from condexp.config import GROUPS
from condexp.config.by_name import find
from condexp.config.presets import conf_dir
from condexp.runs.sweep.slurm.options import SlurmOptions
from condexp.training.seeding import MAX_SEED

TYPES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Args:
        name: Dotted, with its group: ``trainer.checkpoint.keep``.
        default: As YAML.
        allowed: Its type and limits, in words.
        meaning: What its file says of it.
    """

    name: str
    default: str
    allowed: str
    meaning: str


def spec(group: str, choice: str) -> type:
    """Find the dataclass that checks a file of ``conf/``.

    Args:
        group: Its folder, with dots: ``hydra.launcher``.
        choice: Its name.

    Returns:
        The dataclass.
    """
    if group == "hydra.launcher":
        return SlurmOptions
    types = GROUPS[group]
    if group in {"model", "dataset"}:
        found: type = find(group, choice).Spec
        return found
    return types[choice] if isinstance(types, Mapping) else types


def choices() -> dict[str, list[Path]]:
    """List the files that hold keys.

    Returns:
        Group to its files; those of ``analysis`` are presets that change ``factors``. What all
        loggers share is in ``config.yaml``.
    """
    files = {group: sorted((conf_dir() / group).glob("*.yaml")) for group in GROUPS}
    files["analysis"] = [conf_dir() / "analysis" / "factors.yaml"]
    files["logger"].insert(0, conf_dir() / "config.yaml")
    return files | {"hydra.launcher": [conf_dir() / "hydra" / "launcher" / "slurm.yaml"]}


def keys(group: str, file: Path) -> list[Key]:
    """List the keys of one file of ``conf/``.

    Args:
        group: Its folder, with dots.
        file: The file.

    Returns:
        The keys, in the order of their dataclass.
    """
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    said = meanings(file.read_text())
    if file.stem == "config":
        values = values[group]
        said = {path[1:]: text for path, text in said.items() if path[0] == group}
    return list(_keys(spec(group, file.stem), group, values, said, ()))


def _keys(
    kind: type,
    group: str,
    values: Mapping[str, Any],
    said: Mapping[tuple[str, ...], str],
    parents: tuple[str, ...],
) -> Iterator[Key]:
    hints = get_type_hints(kind)
    for item in fields(kind):
        path, hint = (*parents, item.name), hints[item.name]
        if item.name == "name" and group != "hydra.launcher":
            continue  # the choice itself
        if group == "logger" and item.name not in values:
            continue  # another logger's
        inner = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
        if isinstance(inner, type):
            within = list(_keys(inner, group, values[item.name], said, path))
            if said.get(path) and said[path] != within[0].meaning:  # of them all
                yield Key(".".join((group, *path, "*")), "", "", said[path])
            yield from within
            continue
        # free_keys: what kwargs holds is the user's.
        value = "{}" if item.name == "kwargs" else _as_yaml(values[item.name])
        allowed = "your own" if item.name == "kwargs" else _allowed(item, hint)
        meaning = "its arguments, by name" if item.name == "kwargs" else said.get(path, "")
        listed = " | ".join(map(str, item.metadata.get("choices", ())))
        yield Key(".".join((group, *path)), value, allowed, meaning.removeprefix(f"{listed}: "))


def _as_yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def _allowed(item: "Field[Any]", hint: Any) -> str:
    limits = item.metadata
    if "choices" in limits:
        words = ", ".join(f"`{choice}`" for choice in limits["choices"])
        many = "a list of " if get_origin(hint) is list else ""
        null = " or `null`" if NoneType in get_args(hint) else ""
        return f"{many}{words}{null}"
    if isinstance(hint, UnionType):
        parts = [arg for arg in get_args(hint) if arg is not NoneType]
        words = " or ".join(_one(limits, part) for part in parts)
        return f"{words} or `null`" if NoneType in get_args(hint) else words
    return _one(limits, hint)


def _one(limits: Mapping[str, Any], hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is list:
        return f"list: each {_one(limits, args[0])}"
    if origin is tuple:
        return f"{len(args)} values: each {_one(limits, args[0])}"
    if origin is dict:
        return "mapping"
    words = TYPES[hint]
    if "low" in limits and hint is not str:
        words += f" {'>' if limits['open_low'] else '≥'} {limits['low']:g}"
        if limits["high"] != float("inf"):
            words += f" and {'<' if limits['open_high'] else '≤'} {limits['high']:,}"
    return words


def meanings(text: str) -> dict[tuple[str, ...], str]:
    """Read what a file's comments say of its keys.

    Args:
        text: The YAML.

    Returns:
        Path of a key to the comment in its line, with the lines that continue it, or to that of the
        mapping it stands in, where that is the same line; after the comment above it.
    """
    lines = text.splitlines()
    found: dict[tuple[str, ...], str] = {}

    def visit(node: yaml.Node, path: tuple[str, ...], inherited: tuple[int, str]) -> None:
        assert isinstance(node, yaml.MappingNode)
        for key, value in node.value:
            line, own = key.start_mark.line, (*path, key.value)
            comment = _comment(lines, line, top=not path)
            found[own] = inherited[1] if line == inherited[0] else comment
            if isinstance(value, yaml.MappingNode):
                visit(value, own, (line, comment))

    root = yaml.compose(text)
    assert root is not None
    visit(root, (), (-1, ""))
    return found


def _comment(lines: list[str], number: int, *, top: bool) -> str:
    above: list[str] = []
    indent = len(lines[number]) - len(lines[number].lstrip())
    for line in reversed(lines[:number]):
        if not line.startswith(f"{' ' * indent}# "):
            break
        above.insert(0, line.strip("# "))
    if top and len(above) == number:
        above = []  # the head of the file
    _, mark, behind = lines[number].partition(" # ")
    said = [*above, behind.strip()] if mark else above
    column = lines[number].find(" # ") + 1
    for line in lines[number + 1 :] if mark else []:
        if line.find("#") < column or line.strip("# ") == "" or line[:column].strip():
            break
        said.append(line.strip("# "))
    return " ".join(said)


def head(file: Path) -> str:
    """Read what a file of ``conf/`` says of itself.

    Args:
        file: The file.

    Returns:
        The comment at its head, without the examples, or that of its ``name``; empty without both.
    """
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("#   "):
            lines.append(line.strip("# "))
    return " ".join(lines) or meanings(file.read_text()).get(("name",), "")


def page() -> str:
    """Write the tables of all keys.

    Returns:
        Markdown.
    """
    parts = ["## The run itself\n", _table(_top())]
    for group, files in choices().items():
        parts.append(f"## {group.replace('.', '/')}\n")
        for file in files:
            several = len(files) > 1 or group == "hydra.launcher"
            if file.parent != conf_dir():
                title = f"### {group.replace('.', '/')}={file.stem}\n"
                parts += [*([title] if several else []), f"{_plain(head(file))}\n"]
            parts.append(_table(keys(group, file)))
        if group == "analysis":
            parts += [_presets()]
    return "\n".join(parts)


def _top() -> list[Key]:
    said = meanings((conf_dir() / "config.yaml").read_text())
    limits = {"low": 0, "high": MAX_SEED, "open_low": False, "open_high": False}
    found = [Key("seed", "1", _one(limits, int), said["seed",])]
    for name in ("experiment", "profile"):
        files = sorted((conf_dir() / name).glob("*.yaml"))
        allowed = f"{', '.join(f'`{file.stem}`' for file in files)} or `null`"
        found.append(Key(name, "null", allowed, f"a preset of conf/{name}/, or your own"))
    return found


def _presets() -> str:
    rows = [
        f"| `analysis={file.stem}` | {_plain(head(file))} |"
        for file in sorted((conf_dir() / "analysis").glob("*.yaml"))
    ]
    return "\n".join(["| preset | |", "|---|---|", *rows, ""])


def _table(rows: list[Key]) -> str:
    if not rows:
        return ""
    lines = ["| key | default | allowed | |", "|---|---|---|---|"]
    for key in rows:
        default = f"`{key.default}`" if key.default else ""
        lines.append(f"| `{key.name}` | {default} | {key.allowed} | {_plain(key.meaning)} |")
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]$|])", r"\\\1", text)


class ConfigKeys(SphinxDirective):
    """All tables."""

    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        """Parse the generated Markdown where the directive stands.

        Returns:
            Its sections.
        """
        found = nodes.Element()
        lines = StringList(textwrap.dedent(page()).splitlines(), source="conf/")
        self.state.nested_parse(lines, 0, found, match_titles=True)
        return list(found.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive.

    Args:
        app: Sphinx.

    Returns:
        That pages may be written in parallel.
    """
    app.add_directive("config-keys", ConfigKeys)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
