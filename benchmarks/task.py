"""A federated task in a folder of NumPy files: what the driver writes once and every side reads, in any environment."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

SAMPLE = 2000


class Task(NamedTuple):
    """One round of federated averaging, to be repeated: plain SGD, one local epoch, client means weighted by examples.

    The last batch of a client may be short. With fewer clients a round than there are, each round draws them anew.
    """

    model: str  # a name in `plain_models.MODELS`
    batch_size: int
    learning_rate: float
    cohort: int  # clients a round
    images: np.ndarray  # uint8 [examples, height, width] or [examples, height, width, channels], to be divided by 255
    labels: np.ndarray  # int32 [examples]
    offsets: np.ndarray  # int64 [clients + 1]; client i holds rows offsets[i] : offsets[i + 1]
    params: dict[str, np.ndarray]  # to start from; float32, named "Dense_0/kernel" and so on

    @property
    def num_clients(self) -> int:
        """How many clients there are."""
        return len(self.offsets) - 1

    @property
    def takes_everyone(self) -> bool:
        """Whether all clients take part in every round."""
        return self.cohort == self.num_clients

    @property
    def sizes(self) -> np.ndarray:
        """The number of examples of each client."""
        return np.diff(self.offsets)

    @property
    def steps(self) -> float:
        """The local steps of one round; on average, if clients are drawn."""
        return float(np.ceil(self.sizes / self.batch_size).mean() * self.cohort)

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and labels, spread over all clients, on which final models are compared."""
        rows = np.linspace(0, len(self.labels) - 1, min(SAMPLE, len(self.labels))).astype(int)
        return self.images[rows], self.labels[rows]

    def clients(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the images, as floats in [0, 1], and the labels of each client."""
        images = self.images.astype(np.float32) / 255
        spans = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return [(images[start:stop], self.labels[start:stop]) for start, stop in spans]


def save(task: Task, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("images", "labels", "offsets"):
        np.save(folder / f"{name}.npy", getattr(task, name))
    save_params(task.params, folder / "params.npz")
    setting = {name: getattr(task, name) for name in ("model", "batch_size", "learning_rate", "cohort")}
    (folder / "setting.json").write_text(json.dumps(setting))


def load(folder: Path) -> Task:
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "labels", "offsets")}
    setting = json.loads((folder / "setting.json").read_text())
    return Task(**setting, **arrays, params=load_params(folder / "params.npz"))


def save_params(params: dict[str, np.ndarray], path: Path) -> None:
    np.savez(path, **{name: np.asarray(array, np.float32) for name, array in params.items()})


def load_params(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)
