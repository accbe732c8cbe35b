"""A configuration with any bit flipped is the same, or refused."""

from pathlib import Path

import pytest
import yaml

from condexp.errors import DamageError
from condexp.store.disk import locked
from condexp.store.files import parse_yaml
from condexp.store.run_folder.config_file import read_config, write_config


def test_no_flipped_bit_changes_a_configuration(tmp_path: Path) -> None:
    """Also of the line with the checksum: without its first character it would be a key."""
    path = tmp_path / "config.yaml"
    with locked(tmp_path / "results.h5") as owner:
        write_config(path, "seed: 1\nmodel:\n  name: mlp\n", owner)
    whole, config = path.read_bytes(), read_config(path)
    for place in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read_config(path)
        except DamageError:
            continue
        assert found == config, bytes(changed)


@pytest.mark.parametrize(
    "text",
    [
        *("seed: 1\n", "a:\n  b: 1\n  c:\n  - 2\nd: {e: [1,\n  2]}\n", "a: |\n  x\n  y\nb: 2\n"),
        *("a: 'x\n  y: 2'\nb: 1\n", "a: 1\na: 2\n", "on: 1\nb: no\n", "a:\n- 1\n- 2\n", "a: 1"),
        *("a: &x [1]\nb: *x\n", "? a\n: b\n", "a: {b: 1,\nc: 2}\n", "# words\na: 1\n\nb: 2\n"),
        *("---\na: 1\n", "a: x: y\n", "a: 'b\n", "- 1\n", "", "a:\n\n  b: 1\n", "a: 1\n...\n"),
    ],
)
def test_a_configuration_read_by_its_groups_is_the_same_as_the_whole(text: str) -> None:
    try:
        whole = yaml.safe_load(text)
    except yaml.YAMLError:
        whole = None
    if isinstance(whole, dict):
        assert parse_yaml(Path("config.yaml"), text) == {str(k): v for k, v in whole.items()}
    else:
        with pytest.raises(DamageError):
            parse_yaml(Path("config.yaml"), text)
