"""Shakespeare's plays by speaking role: next-character prediction with one client per role.

After McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017,
arXiv:1602.05629, section 3), and LEAF (Caldas et al. 2018, arXiv:1812.01097), whose windows are 80 characters. The text
is the 40,000 lines of "tiny Shakespeare" (Karpathy 2015), which come with the package.
"""

import gzip
import re
from importlib import resources

import numpy as np

from fedjax_edge.core import checks
from fedjax_edge.data.dataset import from_client_arrays
from fedjax_edge.data.split import Split

SHAKESPEARE_VOCABULARY = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The 65 characters of the text; a character's code is its position."""

_CODES = str.maketrans({character: code for code, character in enumerate(SHAKESPEARE_VOCABULARY)})

_HEADING = re.compile(r"(?:\A|(?<=\n\n))([^\n]+):\n")


def shakespeare(window: int = 80) -> Split:
    """Shakespeare's plays as two federated datasets with one client per speaking role.

    A role's text is its speeches in the order of the plays, separated by a newline. It is cut into consecutive windows
    that do not overlap; what is left at the end is dropped. The first 80 % of a role's windows are for training, the
    others for testing, at least one each; a role with fewer than two windows is left out.

    Args:
      window: characters per example.

    Returns:
      `Split(train, test)` of `FederatedDataset`, with the same clients, in the order of `shakespeare_roles(window)`,
      and columns `{"input": uint8 [n, window], "target": uint8 [n, window]}`: codes of characters, where the target is
      the input shifted by one, so that `target[i]` follows `input[: i + 1]`.

    Raises:
      ValueError: if `window` is not an integer above 0, or so long that no role has two windows.
    """
    train, test = [], []
    for codes in _texts(window).values():
        examples = _windows(codes, window)
        num_train = 4 * len(examples["input"]) // 5  # of two windows or more: at least one, and not all
        train.append({name: column[:num_train] for name, column in examples.items()})
        test.append({name: column[num_train:] for name, column in examples.items()})
    return Split(from_client_arrays(train), from_client_arrays(test))


def shakespeare_roles(window: int = 80) -> list[str]:
    """The names of the roles in `shakespeare(window)`: client i is the i-th, in alphabetical order.

    >>> shakespeare_roles()[:3]
    ['A Player', 'ABHORSON', 'ADRIAN']
    """
    return list(_texts(window))


def encode_text(text: str) -> np.ndarray:
    """Codes of characters, uint8 [len(text)]; ValueError for one that is not in `SHAKESPEARE_VOCABULARY`.

    >>> encode_text("Hamlet")
    array([20, 39, 51, 50, 43, 58], dtype=uint8)
    """
    unknown = set(text) - set(SHAKESPEARE_VOCABULARY)
    if unknown:
        raise ValueError(f"text must use the characters of SHAKESPEARE_VOCABULARY only, got {sorted(unknown)}")
    return np.frombuffer(text.translate(_CODES).encode("ascii"), np.uint8).copy()


def decode_text(codes: np.ndarray) -> str:
    """The text of these codes [n], the inverse of `encode_text`.

    >>> decode_text(encode_text("To be, or not to be"))
    'To be, or not to be'
    """
    return "".join(SHAKESPEARE_VOCABULARY[code] for code in codes)


def _texts(window: int) -> dict[str, np.ndarray]:
    """The codes of what each role says, for the roles with two windows, by name."""
    checks.integer("window", window)
    speeches = _speeches()
    texts = {role: encode_text("\n".join(speeches[role])) for role in sorted(speeches)}
    long_enough = {role: codes for role, codes in texts.items() if _num_windows(codes, window) >= 2}
    if not long_enough:
        longest = max(len(codes) for codes in texts.values())
        raise ValueError(f"window must be at most {(longest - 1) // 2} for a role to have two windows, got {window}")
    return long_enough


def _speeches() -> dict[str, list[str]]:
    packed = (resources.files("fedjax_edge.data.bundled") / "shakespeare.txt.gz").read_bytes()
    _, *parts = _HEADING.split(gzip.decompress(packed).decode("ascii"))
    speeches: dict[str, list[str]] = {}
    for role, speech in zip(parts[::2], parts[1::2], strict=True):
        if speech.strip():  # some headings, mostly of ghosts, have no text
            speeches.setdefault(role, []).append(speech.strip("\n"))
    return speeches


def _num_windows(codes: np.ndarray, window: int) -> int:
    return (len(codes) - 1) // window  # the last target is one character further


def _windows(codes: np.ndarray, window: int) -> dict[str, np.ndarray]:
    end = _num_windows(codes, window) * window
    return {"input": codes[:end].reshape(-1, window), "target": codes[1 : end + 1].reshape(-1, window)}
