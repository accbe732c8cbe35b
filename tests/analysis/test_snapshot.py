import dataclasses

import pytest
from torch import nn

import condexp
from condexp.analysis.snapshot import BnMode, LayerSnapshot
from condexp.analysis.vocabulary import LAYER_MEASURES
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
    assert sorted([*fields, "domination"]) == sorted(LAYER_MEASURES)


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
