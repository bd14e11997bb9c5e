"""Codecs: what an update costs on the wire, and what it loses there."""

from fedjax_edge.compression.error_feedback import error_feedback
from fedjax_edge.compression.fixed_point import fixed_point
from fedjax_edge.compression.stochastic_uniform import stochastic_uniform
from fedjax_edge.compression.top_k import top_k

__all__ = ["error_feedback", "fixed_point", "stochastic_uniform", "top_k"]
