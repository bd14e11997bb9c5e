"""Running an algorithm: rounds, evaluation, history."""

from fedjax_edge.simulation.evaluation import NO_EVALUATION, Evaluation, evaluation
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.run import RunResult, run

__all__ = ["NO_EVALUATION", "Evaluation", "History", "RunResult", "evaluation", "run"]
