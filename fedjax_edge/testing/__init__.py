"""The kit with which components are proved: assertions about their mathematics, and hypothesis strategies.

Imported on its own, `import fedjax_edge.testing`, as it needs hypothesis (`pip install 'fedjax-edge[test]'`).
"""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("fedjax_edge.testing needs hypothesis: pip install 'fedjax-edge[test]'") from error

from fedjax_edge.testing import strategies
from fedjax_edge.testing.aggregating import aggregate
from fedjax_edge.testing.aggregators import (
    assert_convex,
    assert_linear,
    assert_padding_invariant,
    assert_permutation_invariant,
    assert_scale_equivariant,
    assert_translation_equivariant,
)
from fedjax_edge.testing.codecs import (
    assert_error_feedback_conserves,
    assert_rejects_non_finite,
    assert_round_trip,
    assert_unbiased,
    assert_variance_bounded,
)
from fedjax_edge.testing.comparing import assert_close, assert_same_kind
from fedjax_edge.testing.executor import assert_order_invariant, assert_plan_invariant
from fedjax_edge.testing.keys import assert_draws_independent, assert_keys_independent
from fedjax_edge.testing.privacy import assert_no_claim_without_noise, assert_noise_scale, assert_sensitivity
from fedjax_edge.testing.purity import assert_compiles_once, assert_preserves_state, assert_pure

__all__ = [
    "aggregate",
    "assert_close",
    "assert_compiles_once",
    "assert_convex",
    "assert_draws_independent",
    "assert_error_feedback_conserves",
    "assert_keys_independent",
    "assert_linear",
    "assert_no_claim_without_noise",
    "assert_noise_scale",
    "assert_order_invariant",
    "assert_padding_invariant",
    "assert_permutation_invariant",
    "assert_plan_invariant",
    "assert_preserves_state",
    "assert_pure",
    "assert_rejects_non_finite",
    "assert_round_trip",
    "assert_same_kind",
    "assert_scale_equivariant",
    "assert_sensitivity",
    "assert_translation_equivariant",
    "assert_unbiased",
    "assert_variance_bounded",
    "strategies",
]
