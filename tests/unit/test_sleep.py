"""Saving before a kernel goes: what is asked, and what is said of what a kernel answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from tests.unit.manifests import write

from sagebroker.errors import KernelDiedError, WireError
from sagebroker.kernel.checkpoints import state_expression
from sagebroker.kernel.kernel import Kernel
from sagebroker.session.sleep import Saved, save

LIMIT_S = 30.0
"""A hang is told within this; nothing is measured by it."""

STATE: dict[str, Any] = {
    "number": 7,
    "error": "",
    "settled": True,
    "pending": False,
    "label": "",
    "unlabelled": "",
}
SAVED = STATE
WRITING = {**STATE, "settled": False, "pending": True}
FAILED = {**STATE, "settled": False, "error": "no space left"}

SILENCE = object()
"""No answer at all."""

LOOK = state_expression()
WRITE = state_expression(write=True)


class Answering:
    """A kernel of which only `ask` is there: it gives one answer after the other, the last for ever."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    async def ask(self, expressions: dict[str, str]) -> dict[str, Any]:
        (expression,) = expressions.values()
        self.asked.append(expression)
        await anyio.lowlevel.checkpoint()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is SILENCE:
            await anyio.sleep_forever()
        if isinstance(answer, Exception):
            raise answer
        return dict.fromkeys(expressions, answer)


def said(text: str) -> dict[str, Any]:
    """The answer to an expression that came to ``text``."""
    return {"status": "ok", "data": {"text/plain": repr(text)}, "metadata": {}}


def states(*values: dict[str, Any]) -> Answering:
    return Answering(*(said(json.dumps(value)) for value in values))


async def saved(kernel: Answering, folder: Path, limit_s: float = LIMIT_S, **wish: Any) -> Saved:
    with anyio.fail_after(2 * LIMIT_S):
        return await save(cast("Kernel", kernel), folder, limit_s, **wish)


async def test_what_is_saved_already_is_looked_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    write(tmp_path, 6)
    write(tmp_path, 7, missing=[])
    kernel = states(SAVED)
    done = await saved(kernel, tmp_path)
    assert done == Saved(number=7)
    assert (done.loss, done.hindrance) == ("", "")
    assert kernel.asked == [LOOK]


async def test_a_checkpoint_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path, 7, missing=[])
    kernel = states(WRITING, WRITING, WRITING, SAVED)
    assert (await saved(kernel, tmp_path)).loss == ""
    assert kernel.asked == [LOOK] * 4


async def test_variables_that_cannot_be_saved_are_a_hindrance_and_no_loss_of_changes(
    tmp_path: Path,
) -> None:
    reasons = [{"name": "g", "reason": "a running generator"}, {"name": "f", "reason": "open"}]
    write(tmp_path, 7, missing=reasons)
    done = await saved(states(SAVED), tmp_path)
    assert done.loss == ""
    assert done.hindrance == ("some variables cannot be saved: g (a running generator), f (open)")


async def test_a_session_without_variables_has_nothing_to_lose(tmp_path: Path) -> None:
    done = await saved(states({**SAVED, "number": 0}), tmp_path)
    assert (done.number, done.loss, done.hindrance) == (None, "", "")


async def test_a_checkpoint_that_fails_once_is_tried_once_more(tmp_path: Path) -> None:
    write(tmp_path, 8, missing=[])
    kernel = states(FAILED, WRITING, SAVED)
    assert await saved(kernel, tmp_path) == Saved(number=8)
    assert kernel.asked == [LOOK, WRITE, LOOK]


async def test_one_that_fails_twice_is_a_loss_with_its_reason(tmp_path: Path) -> None:
    write(tmp_path, 7)
    kernel = states(FAILED, WRITING, FAILED)
    done = await saved(kernel, tmp_path)
    assert done.loss == "the last changes could not be saved (no space left)"
    assert done.hindrance == done.loss, "what is missing in an older one does not matter then"
    assert done.number == 7
    assert kernel.asked == [LOOK, WRITE, LOOK]


async def test_an_error_of_what_is_being_tried_again_is_not_counted_yet(tmp_path: Path) -> None:
    again = {**FAILED, "pending": True}
    kernel = states(again, again, again, SAVED)
    assert (await saved(kernel, tmp_path)).loss == ""


async def test_a_state_that_is_settled_and_refuses_what_was_asked_is_told_at_once(
    tmp_path: Path,
) -> None:
    kernel = states({**SAVED, "error": "that is no label"})
    done = await saved(kernel, tmp_path, is_wanted=True, label="a b")
    assert "that is no label" in done.loss
    assert len(kernel.asked) == 1


async def test_a_checkpoint_that_is_wanted_is_asked_for_with_its_label(tmp_path: Path) -> None:
    kernel = states(WRITING, FAILED, WRITING, SAVED)
    await saved(kernel, tmp_path, is_wanted=True, label="good")
    labelled = state_expression(write=True, label="good")
    assert kernel.asked == [labelled, LOOK, labelled, LOOK]


@pytest.mark.parametrize("endless", [WRITING, {**WRITING, "pending": False}])
async def test_a_kernel_that_never_settles_is_given_up_at_the_limit(
    tmp_path: Path, endless: dict[str, Any]
) -> None:
    write(tmp_path, 7)
    done = await saved(states(endless), tmp_path, limit_s=0.2)
    assert done.loss == "the last changes could not be saved (it took longer than 0.2 s)"
    assert done.number == 7


async def test_a_kernel_that_does_not_answer_is_given_up_at_the_limit(tmp_path: Path) -> None:
    assert "longer than 0.1 s" in (await saved(Answering(SILENCE), tmp_path, limit_s=0.1)).loss


@pytest.mark.parametrize(
    "answer",
    [
        KernelDiedError("It has ended."),
        WireError("It takes nothing."),
        None,
        5,
        [],
        {},
        {"status": "error", "ename": "NameError"},
        {"status": "ok", "data": {"text/plain": 5}},
        {"status": "ok", "data": {"text/plain": "__import__('os').abort()"}},
        said(""),
        said("null"),
        said("[1]"),
        said("{}"),
        said('{"settled": true}'),
        said(json.dumps({**STATE, "settled": 1})),
        said(json.dumps({**STATE, "number": -1})),
        said(json.dumps({**STATE, "error": None})),
        said("[" * 100_000),
    ],
)
async def test_an_answer_that_no_honest_kernel_gives_is_taken_for_none(
    tmp_path: Path, answer: object
) -> None:
    done = await saved(Answering(answer), tmp_path)
    assert done.number is None
    assert done.loss == (
        "the last changes could not be saved (the kernel gives no word on its checkpoints)"
    )


async def test_a_kernel_that_ends_while_it_saves_is_told(tmp_path: Path) -> None:
    kernel = Answering(said(json.dumps(WRITING)), KernelDiedError("It has ended."))
    assert "no word" in (await saved(kernel, tmp_path)).loss


async def test_a_forged_reason_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    forged = {**FAILED, "settled": True, "error": "a\n\x1b[2J" + "x" * 100_000}
    done = await saved(states(forged), tmp_path)
    assert done.loss.isprintable()
    assert len(done.loss) < 500


async def test_what_is_said_to_be_saved_is_what_lies_there(tmp_path: Path) -> None:
    write(tmp_path, 3, missing=[])
    assert (await saved(states({**SAVED, "number": 99}), tmp_path)).number == 3
