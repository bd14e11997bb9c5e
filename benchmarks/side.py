"""The driver's end of a worker: one side of the comparison as a subprocess that answers one question at a time."""

import json
import os
import select
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SERVE = Path(__file__).with_name("serve.py")
LONGEST_ANSWER = 900.0  # seconds


class SideError(Exception):
    """A side that could not do what it was asked."""


class Side:
    """A running worker.

    Args:
      python: the interpreter of its environment.
      adapter: the file that `serve.py` imports.
      mode: one of the adapter's ways of doing it.
    """

    def __init__(self, python: str | os.PathLike, adapter: Path, mode: str = ""):
        self.mode = mode
        self._folder = tempfile.TemporaryDirectory()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # A cache of an earlier run would hide what a first round costs.
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment["TMPDIR"] = self._folder.name
        self._process = subprocess.Popen(
            [python, SERVE, adapter],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self._answers = b""

    def ask(self, *, patience: float = LONGEST_ANSWER, **request: Any) -> dict[str, Any]:
        """Sends a request and returns its answer.

        Raises:
          SideError: if the worker says that it failed, ends, or does not answer within `patience` seconds, after which
            it is of no further use.
        """
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._line(patience))
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            raise SideError(f"{type(error).__name__} {error}: {self._last_words()}") from error
        if "error" in answer:
            raise SideError(answer["error"])
        return answer

    def peak_bytes(self) -> int | None:
        """Returns the peak resident memory of the worker and the helpers it now has, summed; None if unknown."""
        peaks = [_peak_bytes(pid) for pid in _family(self._process.pid)]
        return None if None in peaks else sum(peaks)

    def close(self) -> None:
        """Ends the worker and its helpers, once."""
        if self._log.closed:
            return
        family = _family(self._process.pid)
        self._process.stdin.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid in family[1:]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.stdout.close()
        self._log.close()
        self._folder.cleanup()

    def _line(self, patience: float) -> bytes:
        while b"\n" not in self._answers:
            ready, _, _ = select.select([self._process.stdout], [], [], patience)
            if not ready:
                raise TimeoutError(f"no answer in {patience:.0f} s")
            received = os.read(self._process.stdout.fileno(), 65536)
            if not received:
                raise EOFError("the worker ended")
            self._answers += received
        line, _, self._answers = self._answers.partition(b"\n")
        return line

    def _last_words(self) -> str:
        self._log.seek(0)
        return " / ".join(self._log.read().splitlines()[-5:])


def _family(pid: int) -> list[int]:
    """Returns a process and all its descendants, itself first; only itself where there is no /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    family = [pid]
    for member in family:  # grows on the way
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _peak_bytes(pid: int) -> int | None:
    try:
        lines = (Path("/proc") / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return 1024 * sum(kilobytes)
