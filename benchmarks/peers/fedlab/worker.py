"""FedLab: its serial trainer and synchronous server in one process, with torch on one or two threads."""

import sys
from collections.abc import Callable
from unittest import mock

import torch
from peers import torch_models
from task import Task

UNUSED = ("torchvision", "torchvision.transforms", "PIL", "sklearn", "sklearn.datasets", "sklearn.metrics", "pandas")

with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in UNUSED}):  # for FedLab's own data sets
    from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
    from fedlab.core.standalone import StandalonePipeline
    from fedlab.utils.logger import Logger

PACKAGES = ("fedlab", "torch")


class Data:
    """The clients' batches."""

    def __init__(self, task: Task):
        self.clients = torch_models.clients(task)

    def get_dataloader(self, client: int, batch_size: int) -> torch_models.Loader:
        """Returns the batches of one client."""
        return torch_models.Loader(*self.clients[client], batch_size)


class Pipeline(StandalonePipeline):
    """FedLab's, without its message after each round."""

    def evaluate(self) -> None:
        """Does nothing."""


def prepare(task: Task, mode: str = "") -> Callable[[int], dict]:
    if len(set(task.sizes)) > 1:
        raise ValueError("FedLab's mean does not weigh clients by their examples")
    torch.set_num_threads(1 if mode == "one thread" else 2)
    logger = Logger(log_name="benchmark", log_file=None)
    trainer = FedAvgSerialClientTrainer(torch_models.loaded(task), task.num_clients, logger=logger)
    trainer.setup_dataset(Data(task))
    trainer.setup_optim(1, task.batch_size, task.learning_rate)

    def run(rounds: int) -> dict:
        model = torch_models.loaded(task)
        handler = FedAvgServerHandler(model, rounds, task.cohort / task.num_clients, logger=logger)
        Pipeline(handler, trainer).main()
        return torch_models.get_params(handler.model)

    return run
