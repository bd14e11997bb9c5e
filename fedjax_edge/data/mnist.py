"""MNIST: handwritten digits, 28 by 28 pixels; a sample that comes with the package, and the full set.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition" (Proceedings of the IEEE,
1998). The full set is read from its four IDX files, plain or gzipped, which are downloaded if they are not there.
"""

import gzip
import hashlib
import os
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_edge.data.split import Split

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"

# MD5 of the content, not of the gzip file around it, which any mirror may have made again.
CHECKSUMS = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def mnist_sample() -> Split:
    """The sample of MNIST that comes with the package: 10,000 training and 2,000 test images, no download.

    Classes have the frequencies of the full set; test images come from its test files.

    Returns:
      `Split(train, test)`, each `{"image": uint8 [n, 28, 28], "label": uint8 [n]}` of NumPy arrays.

    >>> mnist_sample().train["image"].shape
    (10000, 28, 28)
    """
    with (resources.files("fedjax_edge.data.bundled") / "mnist_sample.npz").open("rb") as file, np.load(file) as arrays:
        return Split(
            train={"image": arrays["train_image"], "label": arrays["train_label"]},
            test={"image": arrays["test_image"], "label": arrays["test_label"]},
        )


def mnist(cache_dir: str | os.PathLike | None = None, base_url: str = MIRROR, progress: bool = True) -> Split:
    """The full MNIST: 60,000 training and 10,000 test images.

    Args:
      cache_dir: folder of the four IDX files, plain or gzipped; those missing are downloaded into it. The default is
        `pooch.os_cache("fedjax_edge")`.
      base_url: where to download from: an address that ends in "/", followed by `train-images-idx3-ubyte.gz` and so on.
      progress: whether to show a progress bar for each download.

    Returns:
      `Split(train, test)`, each `{"image": uint8 [n, 28, 28], "label": uint8 [n]}` of NumPy arrays.

    Raises:
      ConnectionError: if a file is missing and cannot be downloaded.
      ValueError: if a file's content is not that of MNIST. A download of that kind is not kept.
    """
    folder = _default_folder() if cache_dir is None else Path(cache_dir)
    arrays = {name: _parse_idx(_content(folder, name, base_url, progress)) for name in CHECKSUMS}
    return Split(
        train={"image": arrays["train-images-idx3-ubyte"], "label": arrays["train-labels-idx1-ubyte"]},
        test={"image": arrays["t10k-images-idx3-ubyte"], "label": arrays["t10k-labels-idx1-ubyte"]},
    )


def _default_folder() -> Path:
    import pooch  # slow to import, and in a notebook it warns if ipywidgets are not installed

    return Path(pooch.os_cache("fedjax_edge"))


def _content(folder: Path, name: str, base_url: str, progress: bool) -> bytes:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return _verified(path, name, f"{path} is damaged or no part of MNIST; delete it and try again")
    return _verified(_download(folder, name, base_url, progress), name, "the download was damaged on disk")


def _download(folder: Path, name: str, base_url: str, progress: bool) -> Path:
    """Downloads a file to a temporary name, and moves it to its own only when its content is right."""
    import pooch
    import requests

    download = pooch.HTTPDownloader(progressbar=progress)

    def download_verified(url: str, output_file: str, pooch_: Any) -> None:
        download(url, output_file, pooch_)
        _verified(
            Path(output_file), name, f"what {url} sent is damaged or no part of MNIST, and was not kept; try again"
        )

    fetcher = pooch.create(path=folder, base_url=base_url, registry={f"{name}.gz": None})
    try:
        return Path(fetcher.fetch(f"{name}.gz", downloader=download_verified))
    except requests.exceptions.RequestException as error:
        files = ", ".join(f"{file}.gz" for file in CHECKSUMS)
        raise ConnectionError(
            f"could not download {base_url}{name}.gz; without a connection, put the four files {files} "
            f"(gzipped, or plain without .gz) into the folder {folder} and try again"
        ) from error


def _verified(path: Path, name: str, advice: str) -> bytes:
    """The uncompressed content of a file, which must have the checksum of `name`."""
    content = path.read_bytes()
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} cannot be unzipped ({error}): {advice}") from error
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != CHECKSUMS[name]:
        raise ValueError(f"{name} has MD5 {found} where MNIST has {CHECKSUMS[name]}: {advice}")
    return content


def _parse_idx(content: bytes) -> np.ndarray:
    """An array of unsigned bytes in the IDX format: two zeros, type 8, number of axes, big-endian lengths, values."""
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape).copy()
