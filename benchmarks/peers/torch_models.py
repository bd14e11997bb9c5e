"""The four models as torch modules, and their parameters from and to the names and layouts of the task."""

import numpy as np
import torch
from torch import nn


class Rows(nn.Module):
    """Flattens images [batch, channels, height, width] in the order of the task's parameters, channels last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """To [batch, height * width * channels]."""
        return x.permute(0, 2, 3, 1).flatten(1)


def build(model: str) -> nn.Sequential:
    """Returns a module from float images, [batch, height, width] or [batch, channels, height, width], to logits."""
    if model == "softmax_regression":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if model == "perceptron":
        layers = (nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
        return nn.Sequential(nn.Flatten(), *layers)
    if model == "mnist_cnn":
        first = (nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU())
        second = (nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.ReLU())
        return nn.Sequential(*first, *second, Rows(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10))
    if model == "cifar_cnn":
        convolutions = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ReLU())
        return nn.Sequential(*convolutions, Rows(), nn.Linear(12544, 128), nn.ReLU(), nn.Linear(128, 10))
    raise ValueError(f"no model {model}")


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Returns float images as torch wants them."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def clients(task) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns the images and the labels of each client of a task."""
    return [(channels_first(images), torch.from_numpy(labels.astype(np.int64))) for images, labels in task.clients()]


@torch.no_grad()
def set_params(module: nn.Module, params: dict[str, np.ndarray]) -> None:
    """Copies a task's parameters into a module."""
    for name, layer in _layers(module):
        kernel = torch.from_numpy(np.array(params[f"{name}/kernel"]))
        layer.weight.copy_(kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)
        layer.bias.copy_(torch.from_numpy(np.array(params[f"{name}/bias"])))


def get_params(module: nn.Module) -> dict[str, np.ndarray]:
    """Returns a module's parameters as a task names them."""
    params = {}
    for name, layer in _layers(module):
        weight = layer.weight.detach()
        kernel = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T
        params[f"{name}/kernel"] = np.ascontiguousarray(kernel.numpy())
        params[f"{name}/bias"] = layer.bias.detach().numpy().copy()
    return params


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the layers with parameters, named as flax would."""
    named = []
    for kind, prefix in ((nn.Conv2d, "Conv"), (nn.Linear, "Dense")):
        own = [layer for layer in module.modules() if isinstance(layer, kind)]
        named += [(f"{prefix}_{number}", layer) for number, layer in enumerate(own)]
    return named


class Loader:
    """A client's shuffled batches by indexing, which is faster than a `DataLoader`'s row by row."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int):
        self.dataset, self.batch_size = (images, labels), batch_size

    def __iter__(self):
        images, labels = self.dataset
        for rows in torch.randperm(len(labels)).split(self.batch_size):
            yield images[rows], labels[rows]


def loaded(task) -> nn.Module:
    """Returns a task's model with its initial parameters."""
    module = build(task.model)
    set_params(module, task.params)
    return module
