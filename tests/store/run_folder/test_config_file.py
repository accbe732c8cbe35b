"""A configuration with any bit flipped is the same, or refused."""

from pathlib import Path

from condexp.errors import DamageError
from condexp.store.disk import locked
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
