"""Hugging Face's networks: what is measured of them, and that it is certified."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTForImageClassification,
)

import condexp
from condexp.analysis.snapshot import Snapshot

TINY: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IDS = torch.arange(28).view(4, 7) * 7 % 50
LABELS = torch.tensor([0, 1, 2, 0])
Batch = dict[str, Tensor]


def gpt2(*, tied: bool) -> tuple[nn.Module, Batch]:
    config = GPT2Config(
        vocab_size=50,
        n_positions=16,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
    )
    config.loss_type = "ForCausalLM"
    return GPT2LMHeadModel(config), {"input_ids": IDS, "labels": IDS}


def bert() -> tuple[nn.Module, Batch]:
    config = BertConfig(vocab_size=50, hidden_size=16, max_position_embeddings=16, **TINY)
    config.num_labels = 3
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": LABELS}
    return BertForSequenceClassification(config), batch


def vit() -> tuple[nn.Module, Batch]:
    config = ViTConfig(hidden_size=16, image_size=8, patch_size=4, **TINY)
    config.num_labels = 3
    images = torch.linspace(-1, 1, 4 * 3 * 8 * 8, dtype=torch.float64).view(4, 3, 8, 8).sin()
    return ViTForImageClassification(config), {"pixel_values": images, "labels": LABELS}


def measured(make: Callable[[], tuple[nn.Module, Batch]]) -> tuple[nn.Module, Snapshot]:
    torch.manual_seed(0)
    model, batch = make()
    model = model.double().train()
    return model, condexp.analyze(model, None, batch, matrices=("input", "kfac", "fisher"))


NETWORKS = {"gpt2": lambda: gpt2(tied=False), "bert": bert, "vit": vit}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_every_matrix_is_measured_and_certified(
    make: Callable[[], tuple[nn.Module, Batch]],
) -> None:
    model, snapshot = measured(make)
    for record in snapshot.records:
        assert record.incomplete is None
        assert record.gradient_residual < 1e-12
        assert record.fisher is not None
        assert record.fisher.status == "ok"
    listed = {entry.name: entry.reason for entry in snapshot.not_analysed}
    covered = total = 0
    for name, module in model.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            label = name if key == "weight" else f"{name}.{key}"
            if weight.ndim == 2 or (isinstance(module, nn.Conv2d) and key == "weight"):
                total += weight.numel()
                covered += weight.numel() * (label in snapshot.layers)
            elif weight.ndim > 2:
                assert "owns" in listed[name]
    assert covered == total


def test_a_weight_that_is_a_table_too_has_a_fisher_block() -> None:
    _, snapshot = measured(lambda: gpt2(tied=True))
    assert [record.info.name for record in snapshot.records if record.incomplete] == []
    table = snapshot["lm_head"]
    assert table is snapshot["transformer.wte"]
    assert table.kfac is None
    assert table.gradient_residual < 1e-12
    _, untied = measured(lambda: gpt2(tied=False))
    assert snapshot.coverage.parameters > 0.9
    assert untied.coverage.parameters > 0.9
