"""Flower: its simulation with two Ray workers, one core each. It is started in the first round and kept."""

import os
import queue
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import task as tasks
from peers import torch_models
from task import Task

PACKAGES = ("flwr", "ray", "torch")
HERE = Path(__file__).parent


def prepare(task: Task, mode: str = "") -> Callable[[int], dict]:
    folder = Path(tempfile.mkdtemp())
    tasks.save(task, folder)
    paths = [str(HERE), str(HERE.parents[1])]
    os.environ.update(
        BENCHMARK_TASK=str(folder),
        PYTHONPATH=os.pathsep.join(paths),
        FLWR_TELEMETRY_ENABLED="0",
        RAY_USAGE_STATS_ENABLED="0",
    )
    simulation = Simulation(task)

    def run(rounds: int) -> dict:
        if not simulation.is_alive():
            simulation.start()
        simulation.asked.put(rounds)
        answer = simulation.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    return run


class Simulation(threading.Thread):
    """A running simulation, whose server does as many rounds as it is asked for, again and again."""

    def __init__(self, task: Task):
        super().__init__(daemon=True)
        self.task, self.asked, self.answers = task, queue.Queue(), queue.Queue()

    def run(self) -> None:
        """Runs until the process ends."""
        from flower_client import app as client_app
        from flwr.app import ArrayRecord
        from flwr.serverapp import Grid, ServerApp
        from flwr.serverapp.strategy import FedAvg
        from flwr.simulation import run_simulation

        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: object) -> None:
            task = self.task
            strategy = FedAvg(
                fraction_train=task.cohort / task.num_clients,
                fraction_evaluate=0.0,
                min_available_nodes=task.num_clients,
                min_train_nodes=task.cohort,
            )
            model = torch_models.loaded(task)
            while True:
                rounds = self.asked.get()
                torch_models.set_params(model, task.params)
                result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds)
                model.load_state_dict(result.arrays.to_torch_state_dict())
                self.answers.put(torch_models.get_params(model))

        resources = {
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "_temp_dir": tempfile.gettempdir()},
        }
        try:
            run_simulation(server_app, client_app, self.task.num_clients, backend_config=resources)
        except Exception as error:
            self.answers.put(error)
