"""BlazeFL: its federated averaging with the serial, the thread pool or the process pool trainer."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from blazefl.contrib.fedavg import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)
from blazefl.core import IPCMode
from peers import torch_models
from task import Task

PACKAGES = ("blazefl", "torch")


class Data:
    """The clients' batches."""

    def __init__(self, task: Task):
        self.clients = torch_models.clients(task)

    def get_dataloader(self, type_: str, cid: int, batch_size: int, generator: object) -> torch_models.Loader:
        """Returns the batches of one client."""
        return torch_models.Loader(*self.clients[cid], batch_size)

    def set_dataset(self, type_: str, cid: int, dataset: object) -> None:
        """Does nothing: data do not change."""


class Models:
    """Makes models."""

    def select_model(self, name: str) -> torch.nn.Module:
        """Returns a model; its parameters are the server's before it trains."""
        return torch_models.build(name)


def prepare(task: Task, mode: str) -> Callable[[int], dict]:
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(2 if mode == "serial" else 1)
    data = Data(task)
    common = {
        "model_selector": Models(),
        "model_name": task.model,
        "dataset": data,
        "device": "cpu",
        "num_clients": task.num_clients,
        "batch_size": task.batch_size,
        "seed": 1,
    }
    training = {**common, "epochs": 1, "lr": task.learning_rate}
    if mode == "serial":
        trainer = FedAvgBaseClientTrainer(**training)
    elif mode == "threads":
        trainer = FedAvgThreadPoolClientTrainer(**training, num_parallels=2)
    else:
        folder = Path(tempfile.mkdtemp())
        folders = {"share_dir": folder / "share", "state_dir": folder / "state"}
        trainer = FedAvgProcessPoolClientTrainer(**training, **folders, num_parallels=2, ipc_mode=IPCMode.SHARED_MEMORY)

    def run(rounds: int) -> dict:
        ratio = task.cohort / task.num_clients
        handler = FedAvgBaseServerHandler(**common, global_round=rounds, sample_ratio=ratio)
        torch_models.set_params(handler.model, task.params)
        while not handler.if_stop():
            trainer.local_process(handler.downlink_package(), handler.sample_clients())
            for package in trainer.uplink_package():
                handler.load(package)
        return torch_models.get_params(handler.model)

    return run
