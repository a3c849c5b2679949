"""`verify`, a function of every Sage session: whether a claim is true, and how that is known.

A forked child decides: the session's variables, assumptions and random states stay as they are, the time
is kept whatever the child computes, and an interrupt ends it at once.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import pickle
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import reviving
from .deciding import decide
from .glimpse import child, pieces, write_all
from .searching import Search
from .symbolic import Question
from .verdict import ClaimError, Verdict, undecided
from .wording import one_line, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .alarm import Alarm

TIME_LIMIT_S = 20.0
SAMPLES = 1000

CHILD_MEMORY_BYTES = 2 * 2**30
"""What a child may take beyond what it shares with the kernel; half of a session's memory."""

LENGTH = struct.Struct(">I")
"""Before each pickled word of the child."""


def verify(
    claim: Any,
    domains: dict[Any, Any] | None = None,
    *,
    time_limit_s: float = TIME_LIMIT_S,
    samples: int = SAMPLES,
    seed: int = 0,
    **more_domains: Any,
) -> Verdict:
    """Say whether a claim is proved, refuted, supported or undecided, and by which method.

    ``proved`` and ``refuted`` rest on exact arithmetic or on enclosures, never on rounded numbers or on
    what Sage's ``bool`` says of a symbolic relation; ``refuted`` comes with a counterexample that was
    checked. ``supported`` means that nothing speaks against it at the points tried; ``undecided`` says
    what was tried. An identity is meant for all values for which both sides are defined.

    Nothing in the session changes.

    Args:
        claim: A string in Sage's language, which is evaluated in the session; a symbolic relation; a
            function of elements of the domains; or a list of these, all of which are to hold.
        domains: What the variables run through, by name: ``RR``, ``CC``, ``ZZ``, ``QQ``, ``NN``, an
            interval ``(low, high)`` with its ends, a ``RealSet``, or anything to iterate over, as
            ``[1..100]`` or ``GF(7)``. Symbolic variables without one are complex, in inequalities
            real, if the session assumes nothing else of them.
        time_limit_s: Seconds after which what is known by then is told.
        samples: How many points are tried where there is no end of them.
        seed: Of the random ones among these.
        **more_domains: Domains of single variables.

    Returns:
        An object that shows itself, with ``verdict``, ``method``, ``details`` and ``counterexample``.

    Raises:
        ValueError: The claim or a domain cannot be understood; says what to write.

    EXAMPLES::

        sage: verify("sin(x)^2 + cos(x)^2 == 1")
        proved: sin(x)^2 + cos(x)^2 == 1  (method: exact normal form)
        sage: verify("sqrt(x^2) == x", x=RR)
        refuted: sqrt(x^2) == x  (method: ball arithmetic at an exact point)
          counterexample: x = -1
        sage: verify(lambda n: is_prime(n^2 + n + 41), n=[0..39])
        proved: <lambda>  (method: all 40 cases, each by exact evaluation)
    """
    began = time.monotonic()
    limit_s = float(time_limit_s)  # Sage's numbers cannot be formatted
    asked = {str(name): value for name, value in {**(domains or {}), **more_domains}.items()}
    found = _heard(partial(_tell, claim, asked, (int(samples), int(seed), limit_s)), limit_s)
    found.claim = _shown(claim)
    found.seconds = round(time.monotonic() - began, 3)
    return found


def _heard(look: Callable[[int, Alarm], None], limit_s: float) -> Verdict:
    """What the child says last, within the time."""
    deadline = time.monotonic() + limit_s
    last = undecided("nothing was found out")
    said = bytearray()
    with child(look, CHILD_MEMORY_BYTES) as pipe:
        for data in pieces(pipe, limit_s, deadline):
            said += data
            while (word := _word(said)) is not None:
                found, is_last = word
                if isinstance(found, str):
                    raise ClaimError(found)
                last = found
                if is_last:
                    return last
    last.details.append(
        f"the time of {limit_s:.3g} s was over; give a larger time_limit_s"
        if time.monotonic() >= deadline
        else "what computed it ended early: it may have needed too much memory"
    )
    return last


def install() -> None:
    """Make `verify` known in all code of this kernel, below what the user calls so.

    Among the builtins it is no variable of the user's: it is neither listed nor saved, and Sage's
    `reset` leaves it alone.
    """
    builtins.verify = verify  # type: ignore[attr-defined]


def _shown(claim: Any) -> str:
    if isinstance(claim, str):
        return one_line(claim.strip(), 1000)
    if isinstance(claim, list | tuple):
        return "; ".join(map(_shown, claim))
    return getattr(claim, "__name__", "") or one_line(str(claim), 1000)


def _word(said: bytearray) -> tuple[Verdict | str, bool] | None:
    """Take the next whole word of the child off what it has said: it, and whether it is the last."""
    if len(said) < LENGTH.size:
        return None
    end = LENGTH.size + LENGTH.unpack_from(said)[0]
    if len(said) < end:
        return None
    word: tuple[Verdict | str, bool] = pickle.loads(said[LENGTH.size : end])
    del said[:end]
    return word


def _tell(
    claim: Any,
    domains: dict[str, Any],
    how: tuple[int, int, float],
    told: int,
    alarm: Alarm,
) -> None:
    """Decide, and write what is known now and then and in the end; in the child."""
    samples, seed, limit_s = how
    with contextlib.suppress(OSError):
        # Where the session's memory is used up, this process goes, not the kernel.
        Path("/proc/self/oom_score_adj").write_text("1000")
    if "sage.interfaces.quit" in sys.modules:
        # Their processes belong to the session.
        sys.modules["sage.interfaces.quit"].invalidate_all()

    if "sage.structure.proof.proof" in sys.modules:
        sys.modules["sage.structure.proof.all"].all(True)  # noqa: FBT003 - Sage's way

    def write(word: Any, *, is_last: bool) -> None:
        try:
            data = pickle.dumps((word, is_last))
        except Exception:  # noqa: BLE001 - a value of the user's classes: its text must do
            values = word.counterexample or {}
            word.counterexample = {name: one_line(str(value)) for name, value in values.items()}
            data = pickle.dumps((word, is_last))
        write_all(told, LENGTH.pack(len(data)) + data)

    def tell(found: Verdict) -> None:
        write(found, is_last=False)

    sys.stdout = sys.stderr = io.StringIO()
    question = partial(
        Question,
        claim,
        domains,
        dict(reviving.live_namespace()),
        reviving.baseline(),
        Search(samples, seed, tell),
        limit_s,
        alarm,
    )
    try:
        write(decide(question()), is_last=True)
    except ClaimError as error:
        write(str(error), is_last=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the claim may run anything
        write(f"the claim cannot be evaluated: {reason_of(error)}", is_last=True)
