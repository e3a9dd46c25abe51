"""What can go wrong at the edge, each as an exception with a sentence in it.

Every class also inherits the builtin that a caller would think of catching. The messages say what was
expected, what came and what to change; nothing else in the package prints or logs errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KoopmanInterpError(Exception):
    """Anything that this package refuses to do."""


class InputError(KoopmanInterpError, ValueError):
    """An argument has the wrong value, length or shape."""


class UnknownSiteError(KoopmanInterpError, LookupError):
    """A site that the host does not have, or that never fired."""


class UnsupportedHostError(KoopmanInterpError, TypeError):
    """A model, output or module that no adapter knows how to read or write."""


class UnskippableError(UnsupportedHostError):
    """Blocks that return tensors beside their state, which only they can compute, so that they cannot be left out."""


class NonFiniteError(KoopmanInterpError, ArithmeticError):
    """NaN or infinity where a number is needed."""


class TooLargeError(KoopmanInterpError, MemoryError):
    """A computation that needs more memory than there is or was allowed: refused before it starts, where that shows."""


class HostMismatchError(KoopmanInterpError, ValueError):
    """A surrogate, edit or trajectory that belongs to another host."""


class FileFormatError(KoopmanInterpError, ValueError):
    """A file that is truncated, foreign, or of another kind than asked for."""


class StorageError(KoopmanInterpError, OSError):
    """A file that could not be written or read: the disk is full, or it is not ours to write or to read."""


class LockedError(KoopmanInterpError, BlockingIOError):
    """A file or folder that somebody else is writing to."""


class ProcessError(KoopmanInterpError, ConnectionError):
    """Another process of the same task has ended."""


class FitInterrupted(KeyboardInterrupt):
    """Ctrl-C during a fit or a distillation; the message says what was kept and how to go on.

    A KeyboardInterrupt and not an Exception, so that `except Exception` does not swallow a Ctrl-C.
    """


class ObservationInterrupted(KeyboardInterrupt):
    """Ctrl-C during an observation to a store; the message says what was kept and how to go on."""


def nearest(name: str, candidates: Iterable[str], *, most: int = 3) -> str:
    """Name the candidates closest to a misspelt name, for use at the end of a message.

    >>> nearest("blokcs.0", ["blocks.0", "blocks.1", "head"])
    'Nearest: blocks.0, blocks.1.'
    """
    known = list(candidates)
    close = difflib.get_close_matches(name, known, n=most, cutoff=0.4) or known[:most]
    return f"Nearest: {', '.join(close)}." if close else "There are none to choose from."
