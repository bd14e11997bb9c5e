"""Running an algorithm: rounds, evaluation, history, checkpoints, sweeps."""

from fedjax_edge.simulation.checkpoint import Checkpoints, checkpoints
from fedjax_edge.simulation.describe import Description, describe
from fedjax_edge.simulation.evaluation import NO_EVALUATION, Evaluation, evaluation
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.recipe import Setup
from fedjax_edge.simulation.run import RunResult, run
from fedjax_edge.simulation.sweep import sweep
from fedjax_edge.simulation.sweep_result import Summary, SweepResult, Trial
from fedjax_edge.simulation.tuning import tune_plan

__all__ = [
    "NO_EVALUATION",
    "Checkpoints",
    "Description",
    "Evaluation",
    "History",
    "RunResult",
    "Setup",
    "Summary",
    "SweepResult",
    "Trial",
    "checkpoints",
    "describe",
    "evaluation",
    "run",
    "sweep",
    "tune_plan",
]
