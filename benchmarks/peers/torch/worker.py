"""A plain torch loop: as few calls a step as torch allows, clients one after another, or half of them a process."""

from collections.abc import Callable

import numpy as np
import torch
import torch.multiprocessing as mp
from peers import torch_models
from task import Task
from torch import nn

PACKAGES = ("torch",)


def prepare(task: Task, mode: str) -> Callable[[int], dict]:
    helper = Helper(task) if mode == "two processes" else None
    torch.set_num_threads(1 if helper else 2)
    trainer = Trainer(task)
    rng = np.random.default_rng(1)

    def run(rounds: int) -> dict:
        current = trainer.initial.clone()
        for _ in range(rounds):
            cohort = trainer.draw(rng)
            if helper is None:
                change = trainer.train(current, cohort)
            else:
                helper.start(current, cohort[1::2])
                change = trainer.train(current, cohort[::2]) + helper.result()
            current += change / sum(len(trainer.clients[client][1]) for client in cohort)
        torch.nn.utils.vector_to_parameters(current, trainer.model.parameters())
        return torch_models.get_params(trainer.model)

    return run


class Trainer:
    """One process's model and clients."""

    def __init__(self, task: Task):
        self.task = task
        self.clients = torch_models.clients(task)
        self.model = torch_models.build(task.model)
        torch_models.set_params(self.model, task.params)
        self.initial = nn.utils.parameters_to_vector(self.model.parameters()).detach().clone()
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.model.parameters(), self.task.learning_rate, foreach=True)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Returns the clients of a round."""
        if self.task.takes_everyone:
            return np.arange(self.task.num_clients)
        return rng.choice(self.task.num_clients, self.task.cohort, replace=False)

    def train(self, start: torch.Tensor, cohort: np.ndarray) -> torch.Tensor:
        """Returns the sum of what clients change in the parameters, each weighted by its examples."""
        total = torch.zeros_like(start)
        for client in cohort:
            nn.utils.vector_to_parameters(start.clone(), self.model.parameters())
            images, labels = self.clients[client]
            for rows in torch.randperm(len(labels)).split(self.task.batch_size):
                self.optimizer.zero_grad()
                self.loss(self.model(images[rows]), labels[rows]).backward()
                self.optimizer.step()
            total += len(labels) * (nn.utils.parameters_to_vector(self.model.parameters()).detach() - start)
        return total


class Helper:
    """A second process, which shares two vectors of parameters with the first."""

    def __init__(self, task: Task):
        size = sum(array.size for array in task.params.values())
        self.start_vector, self.change = torch.zeros(size).share_memory_(), torch.zeros(size).share_memory_()
        self.pipe, theirs = mp.Pipe()
        mp.set_start_method("spawn", force=True)
        args = (task, self.start_vector, self.change, theirs)
        mp.Process(target=help_along, args=args, daemon=True).start()

    def start(self, current: torch.Tensor, cohort: np.ndarray) -> None:
        """Lets it train clients."""
        self.start_vector.copy_(current)
        self.pipe.send(cohort)

    def result(self) -> torch.Tensor:
        """Waits for the sum of what its clients changed."""
        self.pipe.recv()
        return self.change


def help_along(task: Task, start: torch.Tensor, change: torch.Tensor, pipe: object) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(task)
    while True:
        change.copy_(trainer.train(start, pipe.recv()))
        pipe.send("done")
