"""The user's own model, as a library call; through the command line: tests/test_user_model.py."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from condexp.errors import InputError
from condexp.models import import_
from condexp.models.user_code import find_target

Writer = Callable[[str, str], str]

NETS = """
import torch
from torch import nn

SCALE = torch.tensor([2.0])
finished = nn.Linear(2, 2)

class Net(nn.Module):
    def __init__(self, input_shape, width: int = 3, *, num_outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_shape[0], width)
        self.fc = nn.Linear(width, num_outputs)

    def forward(self, inputs):
        return self.fc(self.hidden(inputs) * SCALE.to(inputs.device))

def fixed(width):
    return nn.Linear(width, 2)

def free(**kwargs):
    return nn.Linear(**kwargs)

def emptying(sizes):
    return nn.Linear(sizes.pop(), sizes.pop())

def no_module():
    return 3

def broken():
    return nn.Linear("four", 2)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """Write a module into the current folder, which is not on the search path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    written: list[str] = []

    def to_file(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        written.append(name)
        return name

    yield to_file
    for name in written:
        sys.modules.pop(name, None)


def build(target: str, **kwargs: object) -> nn.Module:
    spec = import_.Spec(name="import", target=target, kwargs=kwargs)
    return import_.build(spec, (4,), 5)


def test_shapes_reach_those_who_name_them(write: Writer) -> None:
    write("my_nets", NETS)
    model = build("my_nets:Net", width=6)
    assert model.get_parameter("hidden.weight").shape == (6, 4)
    assert model.get_parameter("fc.weight").shape == (5, 6)
    # What is given wins; who does not name them is not given them.
    assert build("my_nets:Net", num_outputs=7).get_parameter("fc.weight").shape == (7, 3)
    assert build("my_nets:fixed", width=9).get_parameter("weight").shape == (2, 9)
    assert build("my_nets:free", in_features=1, out_features=2).get_parameter("bias").shape == (2,)
    assert isinstance(build("torch.nn:Identity"), nn.Identity)


def test_what_a_factory_does_to_its_arguments_is_not_kept(write: Writer) -> None:
    """A network is tried out before it is trained: the second would be another, or none."""
    write("my_nets", NETS)
    spec = import_.Spec(name="import", target="my_nets:emptying", kwargs={"sizes": [2, 3]})
    for _ in range(2):
        assert import_.build(spec, (4,), 5).get_parameter("weight").shape == (2, 3)
    assert spec.kwargs == {"sizes": [2, 3]}


def test_a_module_is_imported_with_values_even_for_a_sketch(write: Writer) -> None:
    """A constant made at import, while the network is sketched on the meta device, has values."""
    write("my_sketched_nets", NETS)
    with torch.device("meta"):
        sketch = build("my_sketched_nets:Net")
    assert sketch.get_parameter("fc.weight").is_meta
    assert build("my_sketched_nets:Net")(torch.zeros(1, 4)).shape == (1, 5)
    assert sys.modules["my_sketched_nets"].SCALE.item() == 2


def test_the_current_folder_comes_first_and_once(write: Writer, tmp_path: Path) -> None:
    write("my_nets", NETS)
    for _ in range(2):
        find_target("model.target", "my_nets:Net", import_.EXAMPLE)
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_nets", "give module:name, for instance my_models:Net"),
        ("my_nets:", "give module:name"),
        (":Net", "give module:name"),
        ("my_netz:Net", "no module 'my_netz', neither in .*Did you mean 'my_nets'"),
        ("my_nets.deep:Net", "no module 'my_nets.deep'"),
        ("my_nets:Nett", "my_nets has no 'Nett'. Did you mean 'Net'"),
        ("my_nets:SCALE", "is of type Tensor: name a class or a function"),
        ("my_nets:finished", "is of type Linear: .*not a finished one"),
        ("my_nets:no_module", "gives 'int': give a subclass of torch.nn.Module"),
        ("builtins:dict", "gives 'dict'"),
        ("needs_more:Net", "importing needs_more failed: .*No module named 'nowhere_to_be_found'"),
        ("misspelt:Net", "importing misspelt failed: SyntaxError"),
    ],
)
def test_a_wrong_target_is_one_message(write: Writer, target: str, message: str) -> None:
    write("my_nets", NETS)
    write("needs_more", "import nowhere_to_be_found")
    write("misspelt", "class Net(")
    with pytest.raises(InputError, match=message):
        build(target)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("Net", {"wdith": 3}, "unexpected keyword argument 'wdith'.*Did you mean 'width'"),
        ("fixed", {}, "got none: missing a required argument: 'width'; set .*model.kwargs"),
        ("no_module", {"depth": 3}, "takes .*unexpected keyword argument 'depth'"),
    ],
)
def test_wrong_arguments_are_one_message(
    write: Writer, name: str, kwargs: dict[str, object], message: str
) -> None:
    write("my_nets", NETS)
    with pytest.raises(InputError, match=message):
        build(f"my_nets:{name}", **kwargs)
