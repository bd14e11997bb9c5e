import json
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedjax_edge.core.protocols import CyclicSampling, FixedSampling, FullParticipation, PoissonSampling, PrivacyError
from fedjax_edge.privacy import (
    Ledger,
    adaptive_clip_mean,
    correlated_mean,
    dp_sgd,
    gaussian_accountant,
    local_gaussian,
    local_laplace,
    read_ledger,
    streaming_noise,
    tree_noise,
)

DELTA = 1e-5
FULL, POISSON, FIXED = FullParticipation(100), PoissonSampling(1000, 0.1, 0.0), FixedSampling(1000, 100)


def ledger_of(*claims):
    ledger = Ledger()
    for number, claim in enumerate(claims):
        ledger = ledger.record(f"phase {number}", claim)
    return ledger


def poisson(multiplier, rounds, sampling=POISSON):
    return gaussian_accountant(multiplier)(sampling, rounds, DELTA)


def test_poisson_phases_and_full_rounds_compose_by_pld():
    ledger = ledger_of(poisson(1.0, 20), poisson(2.0, 50, PoissonSampling(1000, 0.3, 0.0)), poisson(6.0, 3, FULL))
    independent = PLDAccountant()
    independent.compose(dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.0)), 20)
    independent.compose(dp_accounting.PoissonSampledDpEvent(0.3, dp_accounting.GaussianDpEvent(2.0)), 50)
    independent.compose(dp_accounting.GaussianDpEvent(6.0), 3)
    claim = ledger.claim(DELTA)
    assert claim.epsilon == pytest.approx(independent.get_epsilon(DELTA), rel=2e-3)
    assert (claim.relation, claim.rounds, claim.delta) == ("add-or-remove one client", 73, DELTA)
    assert claim.accountant == "PLD, of 3 entries" and "phase 1: each of 1000 clients" in claim.sampling
    assert math.isnan(claim.noise_multiplier) and claim.release is None
    assert max(c.epsilon for _, c in ledger.entries) < claim.epsilon < sum(c.epsilon for _, c in ledger.entries)


def test_one_entry_or_equal_ones_are_the_accountants_own_number():
    assert ledger_of(poisson(1.0, 20)).claim(DELTA).epsilon == poisson(1.0, 20).epsilon
    assert ledger_of(poisson(1.0, 12), poisson(1.0, 8)).claim(DELTA).epsilon == pytest.approx(
        poisson(1.0, 20).epsilon, rel=1e-6
    )
    assert Ledger().claim(DELTA).epsilon == 0


def test_the_overflow_of_each_phase_is_paid_for():
    padded = PoissonSampling(1000, 0.1, 1e-9)
    both = ledger_of(poisson(1.0, 12, padded), poisson(1.0, 8, padded)).claim(DELTA).epsilon
    assert both == pytest.approx(poisson(1.0, 20, padded).epsilon, rel=1e-6) and both > poisson(1.0, 20).epsilon
    with pytest.raises(PrivacyError, match=r"overflows with probability 1e-06"):
        ledger_of(poisson(5.0, 1, PoissonSampling(1000, 0.1, 1e-6)), poisson(5.0, 9)).claim(1e-6)


def test_plain_releases_compose_as_gaussians():
    claims = [poisson(4.0, 8, CyclicSampling(100, 25)), correlated_mean(tree_noise(4), 1, 3.0, 25).accountant]
    claims[1] = claims[1](CyclicSampling(100, 25), 4, DELTA)
    root = 3.0 / dp_accounting.get_sigma_gaussian(claims[1].epsilon, DELTA)
    expected = dp_accounting.get_epsilon_gaussian(1 / math.hypot(2**0.5 / 4, root / 3), DELTA)
    assert ledger_of(*claims).claim(DELTA).epsilon == pytest.approx(expected, rel=1e-6)


def test_examples_and_local_updates_compose_among_themselves():
    example = dp_sgd(1.0, 10.0, batch_size=8, epochs=3).accountant
    assert ledger_of(example(FULL, 2, DELTA), example(FULL, 3, DELTA)).claim(DELTA).epsilon == pytest.approx(
        example(FULL, 5, DELTA).epsilon
    )
    local = local_gaussian(1.0, 10.0, 100).accountant
    assert ledger_of(local(FULL, 2, DELTA), local(FULL, 3, DELTA)).claim(DELTA).epsilon == pytest.approx(
        local(FULL, 5, DELTA).epsilon
    )


def test_cohorts_of_fixed_size_compose_by_rdp_of_doubled_sensitivity():
    independent = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    for multiplier, rounds in ((4.0, 20), (8.0, 30)):
        event = dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, dp_accounting.GaussianDpEvent(multiplier / 2))
        independent.compose(event, rounds)
    claim = ledger_of(poisson(4.0, 20, FIXED), poisson(8.0, 30, FIXED)).claim(DELTA)
    assert claim.epsilon == pytest.approx(independent.get_epsilon(DELTA), rel=1e-9)
    assert (claim.relation, claim.accountant) == ("replace one client", "RDP, of 2 entries")


def test_what_cannot_be_composed_is_refused():
    with pytest.raises(PrivacyError, match="different neighbours cannot be added up"):
        ledger_of(poisson(1.0, 20), poisson(4.0, 20, FIXED)).claim(DELTA)
    with pytest.raises(PrivacyError, match="cannot be composed with anything else"):
        ledger_of(local_laplace(1.0, 4.0, 10).accountant(FULL, 1, DELTA))
    with pytest.raises(ValueError, match="delta must be"):
        Ledger().claim(0.0)


def test_a_run_that_went_on_takes_its_own_place():
    ledger = Ledger().record("run", poisson(1.0, 20)).record("other", poisson(2.0, 5)).record("run", poisson(1.0, 30))
    assert [(name, claim.rounds) for name, claim in ledger.entries] == [("run", 30), ("other", 5)]
    for other in (poisson(1.0, 29), poisson(1.1, 40), poisson(1.0, 40, FULL)):
        with pytest.raises(ValueError, match="record them under another name"):
            ledger.record("run", other)


def test_a_run_of_extreme_noise_takes_its_own_place():
    ledger = Ledger().record("run", poisson(1e300, 20)).record("run", poisson(1e300, 30))
    assert [claim.rounds for _, claim in ledger.entries] == [30] and ledger.claim(DELTA).epsilon < 1e-3


def test_a_run_with_other_epochs_or_turns_is_another_run():
    few, many = (dp_sgd(1.0, 10.0, batch_size=8, epochs=epochs).accountant(FULL, 2, DELTA) for epochs in (1, 3))
    turns = poisson(1.0, 8, CyclicSampling(100, 50)), poisson(1.0, 9, CyclicSampling(100, 10))
    noise = (correlated_mean(tree_noise(8), 1, 3.0, 25).accountant(FULL, rounds, DELTA) for rounds in (8, 4))
    fewer = (poisson(1.0, rounds, CyclicSampling(100, 25)) for rounds in (12, 9))  # three turns of a client, both
    for first, second in ((many, few), (few, many), turns, noise, fewer):
        with pytest.raises(ValueError, match="record them under another name"):
            Ledger().record("run", first).record("run", second)
    grown = [correlated_mean(tree_noise(8), 1, 3.0, 25).accountant(FULL, rounds, DELTA) for rounds in (4, 8)]
    assert Ledger().record("run", grown[0]).record("run", grown[1]).claim(DELTA).epsilon == pytest.approx(
        grown[1].epsilon
    )


def test_mechanisms_of_equal_noise_are_told_apart():
    class Independent:
        def init_multiply(self, like):
            return ()

        def multiply_next(self, value, state):
            return value, state

    turns = CyclicSampling(100, 25)
    claims = [
        correlated_mean(tree_noise(8), 1, 3.0, 25).accountant(turns, 4, DELTA),
        correlated_mean(streaming_noise(Independent(), 8), 1, 3.0, 25).accountant(turns, 8, DELTA),
        poisson(3.0, 8, turns),
        adaptive_clip_mean(1.0, 3.0, 100).accountant(turns, 12, DELTA),
    ]
    for number, first in enumerate(claims):
        for second in claims[number + 1 :]:
            with pytest.raises(ValueError, match="record them under another name"):
                Ledger().record("run", first).record("run", second)
    longer = local_gaussian(1.0, 10.0, 100).accountant
    assert len(Ledger().record("run", longer(FULL, 2, DELTA)).record("run", longer(FULL, 3, DELTA)).entries) == 1


def test_a_ledger_comes_back_as_it_was_written(tmp_path):
    ledger = ledger_of(poisson(1.0, 20), poisson(6.0, 3, FULL))
    ledger.write(tmp_path / "ledger.json")
    assert read_ledger(tmp_path / "ledger.json") == ledger
    fixed = ledger_of(poisson(4.0, 20, FIXED))
    fixed.write(tmp_path / "ledger.json")
    assert read_ledger(tmp_path / "ledger.json") == fixed
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
    assert json.loads((tmp_path / "ledger.json").read_text())[0]["release"]["sampling"]["kind"] == "FixedSampling"


def test_a_failed_write_leaves_the_old_ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger.json"
    ledger_of(poisson(1.0, 20)).write(path)
    before = path.read_text()
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ledger_of(poisson(1.0, 20), poisson(6.0, 3, FULL)).write(path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError, match="not JSON serializable"):
        ledger_of(poisson(1.0, 20)._replace(rounds=object())).write(tmp_path / "new.json")
    assert list(tmp_path.iterdir()) == [path]


NUMPY_SAMPLINGS = {
    "Poisson": PoissonSampling(np.int64(1000), np.float64(0.1), np.float64(0.0)),
    "fixed": FixedSampling(np.int32(1000), np.int32(100)),
    "full": FullParticipation(np.int32(100)),
    "cyclic": CyclicSampling(np.int32(100), np.int32(25)),
}
ACCOUNTANTS = {
    "gaussian": gaussian_accountant(4.0),
    "dp_sgd": dp_sgd(1.0, 10.0, batch_size=8, epochs=np.int32(2)).accountant,
    "local": local_gaussian(1.0, 10.0, 100).accountant,
    "correlated": correlated_mean(tree_noise(8), 1, 3.0, 25).accountant,
}


@pytest.mark.parametrize("sampling", NUMPY_SAMPLINGS.values(), ids=NUMPY_SAMPLINGS)
@pytest.mark.parametrize("accountant", ACCOUNTANTS.values(), ids=ACCOUNTANTS)
def test_claims_of_numpy_numbers_are_written_like_others(accountant, sampling, tmp_path):
    claim = accountant(sampling, np.int32(8), DELTA)
    assert type(claim.rounds) is int and type(claim.release.times) is int
    Ledger().record("run", claim).write(tmp_path / "ledger.json")
    assert read_ledger(tmp_path / "ledger.json").entries == (("run", claim),)


@pytest.mark.parametrize("text", ["", "{", '[{"name": "a"}]', "[1]", '[{"name": "a", "release": {}}]'])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, text):
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(ValueError, match="is not a ledger"):
        read_ledger(tmp_path / "ledger.json")
    with pytest.raises(FileNotFoundError):
        read_ledger(tmp_path / "missing.json")


def test_phases_of_very_different_noise_share_a_grid():
    both = ledger_of(poisson(1.0, 5), poisson(30.0, 5)).claim(DELTA).epsilon
    assert poisson(1.0, 5).epsilon <= both < 1.05 * poisson(1.0, 5).epsilon
