"""The wheel brings its configuration and its plugin, and runs from another folder."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_runs_from_another_folder(tmp_path: Path) -> None:
    wheels, site, elsewhere = tmp_path / "wheels", tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = wheels.glob("condexp-*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*install, str(site), str(wheel)], check=True, capture_output=True)

    # Before the editable checkout on the path; a -m grid needs the sweeper plugin as well.
    done = subprocess.run(
        [
            sys.executable,
            str(site / "bin" / "condexp"),
            *("run", "-m", "trainer.steps=2", "model.depth=2", "analysis=last_layer", "seed=1,2"),
        ],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in elsewhere.iterdir()] == ["outputs"]
    results = sorted(elsewhere.rglob("results.h5"))
    assert [path.parent.name[:14] for path in results] == ["mlp-digits-s1-", "mlp-digits-s2-"]
    where = "import condexp; print(condexp.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(site)
    assert (site / "condexp" / "results" / "tables" / "published.csv").is_file()
    assert (site / "condexp" / "results" / "page" / "assets" / "page.js").is_file()
    assert (site / "condexp" / "py.typed").is_file()
    (metadata,) = site.glob("condexp-*.dist-info/METADATA")
    described = metadata.read_text()
    assert "Description-Content-Type: text/markdown" in described
    # On an index nothing lies beside it: its links lead to the web, or there are none.
    assert not re.findall(r"\]\((?!https?://)[^)]*\)", described)
    assert "Slurm and several processes" in described
    assert "docs/overview.png" in (ROOT / "README.md").read_text()


def test_the_version_is_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= set(citation)
    for file in ("Dockerfile", "docs/cloud.md", "docs/comparison.md"):
        named = re.findall(r"condexp(?::|\*\* )(\d+\.\d+\.\d+)", (ROOT / file).read_text())
        assert set(named) == {version}, file


def test_an_image_is_built_from_what_the_wheel_is_built_from() -> None:
    copied = re.findall(r"^COPY (.*) /src", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    files = {name for line in copied for name in line.split()}
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in files} <= {*let_in}
    assert files >= {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "condexp", "conf"}
    assert all((ROOT / name).exists() for name in files)
