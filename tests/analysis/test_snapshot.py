import dataclasses
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import condexp
from condexp.analysis.snapshot import BnMode, LayerSnapshot
from condexp.analysis.vocabulary import CLOSENESS, LAYER_MEASURES, WHOLE_MATRICES
from condexp.errors import InputError
from tests import cases


def test_bn_modes() -> None:
    assert BnMode.of([]) is BnMode.NONE
    assert BnMode.of([True, True]) is BnMode.TRAIN
    assert BnMode.of([False]) is BnMode.EVAL
    assert BnMode.of([True, False]) is BnMode.MIXED


def test_every_measure_is_a_number_of_the_record() -> None:
    fields = [field.name for field in dataclasses.fields(LayerSnapshot) if field.type is float]
    fields.remove("gradient_residual")  # a certificate of the others
    # One is worked out when it is read.
    assert sorted([*fields, "domination"]) == sorted((*LAYER_MEASURES, *CLOSENESS))


def test_snapshot_is_a_mapping_by_name() -> None:
    model, inputs, targets = cases.resnet(), cases.normal(2, 2, 8, 8), cases.labels(2, 3)
    snapshot = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets, "input")
    assert len(snapshot) == len(snapshot.records) == 8
    assert list(snapshot) == list(snapshot.layers)
    assert "fc" in snapshot
    assert snapshot["fc"] is snapshot.records[-1]
    with pytest.raises(
        InputError, match=r"unknown layer 'blocks\.2\.con2'.*mean 'blocks\.2\.conv2'"
    ):
        snapshot["blocks.2.con2"]


def test_a_saved_snapshot_is_read_again(tmp_path: Path) -> None:
    model, inputs, targets = cases.resnet(), cases.normal(4, 2, 8, 8), cases.labels(4, 3)
    whole = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets, WHOLE_MATRICES)
    path = tmp_path / "new" / "snapshot.pt"
    whole.save(path)
    again = condexp.Snapshot.load(path)
    assert (repr(again), again.layers) == (repr(whole), whole.layers)
    assert again.coverage == whole.coverage
    assert again.not_analysed == whole.not_analysed
    assert again.bn_mode is whole.bn_mode
    pd.testing.assert_frame_equal(again.to_pandas((0.3, 1.0)), whole.to_pandas((0.3, 1.0)))
    for one, other in zip(again.records, whole.records, strict=True):
        assert one.info == other.info
        assert one.input is not None
        assert other.input is not None
        assert one.input.kappa_interval(0.7) == other.input.kappa_interval(0.7)
        assert one.input.eigenvalues.equal(other.input.eigenvalues)
    assert torch.load(path, weights_only=True)["content"]["num_samples"] == 4
    whole.save(path)  # a regular file is replaced


def test_what_is_no_snapshot_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    model, inputs, targets = cases.resnet(), cases.normal(2, 2, 8, 8), cases.labels(2, 3)
    snapshot = condexp.analyze(model, nn.CrossEntropyLoss(), inputs, targets, "input")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="no regular file, and nothing else is replaced"):
        snapshot.save(pipe)
    with pytest.raises(InputError, match="there is no snapshot"):
        condexp.Snapshot.load(tmp_path / "none.pt")
    other = tmp_path / "other.pt"
    for content in (model.state_dict(), {"condexp_snapshot": 2}, {"condexp_snapshot": 1}):
        torch.save(content, other)
        with pytest.raises(
            InputError, match=r"other\.pt (is no file that|has version 2|is damaged)"
        ):
            condexp.Snapshot.load(other)
