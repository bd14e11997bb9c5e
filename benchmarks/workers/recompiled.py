"""The package again, but for a sweep: one `fe.run` after another, each with an algorithm of its own to compile."""

from ours import PACKAGES, prepare

__all__ = ["PACKAGES", "prepare"]
