"""README, CONTRIBUTING and docs/: commands parse and compose, Python runs, links and names exist.

How a block is tested is the choice of its fence; CONTRIBUTING.md explains the fences.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from markdown_it import MarkdownIt

from benchmarks.__main__ import BENCHMARKS
from condexp.analysis.vocabulary import WHOLE_MATRICES
from condexp.cli.main import main
from condexp.config.presets import chosen_presets, conf_dir
from condexp.config.validation import parse_config
from condexp.results import figures
from tests.in_process import run_jobs_here
from tests.results.stored import write_run

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN_BY_CONDEXP = "reproduction.md"  # a report: its commands are those of the runs it is of
INDEX = ROOT / "docs" / "index.md"
WITHOUT_TEXT = {"index.md", "changelog.md", "contributing.md"}  # they include other files
TASKS = ROOT / "docs" / "tasks.md"
START = ROOT / "docs" / "start.md"
RUN_WHOLE = (TASKS, START)  # from top to bottom, by a test of their own
DIRECTIVES = r"\{(?:toctree|include|eval-rst|config-keys)\}.*|\{drawn\} \S+\.png .*"
FENCES = rf"sh|sh run|sh cluster|text|python( \S+\.py)?|yaml \S+\.yaml|{DIRECTIVES}"
READERS = {"show", "status", "table", "validate", "export"}  # run; the others are parsed
OPERATORS = {"|", "||", "&&", ";", ">", "&"}
GROUPS = (
    "model",
    "dataset",
    "optimizer",
    "scheduler",
    "loss",
    "trainer",
    "analysis",
    "store",
    "run",
    "logger",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    fence: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that its fence says it is the content of."""
        written = self.fence.startswith(("python ", "yaml "))
        return self.fence.split()[1] if written else None

    @property
    def picture(self) -> str | None:
        """The file that its commands draw."""
        return self.fence.split()[1] if self.fence.startswith("{drawn}") else None

    @property
    def commands(self) -> list[list[str]]:
        """Its simple commands, as words."""
        commands: list[list[str]] = [[]]
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
            lexer.whitespace_split = True
            for word in lexer:
                if word in OPERATORS:
                    commands.append([])
                else:
                    commands[-1].append(word)
            commands.append([])
        return [words for words in commands if words]


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)
    return [Block(fence.strip(), text) for fence, text in found]


def prose(page: Path) -> str:
    return re.sub(r"^```.*\n(?:.*\n)*?```$", "", page.read_text(), flags=re.MULTILINE)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=map(name, PAGES))
others = pytest.mark.parametrize("page", [p for p in PAGES if p not in RUN_WHOLE], ids=name)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have one: stored runs under ``outputs/``, made without training."""
    folder = tmp_path_factory.mktemp("user")
    whole: dict[str, Any] = {"matrices": WHOLE_MATRICES, "save_spectra": True}
    write_run(folder / "outputs/default/mlp-digits-s1-12345678", **whole)
    resnet: dict[str, Any] = {"model__name": "resnet", "model__last_bn": True}
    write_run(folder / "outputs/default/resnet-digits-s1-12345678", **resnet)
    for seed in (1, 2):
        for last_bn in (False, True):
            setting: dict[str, Any] = {"seed": seed, "model__last_bn": last_bn, "profile": "cpu"}
            write_run(folder / f"outputs/table1/mlp-digits-s{seed}-{last_bn}", **setting)
    return folder


@pytest.fixture
def here(stored: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, with the files that the page says to write, as the current one."""
    for block in blocks(page):
        if block.file is not None:
            path = stored / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    monkeypatch.chdir(stored)
    monkeypatch.setattr(sys, "path", [str(stored), *sys.path])
    return stored


class Parsed(Exception):  # noqa: N818 - it is no error
    """A command line was understood, and is not to be carried out."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.options = options


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], argparse.Namespace | None]:
    """Let condexp parse a command line; None where it only prints its help."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # condexp sets it: it is to be put back
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise Parsed(parse_args(self, args, namespace))

    def parsed(args: Sequence[str]) -> argparse.Namespace | None:
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
            try:
                assert main(args) == 0, args
            except Parsed as done:
                return done.options
        return None

    return parsed


def check_composition(options: argparse.Namespace) -> None:
    """Compose and validate what Hydra was asked for; of a sweep, a job for each choice of files."""
    if options.shell_completion or options.hydra_help:
        return
    jobs = [options.overrides]
    if options.multirun:
        overrides = OverridesParser.create().parse_overrides(options.overrides)
        ((*jobs,),) = BasicSweeper.split_arguments(overrides, None)
    folder = options.config_dir and Path(options.config_dir).resolve()
    path = (f"hydra.searchpath=[file://{folder}]",) if folder else ()
    for job in {choices(job): tuple(job) for job in jobs}.values():
        compose_once((*job, *path))


def choices(overrides: Sequence[str]) -> tuple[str, ...]:
    keys = [override.partition("=")[0] for override in overrides]
    return tuple(
        override
        for override, key in zip(overrides, keys, strict=True)
        if "." not in key and key != "seed"
    )


@cache
def compose_once(overrides: tuple[str, ...]) -> None:
    """Compose and validate one job; the pages have many commands in common."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = compose("config", list(overrides), return_hydra_config=True)
    parse_config(composed, **chosen_presets(composed.hydra))


def targets() -> set[str]:
    """The Makefile's targets."""
    makefile = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))


def check_make(words: Sequence[str]) -> None:
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    assert {word for word in words if "=" not in word} <= targets()
    assert settings.pop("PROFILE", "smoke") in {"smoke", "cpu", "paper"}
    launcher = settings.pop("LAUNCHER", "local")
    assert (conf_dir() / "hydra" / "launcher" / f"{launcher}.yaml").is_file()
    assert not settings


def check_python(words: Sequence[str]) -> None:
    assert words[0] == "-m"
    module, *rest = words[1:]
    if module == "benchmarks":
        parser = argparse.ArgumentParser()
        parser.add_argument("names", nargs="*", choices=BENCHMARKS)
        parser.add_argument("--pairs", type=int)
        parser.add_argument("--json", type=Path)
        parser.parse_args(rest)
    else:
        assert module.startswith("benchmarks.")
        assert not rest
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()


def check_pip(words: Sequence[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[0] == "install"
    given = re.fullmatch(r"\.(?:\[(.*)\])?", words[-1])
    assert given
    assert set((given[1] or "dev").split(",")) <= set(extras["optional-dependencies"])
    assert set(words[1:-1]) <= {"--editable"}


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "make": check_make,
    "python": check_python,
    "pip": check_pip,
    "pre-commit": lambda words: None,
    ".": lambda words: None,  # the virtual environment's activate
}


def condexp_commands(block: Block) -> Iterator[list[str]]:
    """Yield the arguments of each ``condexp``, also where another program starts it."""
    for words in block.commands:
        if words[0] == "eval":  # "$(condexp …)"
            words = shlex.split(words[1].strip("$()"))
        starts = [i for i, word in enumerate(words) if word.rpartition("/")[2] == "condexp"]
        if starts and (starts[0] == 0 or block.fence == "sh cluster"):
            yield words[starts[0] + 1 :]
        elif block.fence == "sh":
            program = words[0].rpartition("/")[2]
            assert program in CHECKS, f"nothing is known of {' '.join(words)}: see CONTRIBUTING.md"
            CHECKS[program](words[1:])


@others
def test_commands(
    page: Path,
    here: Path,
    parse: Callable[[Sequence[str]], argparse.Namespace | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shell = [block for block in blocks(page) if block.fence.startswith(("sh", "{drawn}"))]
    for args in (args for block in shell for args in condexp_commands(block)):
        if args and args[0] in READERS:
            paths = [sorted(here.glob(word)) if "*" in word else [word] for word in args]
            assert main([str(word) for words in paths for word in words]) == 0, args
            continue
        options = parse(args)
        if options is not None and hasattr(options, "overrides"):
            check_composition(options)
        elif args[0] == "figure":
            assert getattr(options, "name", None) in figures.NAMES
        elif args[0] == "data":
            assert (conf_dir() / "dataset" / f"{getattr(options, 'name', None)}.yaml").is_file()
    capsys.readouterr()


@others
def test_python_blocks_run(page: Path, here: Path) -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    for number, block in enumerate(blocks(page)):
        if block.fence.startswith("python"):
            exec(compile(block.text, f"{page.name}, block {number}", "exec"), names)


def run_whole(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Each block as it stands, but that jobs run in this process, and runs draw no overview."""
    run_jobs_here(monkeypatch)
    monkeypatch.setattr("condexp.runs.attempt.draw_overview", lambda folder: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    names: dict[str, Any] = {"__name__": "docs"}
    for number, block in enumerate(blocks(page)):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
        elif block.fence == "python":
            exec(compile(block.text, f"{page.name}, block {number}", "exec"), names)
        else:
            for args in condexp_commands(block):
                found = [sorted(tmp_path.glob(word)) if "*" in word else [word] for word in args]
                words = [str(word) for several in found for word in several]
                assert main(words) == 0, (args, capsys.readouterr().err)
            assert block.picture is None or (tmp_path / block.picture).is_file()
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return names


def test_the_start_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_whole(START, tmp_path, monkeypatch, capsys)
    assert names["snapshot"].layers == ("0", "3")


@pytest.mark.filterwarnings("ignore")  # Optuna 2's own, of its age
def test_tasks_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_whole(TASKS, tmp_path, monkeypatch, capsys)
    assert {path.suffix for path in tmp_path.rglob("*")} >= {".png", ".pdf", ".csv", ".h5", ".pt"}
    assert names["best"] in names["errors"]
    assert set(names["means"].index) == {"none", "batch"}
    assert len(names["frame"]) == 6


@pages
def test_every_block_says_how_it_is_tested(page: Path) -> None:
    text = page.read_text()
    assert text.count("```") % 2 == 0
    fences = {block.fence for block in blocks(page)}
    if page.name != WRITTEN_BY_CONDEXP:
        assert all(re.fullmatch(FENCES, fence) for fence in fences), fences
    for line in prose(page).splitlines():
        assert not re.match(r"    +(condexp|make|\.venv)\b", line), f"indented: {line}"


def anchor(heading: str) -> str:
    """The name that GitHub, and MyST with ``heading_anchors``, give a heading."""
    plain = re.sub(r"[`*]", "", heading).strip().lower()
    kept = (c for c in plain if c in "-_ " or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


@pages
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert found.is_relative_to(ROOT)
        if heading:
            headings = re.findall(r"^#+ (.*)$", prose(found), re.MULTILINE)
            assert heading in map(anchor, headings), f"{page.name}: {target}"


def code(page: Path) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def keys(group: str) -> Iterator[str]:
    """Yield the keys that the files of a group have, joined by dots."""

    def flat(values: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in values.items():
            yield f"{path}.{key}"
            if isinstance(value, dict):
                yield from flat(value, f"{path}.{key}")

    for file in (conf_dir() / group.replace(".", "/")).glob("*.yaml"):
        yield from flat(yaml.safe_load(file.read_text()), group)
    common = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    yield from flat(common.get(group, {}), group)


@cache
def known_keys() -> frozenset[str]:
    groups = (*GROUPS, "hydra.launcher")
    return frozenset({
        "hydra.sweeper.max_batch_size",
        *(k for group in groups for k in keys(group)),
    })


@pages
def test_keys_are_keys_of_the_configuration(page: Path) -> None:
    for words in code(page):
        # Without a value, model.eval and run.log are no keys.
        certain = rf"(?:{'|'.join(GROUPS)}|hydra\.\w+)\.[a-z_.]+(?==)"
        given = re.match(rf"{certain}|(?:trainer|analysis|hydra\.\w+)\.[a-z_.]+$", words)
        if given and not given.group().startswith("model.kwargs."):
            assert given.group() in known_keys(), f"{page.name}: {words}"


@pages
def test_an_index_begins_no_emphasis(page: Path) -> None:
    """Emphasis is *this*: where Markdown takes two of ‖·‖_F for one, the text loses them."""
    inner = [
        token for block in MarkdownIt().parse(page.read_text()) for token in block.children or ()
    ]
    assert not [token for token in inner if token.type == "em_open" and token.markup == "_"]


@pages
def test_named_files_exist(page: Path) -> None:
    """Files and folders of the project; architecture.md names those of the package without it."""
    top = "condexp|conf|docs|tests|benchmarks|hydra_plugins"
    rooms = "analysis|cli|config|data|models|results|runs|store|training"
    for words in code(page):
        path = words if re.fullmatch(rf"(?:{top})/[\w./-]*", words) else None
        if page.name == "architecture.md" and re.fullmatch(rf"(?:{rooms})/[\w./-]*", words):
            path = f"condexp/{words}"
        if path is not None:
            assert (ROOT / path).exists(), f"{page.name}: {words}"


def test_citations_of_the_theory_name_its_sections() -> None:
    text = (ROOT / "docs" / "theory.md").read_text()
    sections = set(re.findall(r"^## (\d)\. ", text, re.MULTILINE))
    cited = {
        section
        for package in ("condexp", "tests", "benchmarks")
        for file in (ROOT / package).rglob("*.py")
        for section in re.findall(r"(?:docs/)?theory(?:\.md)?`* §(\d)", file.read_text())
    }
    assert cited <= sections
    assert len(cited) > 3


def test_the_readme_is_short_and_knows_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for page in PAGES[1:]:
        assert page.name in WITHOUT_TEXT or f"]({name(page)})" in text, page


def test_the_site_has_every_page() -> None:
    listed = [
        line
        for block in blocks(INDEX)
        for line in block.text.splitlines()
        if line and block.fence == "{toctree}" and not line.startswith(":")
    ]
    there = [page.stem for page in (ROOT / "docs").glob("*.md") if page != INDEX]
    assert sorted(listed) == sorted(there)


def test_what_other_systems_are_told(
    parse: Callable[[Sequence[str]], argparse.Namespace | None],
) -> None:
    sky, *kubernetes = (
        yaml.safe_load(block.text) for block in blocks(ROOT / "docs" / "cloud.md") if block.file
    )
    assert sky["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    commands = [shlex.split(sky["run"])[1:]]
    for job in kubernetes:
        ignored, _ = job["spec"]["podFailurePolicy"]["rules"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert ignored["onExitCodes"]["containerName"] == container["name"]
        assert ignored["onExitCodes"]["values"] == [75]
        commands.append(container["args"])
    (script,) = commands.pop()
    num = kubernetes[1]["spec"]["completions"]
    for index in range(num):
        # The shell's own arithmetic, as the pod has it.
        environment = {"JOB_COMPLETION_INDEX": str(index), "PATH": os.environ["PATH"]}
        echo = ["sh", "-c", script.replace("exec condexp", "echo", 1)]
        done = subprocess.run(echo, env=environment, capture_output=True, text=True, check=True)
        words = done.stdout.split()
        assert words[-1] == f"run.index={index + 1}"
    commands.append(words)
    for args in commands:
        options = parse(args)
        assert options is not None
        check_composition(options)
    depths, seeds = (next(w for w in words if w.startswith(k)) for k in ("model.depth", "seed"))
    assert num == len(depths.split(",")) * len(seeds.split(","))


def test_every_command_is_documented(
    parse: Callable[[Sequence[str]], argparse.Namespace | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    parse(["--help"])
    listed = re.findall(r"^  (\w+)  ", capsys.readouterr().out.partition("examples")[0], re.M)
    text = (ROOT / "docs" / "commands.md").read_text()
    assert "layers" in listed
    assert [verb for verb in listed if f"condexp {verb} " not in text] == []
