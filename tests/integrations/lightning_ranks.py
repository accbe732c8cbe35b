"""A Lightning training of one or two processes: ``lightning_ranks.py folder``."""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import condexp
from condexp.integrations.lightning import ConditioningCallback

N, T = 8, 4  # samples of an update, updates


class Net(lightning.LightningModule):
    """Two layers, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, _: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Shared(lightning.LightningDataModule):
    """Batches whose samples the processes take in turn."""

    def __init__(self, data: TensorDataset, size: int) -> None:
        super().__init__()
        self.data, self.size = data, size

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        rank = self.trainer.global_rank
        sampler: Any = DistributedSampler(self.data, self.size, rank, shuffle=False)
        return DataLoader(self.data, N // self.size, sampler=sampler)


def train(folder: Path, size: int) -> None:
    """Train on the same batches, whose samples the processes share."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N * T, 4, dtype=torch.float64, generator=generator)
    targets = torch.randint(3, (N * T,), generator=generator)
    torch.manual_seed(0)
    net = Net()
    recorded = ConditioningCallback(folder, schedule=condexp.Schedule(at_steps=(1, 3)))
    options: dict[str, Any] = {"strategy": "ddp_fork"} if size > 1 else {}
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=size,
        max_epochs=1,
        callbacks=[recorded],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder.parent,
        use_distributed_sampler=False,  # it would shuffle
        **options,
    )
    trainer.fit(net, datamodule=Shared(TensorDataset(inputs, targets), size))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    train(Path(sys.argv[1]) / "together", 2)
