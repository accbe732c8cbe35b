"""A user's own model through the command line: a file in the current folder, nothing else."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MODEL = """
from torch import nn


class ConvNet(nn.Module):
    def __init__(self, input_shape, num_outputs, width=4, blocks=(1,)):
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.fc = nn.Linear(width, num_outputs)

    def forward(self, images):
        tokens = self.conv(images).relu().flatten(2).mT
        return self.fc(self.attention(tokens, tokens, tokens)[0].mean(1))
"""
TINY = [
    "trainer.steps=2",
    "dataset.subset.train=40",
    "dataset.subset.test=20",
    "trainer.batch_size=20",
    "analysis.schedule.log_spaced=null",
]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def condexp(
    condexp: Command, no_picture: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Run the command line in a folder that holds ``convnets.py``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    (tmp_path / "convnets.py").write_text(MODEL)
    importlib.invalidate_caches()
    yield condexp
    sys.modules.pop("convnets", None)


def test_layers_and_a_run(condexp: Command, tmp_path: Path) -> None:
    mine = ["model=import", "model.target=convnets:ConvNet", "model.kwargs.width=6"]
    code, out, _ = condexp("layers", *mine, "model.kwargs.blocks=[2,3]", *TINY)
    assert code == 0
    assert "import convnets:ConvNet on digits" in out
    measured, _, rest = out.partition("not analysed")
    assert "attention.in_proj" in measured
    assert "attention.out_proj" in measured
    assert "fc.bias" in rest

    code, out, _ = condexp(*mine, *TINY)
    assert code == 0
    (folder,) = (path.parent for path in tmp_path.rglob("status.json"))
    assert folder.name.startswith("import-digits-s1-")
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"
    assert "conv" in out
    code, out, _ = condexp("show", str(folder))
    assert code == 0
    assert "target=convnets:ConvNet" in out
    assert "kwargs.width=6" in out


def test_layers_says_beforehand_what_would_be_incomplete(condexp: Command, tmp_path: Path) -> None:
    text = (
        MODEL.replace("return self.fc(", "return self.twice(")
        + """
    def twice(self, x):
        return self.fc(x) + x @ self.fc.weight.T
"""
    )
    (tmp_path / "convnets.py").write_text(text)
    mine = ["model=import", "model.target=convnets:ConvNet", *TINY]
    code, out, _ = condexp("layers", *mine)
    assert code == 0
    said = out.partition("incomplete: every number of it would be NaN")[2]
    assert "do not reproduce" in " ".join(said.split())
    assert "exclude=['fc']" in said.replace("\n", "")
    code, out, _ = condexp("layers", *mine, "analysis.layers.exclude=[fc]")
    assert "the rows of all 3 layers reproduce the gradients" in " ".join(out.split())

    code, _, _ = condexp(*mine)
    assert code == 0
    (log,) = tmp_path.rglob("run.log")
    assert "layer fc is incomplete: the recorded rows do not reproduce" in log.read_text()


@pytest.mark.usefixtures("jobs_in_this_process")
def test_a_grid_over_an_argument_of_the_models_own(condexp: Command, tmp_path: Path) -> None:
    code, _, _ = condexp(
        "-m", "model=import", "model.target=convnets:ConvNet", "model.kwargs.width=3,4", *TINY
    )
    assert code == 0
    code, out, _ = condexp(
        "table", str(tmp_path), "--rows", "model.kwargs.width", "--format", "markdown"
    )
    assert code == 0
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")][
        2:
    ] == [
        "3",
        "4",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=import"], "model.target has no value"),
        (["model=import", "model.target=convnets"], "give module:name"),
        (["model=import", "model.target=convnet:ConvNet"], "Did you mean 'convnets'"),
        (["model=import", "model.target=convnets:Convnet"], "Did you mean 'ConvNet'"),
        (["model=import", "model.target=convnets:ConvNet", "model.kwargs.wdith=6"],
         "unexpected keyword argument 'wdith'"),
        (["model=import", "model.target=convnets:ConvNet", "model.kwargs.width=six"],
         "model=import convnets:ConvNet fails on inputs"),
        (["model=import", "model.target=convnets:ConvNet", "model.kwargs=3"], "model.kwargs"),
        (["model=mlp", "model.kwargs.width=6"], "unknown key 'model.kwargs"),
        (["model=torchvision"], "takes images of 3 channels, these have 1"),
        (["model=torchvision", "model.arch=resnet19"], "Did you mean 'resnet1"),
        (["model=vgg", "model.depth=12"], "unknown model.depth '12': allowed are 11, 13, 16, 19"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_message_and_nothing_is_written(
    condexp: Command, tmp_path: Path, overrides: list[str], message: str
) -> None:
    before = set(tmp_path.iterdir())
    code, out, err = condexp(*overrides, *TINY)
    assert (code, out) == (2, "")
    assert err.count("condexp: ") == 1
    assert message in err
    assert "Traceback" not in err
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before
