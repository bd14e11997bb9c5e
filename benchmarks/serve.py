"""A worker: one side of the comparison, in a process and an environment of its own.

    python benchmarks/serve.py FOLDER/ADAPTER.py

An adapter is a file with `PACKAGES`, whose versions are told, and `prepare(task, mode)`, which returns
`run(rounds) -> final parameters`: that many rounds from the task's parameters on, done when it returns. A request is a
line of JSON on the standard input, an answer a line on the standard output; what libraries print goes to the standard
error. The end of the input ends the worker.

    {"do": "prepare", "task": FOLDER, "mode": NAME}           -> {"versions": {PACKAGE: VERSION}}
    {"do": "run", "rounds": N, "params": FILE}                -> {"seconds": OF ALL ROUNDS}
    {"do": "sweep", "rounds": N, "rates": [...], "params": F} -> {"seconds": OF ALL RATES}, F for the last's
"""

import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from task import Task, load, save_params


def imported(path: Path) -> ModuleType:
    """Imports an adapter under its own name, so that the processes it starts can import it too."""
    sys.path.append(str(path.parent))
    return importlib.import_module(path.stem)


class Worker:
    """Answers requests, each by the method of its name."""

    def __init__(self, adapter: ModuleType):
        self.adapter = adapter

    def prepare(self, task: str, mode: str) -> dict[str, Any]:
        """Loads the task and all that can be done before the first round."""
        self.task, self.mode = load(Path(task)), mode
        self.rounds = self.adapter.prepare(self.task, mode)
        versions = {name: metadata.version(name) for name in self.adapter.PACKAGES}
        return {"versions": {"python": platform.python_version(), **versions}}

    def run(self, rounds: int, params: str) -> dict[str, Any]:
        """Times rounds from the task's parameters on."""
        return timed(Path(params), self.rounds, rounds)

    def sweep(self, rounds: int, rates: list[float], params: str) -> dict[str, Any]:
        """Times the runs of all learning rates, by the adapter's `sweep` if it has one."""
        sweep = getattr(self.adapter, "sweep", one_after_another)
        return timed(Path(params), sweep, self.adapter, self.task, self.mode, rounds, rates)


def timed(params: Path, train: Callable[..., dict], *arguments: Any) -> dict[str, Any]:
    started = time.perf_counter()
    trained = train(*arguments)
    seconds = time.perf_counter() - started
    save_params(trained, params)
    return {"seconds": seconds}


def one_after_another(adapter: ModuleType, task: Task, mode: str, rounds: int, rates: list[float]) -> dict:
    for rate in rates:
        trained = adapter.prepare(task._replace(learning_rate=rate), mode)(rounds)
    return trained


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(imported(Path(sys.argv[1]).resolve()))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # without waiting for the threads and the helpers of any library


if __name__ == "__main__":
    main()
