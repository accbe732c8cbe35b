"""Batches and outputs of every kind: the numbers are those of explicit loops over the tokens."""

import warnings
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condexp
from condexp.errors import InputError

N, T, V = 5, 4, 7
GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(V, (N, T), generator=GENERATOR)
LABELS = torch.where(torch.rand(N, T, generator=GENERATOR) < 0.3, -100, IDS)
BATCH = {"input_ids": IDS, "labels": LABELS}


class Language(nn.Module):
    """Predicts the next token, and returns its loss as Hugging Face's models do."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.hidden = nn.Embedding(V, 3), nn.Linear(3, 4)
        self.head, self.scale = nn.Linear(4, V), scale

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.hidden(self.embed(input_ids)).tanh())
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": self.scale * loss, "logits": logits}


def explicit(model: Language) -> tuple[Tensor, Tensor]:
    """Eigenvalues of Σ_x and Σ_∇h of the head, token by token, D the number of valid targets."""
    hidden = model.hidden(model.embed(IDS)).tanh().detach()
    of_inputs = torch.stack([torch.outer(a, a) for a in hidden.flatten(0, 1)]).mean(0)
    of_outputs = torch.zeros(V, V, dtype=torch.float64)
    for n in range(N):
        for t in range(T - 1):
            if LABELS[n, t + 1] != -100:
                g = model.head(hidden[n, t]).softmax(0).detach()
                g[LABELS[n, t + 1]] -= 1
                of_outputs += torch.outer(g, g) / N
    return torch.linalg.eigvalsh(of_inputs).flip(0), torch.linalg.eigvalsh(of_outputs).flip(0)


@pytest.mark.parametrize("scale", [1.0, 0.25])  # of a part of an accumulated batch
def test_next_tokens_with_ignored_positions(scale: float) -> None:
    model = Language(scale).double()
    record = condexp.analyze(model, None, BATCH)["head"]
    assert record.input is not None
    assert record.grad_output is not None
    of_inputs, of_outputs = explicit(model)
    # float64, a few tens of additions.
    torch.testing.assert_close(record.input.eigenvalues, of_inputs, rtol=0, atol=1e-12)
    torch.testing.assert_close(record.grad_output.eigenvalues, of_outputs, rtol=0, atol=1e-12)
    assert record.gradient_residual < 1e-12


def test_a_loss_of_outputs_and_batch_is_the_models_own() -> None:
    model = Language().double()

    def loss_fn(outputs: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        logits = outputs["logits"][:, :-1].transpose(1, 2)
        return F.cross_entropy(logits, batch["labels"][:, 1:])

    own = condexp.analyze(model, None, BATCH, matrices=("grad_output",))
    other = condexp.analyze(model, loss_fn, BATCH, matrices=("grad_output",))
    for name in own.layers:
        first, second = own[name].grad_output, other[name].grad_output
        assert first is not None
        assert second is not None
        torch.testing.assert_close(first.eigenvalues, second.eigenvalues, rtol=0, atol=1e-14)


@dataclass
class Pairs:
    left: Tensor
    right: Tensor
    label: Tensor


Outputs = namedtuple("Outputs", ["logits", "loss"])


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(3, 2)

    def forward(self, left: Any, right: Tensor | None = None) -> Any:
        if isinstance(left, Pairs):
            logits = self.fc(left.left + left.right)
            return Outputs(logits, F.cross_entropy(logits, left.label))
        return self.fc(left if right is None else left + right)


def test_tuples_dataclasses_and_pairs_are_the_same_measurement() -> None:
    model = Sum().double()
    left, right = torch.randn(2, 6, 3, dtype=torch.float64, generator=GENERATOR)
    label = torch.randint(2, (6,), generator=GENERATOR)
    loss_fn = nn.CrossEntropyLoss()
    expected = condexp.analyze(model, loss_fn, left + right, label)["fc"].grad_output
    assert expected is not None
    batches: list[tuple[Any, Any]] = [
        (loss_fn, (left + right, label)),
        (loss_fn, (left, right, label)),
        (None, Pairs(left, right, label)),
        (lambda outputs, batch: loss_fn(outputs.logits, batch.label), Pairs(left, right, label)),
    ]
    for given, batch in batches:
        found = condexp.analyze(model, given, batch)["fc"].grad_output
        assert found is not None
        torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-12, atol=1e-15)


def fail(outputs: object, batch: object) -> Tensor:
    raise ZeroDivisionError


def test_the_model_and_the_batch_are_left_as_found() -> None:
    model = Language().double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, ids = torch.get_rng_state(), IDS.clone()
    condexp.analyze(model, None, BATCH)
    with pytest.raises(ZeroDivisionError):
        condexp.analyze(model, fail, BATCH)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(IDS, ids)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_is_refused() -> None:
    model = Language().double()
    for loss_fn, batch, message in (
        (None, {"input_ids": IDS}, "the model's outputs have no loss"),
        (lambda outputs, batch: outputs["logits"], BATCH, "loss_fn gives no scalar"),
        (None, {"labels": 3}, "without a tensor"),
    ):
        with pytest.raises(InputError, match=message):
            condexp.analyze(model, loss_fn, batch)
    with pytest.raises(InputError, match="take a batch of two tensors"):
        condexp.analyze(model, None, BATCH, fisher_type="mc")
    with pytest.raises(InputError, match="loss_fn is None: that is for a batch"):
        condexp.analyze(model, None, IDS, LABELS)


def test_hugging_face_models_by_their_own_batches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=V, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=6, max_position_embeddings=8,
        )  # fmt: skip
        model: Any = BertForSequenceClassification(config).double()
        model.eval()
        labels = torch.randint(2, (N,), generator=GENERATOR)
        snapshot = condexp.analyze(model, None, {"input_ids": IDS, "labels": labels})
    found = snapshot["classifier"].grad_output
    assert found is not None
    logits = model(input_ids=IDS).logits.detach()
    g = logits.softmax(1) - F.one_hot(labels, 2)
    values = torch.linalg.eigvalsh(g.T @ g / N).flip(0)
    torch.testing.assert_close(found.eigenvalues, values, rtol=0, atol=1e-12)
