"""Strict JAX for all tests: eight CPU devices, no silent promotion of ranks or dtypes; warnings are errors.

Most tests, and the processes they start, do little but compile, so XLA and LLVM leave out what takes them long.
"""

import os

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
)

import jax
import matplotlib
import pytest
from hypothesis import settings
from jax._src import compiler

from fedjax_edge import use_cpu_cores

use_cpu_cores(8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
matplotlib.use("Agg")

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="module")
def compiled_code_is_freed():
    """After each file: a process may map 65,530 pieces of memory on Linux, and XLA maps several per program."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module")
def optimized():
    """Compiled as for users: for tests of what compilers may break."""
    get_options = compiler.get_compile_options

    def get_options_of_users(*args, **kwargs):
        options = get_options(*args, **kwargs)
        options.env_option_overrides = [*options.env_option_overrides, ("xla_cpu_use_fusion_emitters", True)]
        return options

    jax.config.update("jax_disable_most_optimizations", False)
    compiler.get_compile_options = get_options_of_users
    yield
    compiler.get_compile_options = get_options
    jax.config.update("jax_disable_most_optimizations", True)
