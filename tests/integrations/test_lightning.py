"""Lightning's own Trainer, with accumulation, bf16, clipping and validation in between."""

import json
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import condexp
from condexp.errors import InputError
from condexp.integrations.lightning import ConditioningCallback
from condexp.store.hdf5.validate import validate_results

T = 6  # two epochs of five batches of eight, two to an update
SCHEDULE = condexp.Schedule(every_steps=2, at_end=True)


class Net(lightning.LightningModule):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, torch.randint(3, (40,), generator=generator)), 8)


def trainer(root: Path, *callbacks: lightning.Callback, **changes: Any) -> lightning.Trainer:
    given: dict[str, Any] = {
        "accelerator": "cpu", "accumulate_grad_batches": 2, "precision": "bf16-mixed",
        "gradient_clip_val": 0.1, "val_check_interval": 1, "max_epochs": 2, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    return lightning.Trainer(default_root_dir=root, callbacks=[*callbacks], **{**given, **changes})


def trained(root: Path, *callbacks: lightning.Callback, **changes: Any) -> Net:
    torch.manual_seed(0)
    net = Net()
    trainer(root, *callbacks, **changes).fit(net, data(), data())
    return net


def state(folder: Path) -> str:
    return str(json.loads((folder / "status.json").read_text())["state"])


def test_the_folder_is_a_run_and_the_weights_are_the_same(tmp_path: Path) -> None:
    callback = ConditioningCallback(tmp_path / "run", schedule=SCHEDULE)
    pairs = zip(
        trained(tmp_path).state_dict().values(),
        trained(tmp_path, callback).state_dict().values(),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)
    assert state(tmp_path / "run") == "complete"
    assert validate_results(tmp_path / "run" / "results.h5") == []
    run = condexp.open_run(tmp_path / "run")
    assert run.steps == (0, 2, 4, 5)
    assert run.config["width"] == 5
    assert run.metrics["loss"].notna().sum() == T
    assert (run.metrics["lr"].dropna() == 0.1).all()
    assert set(run.measures()["input_status"].values.ravel()) == {"ok"}


def test_accumulated_parts_are_the_recorder_s(tmp_path: Path) -> None:
    """In float32 without clipping, the numbers are those of a Recorder around two passes."""
    callback = ConditioningCallback(tmp_path / "run", schedule=condexp.Schedule(at_start=True))
    trained(tmp_path, callback, precision="32-true", gradient_clip_val=None)
    torch.manual_seed(0)
    net, batches = Net(), iter(data())
    with condexp.Recorder(net, learning_rate=0.1) as recorder:
        for _ in range(2):
            inputs, targets = next(batches)
            (nn.functional.cross_entropy(net(inputs), targets) / 2).backward()  # type: ignore[no-untyped-call]
    measures = condexp.open_run(tmp_path / "run").measures().isel(step=0)
    for record in recorder.snapshot().records:
        layer = measures.sel(layer=record.info.name)
        assert record.grad_output is not None
        assert float(layer["grad_output_lambda_max"]) == record.grad_output.lambda_max
        assert float(layer["grad_norm"]) == record.grad_norm


def test_killed_and_resumed_by_its_trainer_the_file_goes_on(tmp_path: Path) -> None:
    whole = ConditioningCallback(tmp_path / "whole" / "run", schedule=SCHEDULE)
    trained(tmp_path, whole)

    class Boom(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
            if trainer.global_step == 4:
                raise RuntimeError("boom")

    folder = tmp_path / "stopped" / "run"
    with pytest.raises(RuntimeError, match="boom"):
        trained(tmp_path, ConditioningCallback(folder, schedule=SCHEDULE), Boom())
    assert state(folder) == "failed"
    resumed = trainer(tmp_path, ConditioningCallback(folder, schedule=SCHEDULE))
    resumed.fit(Net(), data(), data(), ckpt_path=tmp_path / "stopped.ckpt", weights_only=False)
    assert state(folder) == "complete"
    first, second = (condexp.open_run(f).metrics["loss"] for f in (whole._folder, folder))
    assert first[:3].tolist() == second[:3].tolist()
    assert condexp.open_run(folder).steps == (0, 2, 4, 5)


def test_an_early_end_and_what_is_refused(tmp_path: Path) -> None:
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 3

    trained(tmp_path, ConditioningCallback(tmp_path / "run", schedule=SCHEDULE), Stop())
    assert state(tmp_path / "run") == "interrupted"
    callback = ConditioningCallback(tmp_path / "other", schedule=SCHEDULE)
    with pytest.raises(InputError, match="length of the training is unknown"):
        trained(tmp_path, callback, max_epochs=-1, max_steps=-1)
    part = ConditioningCallback(tmp_path / "part", schedule=SCHEDULE, module="net")
    trained(tmp_path, part)
    assert condexp.open_run(tmp_path / "part").layers == ("0", "2")
