"""A ledger of what was released about one population: phases and runs, and what they guarantee together."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_edge.core.protocols import FixedSampling, PoissonSampling, PrivacyClaim, PrivacyError, Release
from fedjax_edge.privacy.accounting import check_delta, compose

_SAMPLINGS = {kind.__name__: kind for kind in (PoissonSampling, FixedSampling)}


class Ledger(NamedTuple):
    """All claims made about one population, by name, in the order of their first entry; a value, not changed in place.

    A run's own epsilon follows from its number of rounds, and so it survives a resume. What it cannot know is what else
    was released: a run before it, a phase with other noise or another sampler. Record each run's claim (`result.claim`)
    and ask for them all together. Claims are composed by privacy loss distributions where cohorts are Poisson, by RDP
    where they are of fixed size, by the analytic Gaussian where nothing is sampled; later runs may depend on earlier
    ones. One name is one run: a second run of the same mechanism needs a name of its own, or its claim would be taken
    for that of the first run gone on. And it needs a key of its own, as every phase does: all noise comes of the run's
    key, and what two runs of one key release differs by no noise at all. So the trials of one seed of a sweep do not
    add up.

    >>> from fedjax_edge.core.protocols import FullParticipation
    >>> from fedjax_edge.privacy.accounting import gaussian_accountant
    >>> everyone = FullParticipation(100)
    >>> ledger = Ledger().record("pilot", gaussian_accountant(8.0)(everyone, 16, 1e-5))
    >>> ledger = ledger.record("training", gaussian_accountant(4.0)(everyone, 12, 1e-5))
    >>> print(round(ledger.claim(delta=1e-5).epsilon, 3), round(gaussian_accountant(1.0)(everyone, 1, 1e-5).epsilon, 3))
    4.377 4.377
    """

    entries: tuple[tuple[str, PrivacyClaim], ...] = ()

    def record(self, name: str, claim: PrivacyClaim) -> "Ledger":
        """Returns the ledger with one more claim, or with the claim of a run that went on since in its old one's place.

        Raises:
          ValueError: if the name stands for another mechanism, or for more rounds than this claim has.
          PrivacyError: for a claim that cannot be composed with others.
        """
        if claim.release is None:
            raise PrivacyError(
                f"{name!r} cannot be composed with anything else: a claim by {claim.accountant!r} does not carry what "
                "was released as a Gaussian mechanism"
            )
        entries = dict(self.entries)
        old = entries.get(name)
        if old is not None and not (
            old.mechanism == claim.mechanism and old.rounds <= claim.rounds and _spent(old) <= _spent(claim)
        ):
            raise ValueError(
                f"{name!r} stands for {old.rounds} rounds of {old.mechanism}, which {claim.rounds} rounds of "
                f"{claim.mechanism} do not continue: record them under another name"
            )
        return Ledger(tuple({**entries, name: claim}.items()))

    def claim(self, delta: float) -> PrivacyClaim:
        """Returns what all entries guarantee together at this delta; no entries have epsilon 0.

        Its noise multiplier is NaN, there being several.

        Raises:
          PrivacyError: if entries are about neighbours of different kinds, or no finite epsilon can be given.
          ValueError: for `delta` outside (0, 1).
        """
        check_delta(delta)
        relations = sorted({claim.relation for _, claim in self.entries})
        if len(relations) > 1:
            raise PrivacyError(f"claims about different neighbours cannot be added up: {'; '.join(relations)}")
        epsilon, by = compose([claim.release for _, claim in self.entries], delta)
        return PrivacyClaim(
            epsilon=epsilon,
            delta=float(delta),
            relation=relations[0] if relations else "nothing was released",
            sampling="; ".join(f"{name}: {claim.sampling}" for name, claim in self.entries),
            accountant=f"{by}, of {len(self.entries)} entries",
            rounds=sum(claim.rounds for _, claim in self.entries),
            noise_multiplier=math.nan,
        )

    def write(self, path: str | Path) -> None:
        """Writes the ledger as JSON: whole under another name, which then replaces what was there, or is removed."""
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("w") as file:
                json.dump([{"name": name, **_to_json(claim)} for name, claim in self.entries], file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def read_ledger(path: str | Path) -> Ledger:
    """Returns the ledger that `Ledger.write` wrote.

    Raises:
      FileNotFoundError: if there is none; what was released is never taken for nothing.
      ValueError: for a file that is no ledger.
    """
    text = Path(path).read_text()
    try:
        ledger = Ledger()
        for entry in json.loads(text):
            ledger = ledger.record(entry.pop("name"), _from_json(entry))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a ledger: {error!r}") from error
    return ledger


def _spent(claim: PrivacyClaim) -> float:
    return claim.release.times / claim.release.noise_multiplier / claim.release.noise_multiplier


def _to_json(claim: PrivacyClaim) -> dict[str, Any]:
    noise_multiplier, times, sampling = claim.release
    release = {"noise_multiplier": noise_multiplier, "times": times}
    if sampling is not None:
        release["sampling"] = {"kind": type(sampling).__name__, **sampling._asdict()}
    return {**claim._asdict(), "release": release}


def _from_json(entry: dict[str, Any]) -> PrivacyClaim:
    release = dict(entry.pop("release"))
    if sampling := release.pop("sampling", None):
        sampling = _SAMPLINGS[sampling.pop("kind")](**sampling)
    return PrivacyClaim(**entry, release=Release(**release, sampling=sampling))
