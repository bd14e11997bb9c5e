import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import solve_triangular

from fedjax_edge import testing
from fedjax_edge.privacy import banded_toeplitz_noise, blt_noise, correlated_noise, streaming_noise, tree_noise

jax_privacy = pytest.importorskip("jax_privacy.matrix_factorization")

KEY = jax.random.key(0)
DECAYS, SCALES = [0.98, 0.7], [0.17, 0.31]
MAKERS = {
    "tree": lambda: tree_noise(7),
    "banded": lambda: banded_toeplitz_noise(8, 3),
    "independent": lambda: banded_toeplitz_noise(8, 1),
    "blt": lambda: blt_noise(8, DECAYS, SCALES),
}
STRATEGIES = {name: make() for name, make in MAKERS.items()}
NUMBERS = 4000
FALSE_ALARM = 1e-6
each_strategy = pytest.mark.parametrize("name", STRATEGIES)


def slices_of(strategy, like):
    """What the strategy draws over its rounds, leaves [rounds, ...]."""

    def round_(state, number):
        return strategy.next(like, state, jax.random.fold_in(KEY, number))[::-1]

    return jax.lax.scan(round_, strategy.init(like), jnp.arange(strategy.rounds))[1]


@each_strategy
def test_what_is_drawn_has_the_covariance_that_is_accounted_for(name):
    strategy = STRATEGIES[name]
    drawn = slices_of(strategy, {"a": jnp.zeros(NUMBERS), "b": jnp.zeros(NUMBERS)})
    for leaf in drawn.values():
        mixed = np.asarray(leaf, np.float64)
        white = solve_triangular(strategy.mixing(), mixed, lower=True)  # standard normal and independent
        low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], df=NUMBERS)
        assert ((low <= (white**2).sum(1)) & ((white**2).sum(1) <= high)).all()
        correlations = np.corrcoef(white) - np.eye(strategy.rounds)
        assert np.abs(correlations).max() < 5.5 / np.sqrt(NUMBERS)  # false alarms: below 1e-6 for 28 pairs
        assert stats.kstest(white.ravel(), "norm").pvalue > FALSE_ALARM
    assert abs(np.corrcoef(drawn["a"][0], drawn["b"][0])[0, 1]) < 5 / np.sqrt(NUMBERS)


def test_a_tree_of_eight_by_hand():
    # A node's estimate: itself beside its children's, by precision. Leaves 1, then 2/3, 4/7, 8/15.
    variances = [1, 2 / 3, 4 / 7, 8 / 15]
    mixing = tree_noise(8).mixing()
    covariance = mixing @ mixing.T
    for rounds in range(1, 9):
        expected = sum(variance for level, variance in enumerate(variances) if rounds >> level & 1)
        assert np.ones(rounds) @ covariance[:rounds, :rounds] @ np.ones(rounds) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rounds", [1, 5, 8, 13])
def test_a_tree_reveals_no_more_than_its_nodes(rounds):
    nodes = [
        [first <= t < first + width for t in range(rounds)]
        for width in (1, 2, 4, 8)
        for first in range(0, rounds - width + 1, width)
    ]
    encoder = np.array(nodes, float)
    inverse = np.linalg.inv(tree_noise(rounds).mixing() @ tree_noise(rounds).mixing().T)
    assert np.linalg.eigvalsh(encoder.T @ encoder - inverse).min() > -1e-5


def test_banded_noise_is_that_of_jax_privacy():
    coefficients = jnp.array([0.8, 0.5, 0.33])
    matrix = jax_privacy.toeplitz.inverse_as_streaming_matrix(coefficients)
    expected = np.linalg.inv(np.asarray(jax_privacy.toeplitz.materialize_lower_triangular(coefficients, 6), np.float64))
    np.testing.assert_allclose(streaming_noise(matrix, 6).mixing(), expected, atol=1e-5)
    encoder = np.linalg.inv(STRATEGIES["banded"].mixing())
    np.testing.assert_allclose(np.linalg.norm(encoder, axis=0), 1, rtol=1e-5)
    assert np.abs(np.tril(encoder, -3)).max() < 1e-5 < np.abs(np.diag(encoder, -2)).min()
    np.testing.assert_allclose(STRATEGIES["independent"].mixing(), np.eye(8), atol=1e-6)


def test_blt_noise_has_the_coefficients_of_its_buffers():
    column = np.append(1, np.power.outer(DECAYS, np.arange(7)).T @ SCALES)
    encoder = np.linalg.inv(STRATEGIES["blt"].mixing())
    np.testing.assert_allclose(encoder[:, 0], column, rtol=1e-5)
    np.testing.assert_allclose(encoder[3:, 3], column[:5], rtol=1e-5)


@pytest.mark.parametrize("name", ["banded", "blt"])
def test_sums_have_less_noise_than_independent_draws_at_the_same_single_sensitivity(name):
    mixing = STRATEGIES[name].mixing()
    sensitivity = np.sqrt(np.max(np.diag(np.linalg.inv(mixing @ mixing.T))))
    prefix = np.tril(np.ones(mixing.shape)) @ mixing
    error = sensitivity * np.sqrt(np.mean(np.sum(prefix**2, axis=1)))
    independent = np.sqrt(np.mean(np.arange(1, len(mixing) + 1)))
    assert error < 0.95 * independent


@each_strategy
def test_a_state_keeps_its_form_on_awkward_trees(name):
    strategy = STRATEGIES[name]
    like = {"scalar": jnp.zeros(()), "empty": jnp.zeros((0, 2)), "deep": {"one": jnp.zeros(1)}}
    state = strategy.init(like)
    testing.assert_preserves_state(lambda state: strategy.next(like, state, KEY)[1], state)
    noise, _ = strategy.next(like, state, KEY)
    assert jax.tree.map(jnp.shape, noise) == jax.tree.map(jnp.shape, like)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tree_noise(0), "rounds must be an integer"),
        (lambda: banded_toeplitz_noise(4, 5), "bands must be an integer from 1 to 4"),
        (lambda: blt_noise(4, [1.1], [0.5]), "decays must be numbers from 0 to 1"),
        (lambda: blt_noise(4, [0.5], [-0.5]), "scales as many above 0"),
        (lambda: blt_noise(4, [0.5, 0.4], [0.5]), "scales as many above 0"),
        (lambda: streaming_noise(jax_privacy.streaming_matrix.identity(), 1.5), "rounds must be an integer"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_best_bands_are_found_while_tracing():
    correlated_noise._best_coefficients.cache_clear()

    def first_slice(key):
        strategy = banded_toeplitz_noise(7, 3)
        return strategy.next(jnp.zeros(2), strategy.init(jnp.zeros(2)), key)[0]

    assert np.isfinite(jax.jit(first_slice)(jax.random.key(0))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_strategy
def test_dtypes_stay_what_they_are_under_x64(name, dtype):
    def dtypes(tree):
        return jax.tree.map(lambda leaf: leaf.dtype, tree)

    with jax.enable_x64(True):
        strategy, like = MAKERS[name](), {"a": jnp.zeros(3, dtype), "b": jnp.zeros((), dtype)}
        state = strategy.init(like)
        slice_, new = strategy.next(like, state, KEY)
        assert dtypes(slice_) == dtypes(like) and dtypes(new) == dtypes(state)
        assert slices_of(strategy, like)["a"].shape == (strategy.rounds, 3)
        wide = strategy.mixing()
    np.testing.assert_allclose(wide, STRATEGIES[name].mixing(), atol=1e-5)
