"""pfl-research: its federated averaging on its simulated backend, in one process or, as under `torchrun`, in two.

Its evaluation of every user's data before and after training is off, and users' data are shuffled each round.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch
from peers import torch_models
from task import Task
from torch import nn

PACKAGES = ("pfl", "torch")


def prepare(task: Task, mode: str) -> Callable[[int], dict]:
    if mode != "two processes":
        torch.set_num_threads(2)
        return simulation(task)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pipe, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    context.Process(target=second, args=(task, port, theirs), daemon=True).start()
    join(0, port)
    run = simulation(task)

    def run_both(rounds: int) -> dict:
        pipe.send(rounds)
        return run(rounds)

    return run_both


def second(task: Task, port: int, pipe: object) -> None:
    multiprocessing.current_process().name = "MainProcess"  # pfl takes any other for a data loader's
    join(1, port)
    run = simulation(task)
    while True:
        run(pipe.recv())


def join(rank: int, port: int) -> None:
    """Sets what `torchrun` would, before pfl is imported."""
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "benchmark"}
    os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")


def simulation(task: Task) -> Callable[[int], dict]:
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    clients = torch_models.clients(task)

    def user_data(user: int) -> PyTorchTensorDataset:
        images, labels = clients[user]
        order = torch.randperm(len(labels))
        return PyTorchTensorDataset((images[order], labels[order]))

    module = Classifier(task.model)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
    sampler = get_user_sampler("minimize_reuse" if task.takes_everyone else "random", list(range(task.num_clients)))
    backend = SimulatedBackend(FederatedDataset(user_data, sampler), None, postprocessors=[WeightByDatapoints()])
    training = NNTrainHyperParams(
        local_learning_rate=task.learning_rate, local_num_epochs=1, local_batch_size=task.batch_size
    )

    def run(rounds: int) -> dict:
        torch_models.set_params(module, task.params)
        algorithm = FederatedAveraging()
        algorithm._current_central_iteration = 1  # it would evaluate in iteration 0
        params = NNAlgorithmParams(
            central_num_iterations=rounds + 1,
            evaluation_frequency=rounds + 2,
            train_cohort_size=task.cohort,
            val_cohort_size=None,
        )
        evaluation = NNEvalHyperParams(local_batch_size=None)
        algorithm.run(params, backend, model, training, evaluation, send_metrics_to_platform=False)
        return torch_models.get_params(module)

    return run


class Classifier(nn.Module):
    """A model with its loss, as pfl wants it."""

    def __init__(self, model: str):
        super().__init__()
        self.net = torch_models.build(model)

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross entropy of a batch."""
        return nn.functional.cross_entropy(self.net(images), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor, eval: bool = False) -> dict:
        """Nothing."""
        return {}
