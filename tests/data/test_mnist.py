import gc
import gzip
import hashlib
import http.server
import importlib
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pooch
import pytest

from fedjax_edge.data.bundled import make_mnist_sample

source = importlib.import_module("fedjax_edge.data.mnist")

REAL_FILES = Path(__file__).parents[3] / "shared" / "data" / "mnist"
needs_real_files = pytest.mark.skipif(
    not (REAL_FILES / "train-images-idx3-ubyte.gz").exists(), reason=f"the full MNIST is not in {REAL_FILES}"
)

RNG = np.random.default_rng(0)
SMALL = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": RNG.integers(0, 10, 5, dtype=np.uint8),
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": RNG.integers(0, 10, 3, dtype=np.uint8),
}
FIRST = "train-images-idx3-ubyte"


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


CONTENT = {name: idx(array) for name, array in SMALL.items()}


@pytest.fixture(autouse=True)
def small_set_without_proxy(request, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    if "real" not in request.node.name:
        monkeypatch.setattr(
            source, "CHECKSUMS", {name: hashlib.md5(data).hexdigest() for name, data in CONTENT.items()}
        )


@contextmanager
def server(responses):
    """Serves `responses[path] -> (bytes, length it claims)`; yields the address and the paths that were asked for."""
    requested = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requested.append(self.path)
            if self.path not in responses:
                self.send_error(404)
                return
            body, length = responses[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}/mnist/", requested
        finally:
            httpd.shutdown()
            thread.join()


def served(changes=None):
    bodies = {name: gzip.compress(data, 1, mtime=7) for name, data in CONTENT.items()} | (changes or {})
    return {f"/mnist/{name}.gz": (body, len(body)) for name, body in bodies.items()}


def assert_small(split):
    for columns, prefix in ((split.train, "train"), (split.test, "t10k")):
        np.testing.assert_array_equal(columns["image"], SMALL[f"{prefix}-images-idx3-ubyte"])
        np.testing.assert_array_equal(columns["label"], SMALL[f"{prefix}-labels-idx1-ubyte"])
        assert {column.dtype for column in columns.values()} == {np.dtype(np.uint8)}


def test_downloads_what_is_missing_once(tmp_path):
    with server(served()) as (url, requested):
        folder = tmp_path / "new" / "folder"
        assert_small(source.mnist(folder, base_url=url, progress=False))
        assert_small(source.mnist(str(folder), base_url=url, progress=False))
        assert sorted(requested) == sorted(served())
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in CONTENT)


def test_a_mirror_may_send_plain_content_under_the_gzip_name(tmp_path):
    with server(served({FIRST: CONTENT[FIRST]})) as (url, _):
        assert_small(source.mnist(tmp_path, base_url=url, progress=False))
        assert_small(source.mnist(tmp_path, base_url="http://nowhere.invalid/", progress=False))


def test_reads_plain_and_gzipped_files_without_a_connection(tmp_path):
    for name, data in CONTENT.items():
        if "labels" in name:
            (tmp_path / name).write_bytes(data)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
    split = source.mnist(tmp_path, base_url="http://nowhere.invalid/")
    assert_small(split)
    split.train["image"][0] = 0  # the arrays are the caller's own


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_when_asked_for(tmp_path, capfd, progress):
    with server(served()) as (url, _):
        source.mnist(tmp_path, base_url=url, progress=progress)
    assert ("100%" in capfd.readouterr().err) == progress


DAMAGED = {
    "other pixels": gzip.compress(idx(SMALL[FIRST] ^ 1)),
    "cut off": gzip.compress(CONTENT[FIRST])[:-40],
    "wrong check": gzip.compress(CONTENT[FIRST])[:-8] + bytes(8),
    "no deflate": gzip.compress(CONTENT[FIRST])[:10] + b"\xff" * 60,
    "no gzip": b"<html>Please log in to this network</html>",
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_download_is_an_error_and_is_not_kept(tmp_path, damage):
    with (
        server(served({FIRST: DAMAGED[damage]})) as (url, _),
        pytest.raises(ValueError, match=rf"{FIRST} .*what {url}{FIRST}.gz sent is damaged.* was not kept"),
    ):
        source.mnist(tmp_path, base_url=url, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_damaged_file_is_an_error_that_says_to_delete_it(tmp_path, damage, ending):
    path = tmp_path / f"{FIRST}{ending}"
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(ValueError, match=rf"{FIRST} .*{path} is damaged or no part of MNIST; delete it"):
        source.mnist(tmp_path, base_url="http://nowhere.invalid/")
    assert path.exists()


def assert_says_what_to_do(error, url, folder):
    message = str(error)
    assert f"could not download {url}{FIRST}.gz" in message
    assert all(f"{name}.gz" in message for name in CONTENT)
    assert str(folder) in message
    assert error.__cause__ is not None
    assert list(folder.iterdir()) == []


# pooch leaves the response of a request that failed to the garbage collector, which complains of an open socket.
leaves_a_response = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def collect_garbage():
    yield
    gc.collect()


def test_no_connection_is_an_error_that_says_what_to_do(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/mnist/"
    with pytest.raises(ConnectionError) as caught:
        source.mnist(tmp_path, base_url=url, progress=False)
    assert_says_what_to_do(caught.value, url, tmp_path)


@leaves_a_response
def test_a_missing_file_on_the_server_is_such_an_error(tmp_path, collect_garbage):
    with server({}) as (url, _), pytest.raises(ConnectionError) as caught:
        source.mnist(tmp_path, base_url=url, progress=False)
    assert_says_what_to_do(caught.value, url, tmp_path)


@leaves_a_response
def test_a_connection_lost_half_way_is_such_an_error_and_leaves_nothing(tmp_path, collect_garbage):
    body = gzip.compress(CONTENT[FIRST])
    responses = served() | {f"/mnist/{FIRST}.gz": (body[: len(body) // 2], len(body))}
    with server(responses) as (url, _), pytest.raises(ConnectionError) as caught:
        source.mnist(tmp_path, base_url=url, progress=False)
    assert_says_what_to_do(caught.value, url, tmp_path)


def test_the_default_folder_is_the_cache_of_the_user(tmp_path, monkeypatch):
    for name, data in CONTENT.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(pooch, "os_cache", lambda project: {"fedjax_edge": tmp_path}[project])
    assert_small(source.mnist(base_url="http://nowhere.invalid/"))


@needs_real_files
def test_real_files_are_accepted_and_served_ones_equal_them(tmp_path):
    responses = {
        f"/mnist/{path.name}": (path.read_bytes(), path.stat().st_size) for path in REAL_FILES.glob("*-ubyte.gz")
    }
    full = source.mnist(REAL_FILES, base_url="http://nowhere.invalid/")
    assert full.train["image"].shape == (60_000, 28, 28)
    assert full.test["image"].shape == (10_000, 28, 28)
    assert np.bincount(full.train["label"])[:3].tolist() == [5923, 6742, 5958]
    assert full.train["label"][:5].tolist() == [5, 0, 4, 1, 9]
    with server(responses) as (url, _):
        downloaded = source.mnist(tmp_path, base_url=url, progress=False)
    for name in ("image", "label"):
        np.testing.assert_array_equal(downloaded.train[name], full.train[name])
        np.testing.assert_array_equal(downloaded.test[name], full.test[name])


@needs_real_files
def test_the_script_makes_the_bundled_sample_out_of_the_real_files(tmp_path):
    make_mnist_sample.main(str(REAL_FILES), tmp_path / "again.npz")
    sample = source.mnist_sample()
    with np.load(tmp_path / "again.npz") as again:
        for part, columns in sample._asdict().items():
            for name, column in columns.items():
                np.testing.assert_array_equal(again[f"{part}_{name}"], column)


def test_the_sample_has_the_class_frequencies_of_mnist():
    sample = source.mnist_sample()
    train = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    test = np.array([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    assert abs(np.bincount(sample.train["label"]) - train / 6).max() < 1
    assert abs(np.bincount(sample.test["label"]) - test / 5).max() < 1
    assert sample.train["image"].shape == (10_000, 28, 28)
    assert sample.test["image"].shape == (2_000, 28, 28)
    assert all(column.dtype == np.uint8 for columns in sample for column in columns.values())


def test_the_sample_is_of_digits_not_repeated_and_small():
    sample = source.mnist_sample()
    images = np.concatenate([sample.train["image"], sample.test["image"]]).reshape(12_000, -1)
    assert len({image.tobytes() for image in images}) == 12_000
    # A nearest class mean is right for 82 % of MNIST's test images: pixels and labels belong together.
    means = np.stack(
        [sample.train["image"][sample.train["label"] == label].mean(axis=0).ravel() for label in range(10)]
    )
    distances = ((sample.test["image"].reshape(-1, 1, 784) - means) ** 2).sum(axis=2)
    assert 0.8 < (distances.argmin(axis=1) == sample.test["label"]).mean() < 0.85
    assert Path(source.__file__).parent.joinpath("bundled", "mnist_sample.npz").stat().st_size < 2_500_000
