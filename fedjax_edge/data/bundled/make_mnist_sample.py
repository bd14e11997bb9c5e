"""Makes `mnist_sample.npz`, the part of MNIST that comes with the package.

    python fedjax_edge/data/bundled/make_mnist_sample.py ../shared/data/mnist

The argument is a folder with the four IDX files. Classes keep their frequencies, and the examples taken of a class are
spread evenly over the file: no random numbers, so the same files always give the same sample, and writers, who follow
one another in the files, are all represented.
"""

import sys
from pathlib import Path

import numpy as np

from fedjax_edge.data.mnist import mnist
from fedjax_edge.data.partition.dealing import apportion

NUM_TRAIN, NUM_TEST = 10_000, 2_000


def stratified(labels: np.ndarray, size: int) -> np.ndarray:
    """Indices, ascending, of `size` examples with the class frequencies of `labels` [num_examples].

    >>> stratified(np.array([0, 0, 0, 0, 1, 1]), size=3)
    array([0, 2, 4])
    """
    class_sizes = np.bincount(labels)
    taken = apportion(class_sizes, size)
    rows = [
        np.flatnonzero(labels == label)[np.arange(take) * available // max(take, 1)]
        for label, (take, available) in enumerate(zip(taken, class_sizes, strict=True))
    ]
    return np.sort(np.concatenate(rows))


def main(source: str, target: Path) -> None:
    """Writes the sample of the IDX files in `source` to `target`."""
    full = mnist(cache_dir=source, progress=False)
    train_rows, test_rows = stratified(full.train["label"], NUM_TRAIN), stratified(full.test["label"], NUM_TEST)
    np.savez_compressed(
        target,
        train_image=full.train["image"][train_rows],
        train_label=full.train["label"][train_rows],
        test_image=full.test["image"][test_rows],
        test_label=full.test["label"][test_rows],
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(__file__).with_name("mnist_sample.npz"))
