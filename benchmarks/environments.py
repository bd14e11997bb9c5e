"""The sides there are: which adapter each has, and which Python runs it; how a peer's environment is made."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from side import Side

HERE = Path(__file__).parent
VENVS = Path("~/.cache/fedjax_edge/peers").expanduser()


class Peer(NamedTuple):
    """Another simulator, in a virtual environment of its own."""

    modes: tuple[str, ...] = ("",)  # ways of running it, of which the fastest counts
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    pip_options: tuple[str, ...] = ()
    sums_as_it_goes: bool = True  # or holds the models of all clients of a round


PEERS = {
    "torch": Peer(modes=("two processes", "one process, two threads")),
    "fedjax": Peer(),
    "pfl-research": Peer(modes=("two processes", "one process, two threads")),
    "flower": Peer(sums_as_it_goes=False),
    "blazefl": Peer(modes=("threads", "serial", "processes"), python="3.12", sums_as_it_goes=False),
    "fedlab": Peer(modes=("one thread", "two threads"), pip_options=("--no-deps",), sums_as_it_goes=False),
}

OURS = {"ours": "ours.py", "recompiled": "recompiled.py", "handwritten": "by_hand.py", "matmul": "matmul.py"}


def python_of(name: str, venvs: Path) -> Path:
    return venvs / name / "bin" / "python"


def is_present(name: str, venvs: Path) -> bool:
    return name in OURS or python_of(name, venvs).exists()


def start(name: str, venvs: Path, modes: tuple[str, ...] = ()) -> list[Side]:
    """Starts a worker for each mode of a side."""
    if name in OURS:
        return [Side(sys.executable, HERE / "workers" / OURS[name], mode) for mode in modes or ("",)]
    adapter = HERE / "peers" / name / "worker.py"
    return [Side(python_of(name, venvs), adapter, mode) for mode in modes or PEERS[name].modes]


def install(name: str, venvs: Path) -> None:
    """Makes the environment of a peer from its `requirements.txt`.

    Raises:
      FileNotFoundError: without the Python that it needs.
      subprocess.CalledProcessError: if pip fails.
    """
    peer = PEERS[name]
    subprocess.run([_python(peer.python), "-m", "venv", venvs / name], check=True)
    pip = [python_of(name, venvs), "-m", "pip", "install", *peer.pip_options]
    subprocess.run([*pip, "-r", HERE / "peers" / name / "requirements.txt"], check=True)


def _python(version: str) -> str:
    """Returns an interpreter of that version: this one, one on the path, or one of pyenv's."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = [shutil.which(f"python{version}"), *Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")]
    for python in filter(None, found):
        if subprocess.run([python, "--version"], capture_output=True).returncode == 0:  # not a shim of nothing
            return str(python)
    raise FileNotFoundError(f"no python{version} on the path or among pyenv's versions")
