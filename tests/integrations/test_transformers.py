"""Hugging Face's own Trainer, with accumulation, bf16, clipping and evaluation in between."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import condexp
from condexp.integrations.transformers import ConditioningCallback
from condexp.store.hdf5.validate import validate_results

T = 4
SCHEDULE = condexp.Schedule(every_steps=2, at_end=True)
GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(40, (32, 6), generator=GENERATOR)
DATA = [{"input_ids": ids, "labels": int(ids[0]) % 2} for ids in IDS]


def net() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=8,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def trainer(root: Path, *callbacks: Any, **changes: Any) -> Any:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": T,
        "bf16": True, "use_cpu": True, "logging_steps": 1, "eval_strategy": "steps",
        "eval_steps": 1, "report_to": [], "save_strategy": "no", "max_grad_norm": 0.1,
        "disable_tqdm": True,
    }  # fmt: skip
    arguments = TrainingArguments(str(root / "trainer"), **{**given, **changes})
    return Trainer(
        net(), arguments, train_dataset=DATA, eval_dataset=DATA[:4], callbacks=[*callbacks]
    )


def state(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text())["state"])


def test_the_folder_is_a_run_and_the_weights_are_the_same(tmp_path: Path) -> None:
    plain = trainer(tmp_path)
    plain.train()
    recorded = trainer(tmp_path, ConditioningCallback(tmp_path / "run", schedule=SCHEDULE))
    recorded.train()
    pairs = zip(
        plain.model.state_dict().values(), recorded.model.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    assert state(tmp_path / "run") == "complete"
    assert validate_results(tmp_path / "run" / "results.h5") == []
    run = condexp.open_run(tmp_path / "run")
    assert run.steps == (0, 2, 3)
    logged = [entry["loss"] for entry in recorded.state.log_history if "loss" in entry]
    assert run.metrics["loss"].dropna().tolist() == logged
    assert "bert.encoder.layer.0.attention.self.query" in run.layers
    assert "classifier" in run.layers


def test_killed_and_resumed_by_its_trainer_the_file_goes_on(tmp_path: Path) -> None:
    class Boom(transformers.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                raise RuntimeError("boom")

    folder = tmp_path / "run"
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    callback = ConditioningCallback(folder, schedule=SCHEDULE)
    with pytest.raises(RuntimeError, match="boom"), callback:
        trainer(tmp_path, callback, Boom(), **saving).train()
    assert state(folder) == "failed"
    again = ConditioningCallback(folder, schedule=SCHEDULE)
    trainer(tmp_path, again, **saving).train(resume_from_checkpoint=True)
    assert state(folder) == "complete"
    assert condexp.open_run(folder).steps == (0, 2, 3)
    assert condexp.open_run(folder).metrics["loss"].notna().all()
