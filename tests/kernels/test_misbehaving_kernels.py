from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.lowlevel import checkpoint

from sagebroker.errors import KernelStartError, WireError
from sagebroker.kernel.connection import ConnectionInfo
from sagebroker.kernel.intake import WireLimits
from sagebroker.protocol.execution import GRACE_S, Execution
from sagebroker.protocol.messages import DELIMITER, MAX_FRAMES
from sagebroker.testing.scripted_kernel import Request, ScriptedKernel, running_kernel
from sagebroker.testing.wire_client import WireClient, open_wire

if TYPE_CHECKING:
    from anyio.abc import TaskStatus

MIB = 2**20


async def test_an_honest_cell_ends_with_its_reply_and_idle(short_dir: Path) -> None:
    async def hello(kernel: ScriptedKernel, request: Request) -> None:
        await kernel.stream(request, "hello")
        await kernel.answer(request)

    async with (
        running_kernel(short_dir, {"hello": hello}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("hello")
        assert (ended.status, ended.outputs.stdout.text()) == ("ok", "hello")
        assert not ended.reply_lost
        assert not ended.idle_lost
        assert ended.execution_count == 1


async def test_requests_carry_our_identity_and_session(short_dir: Path) -> None:
    async with (
        running_kernel(short_dir) as kernel,
        open_wire(kernel.connection, wire_id="broker-abc-3") as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("1")
        (request,) = kernel.requests
        assert request.identity == b"broker-abc-3"
        assert request.header["session"] == "broker-abc-3"
        assert request.header["msg_id"] == ended.msg_id


async def test_idle_before_the_reply_waits_for_the_reply(short_dir: Path) -> None:
    async def early(kernel: ScriptedKernel, request: Request) -> None:
        await kernel.status(request, "busy")
        await kernel.status(request, "idle")
        await kernel.reply(request, "execute_reply", {"status": "ok", "execution_count": 7})

    async with (
        running_kernel(short_dir, {"early": early}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("early")
        assert (ended.execution_count, ended.reply_lost) == (7, False)


async def test_a_reply_that_never_comes_is_told_as_lost(short_dir: Path) -> None:
    async def mute(kernel: ScriptedKernel, request: Request) -> None:
        await kernel.status(request, "busy")
        await kernel.stream(request, "done")
        await kernel.status(request, "idle")

    async with (
        running_kernel(short_dir, {"mute": mute}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("mute")
        assert ended.reply_lost
        assert ended.status is None
        assert ended.outputs.stdout.text() == "done"


async def test_an_idle_that_never_comes_is_told_as_lost_output(short_dir: Path) -> None:
    async def lossy(kernel: ScriptedKernel, request: Request) -> None:
        await kernel.reply(request, "execute_reply", {"status": "ok"})

    async with (
        running_kernel(short_dir, {"lossy": lossy}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        ended = await wire.execute("lossy")
        assert (ended.status, ended.idle_lost) == ("ok", True)


async def test_of_two_replies_the_first_counts(short_dir: Path) -> None:
    async def twice(kernel: ScriptedKernel, request: Request) -> None:
        await kernel.reply(request, "execute_reply", {"status": "ok", "execution_count": 1})
        await kernel.reply(request, "execute_reply", {"status": "error", "execution_count": 2})
        await kernel.status(request, "idle")

    async with (
        running_kernel(short_dir, {"twice": twice}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("twice")
        await wire.until(lambda: ended.duplicate_replies + len(wire.foreign) > 0)
        assert (ended.status, ended.execution_count) == ("ok", 1)


async def test_a_deaf_kernel_ends_nothing_and_the_next_one_answers(short_dir: Path) -> None:
    async def deaf(kernel: ScriptedKernel, request: Request) -> None:
        pass

    async with (
        running_kernel(short_dir, {"deaf": deaf}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        with pytest.raises(TimeoutError):
            await wire.execute("deaf", limit_s=2 * GRACE_S)
        assert (await wire.execute("1")).status == "ok"


async def test_forged_parents_end_no_other_cell(short_dir: Path) -> None:
    async def forge(kernel: ScriptedKernel, request: Request) -> None:
        other = {**request.header, "msg_id": "someone-else"}
        await kernel.reply(request, "execute_reply", {"status": "error"}, parent=other)
        frames = kernel.frames("status", {"execution_state": "idle"}, other)
        await kernel.publish_raw(frames)
        await kernel.stream(request, "mine")
        await kernel.answer(request)

    async with (
        running_kernel(short_dir, {"forge": forge}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("forge")
        assert (ended.status, ended.outputs.stdout.text()) == ("ok", "mine")
        await wire.until(lambda: len(wire.foreign) == 2)


async def test_a_repeated_message_is_no_error(short_dir: Path) -> None:
    async def repeat(kernel: ScriptedKernel, request: Request) -> None:
        frames = kernel.frames("stream", {"name": "stdout", "text": "x"}, request.header)
        for _ in range(3):
            await kernel.publish_raw(frames)
        await kernel.answer(request)

    async with (
        running_kernel(short_dir, {"repeat": repeat}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("repeat")
        assert ended.outputs.stdout.text() == "xxx"
        assert wire.channels.counts["iopub"].invalid.total() == 0


def _bodies(kernel: ScriptedKernel, request: Request) -> dict[str, list[bytes]]:
    """Malformed messages; each is signed with the right key unless that is what is wrong."""
    header = json.dumps({"msg_id": "a", "msg_type": "stream"}).encode()
    parent = json.dumps(request.header).encode()
    text = json.dumps({"name": "stdout", "text": "bad"}).encode()
    good = kernel.signed([header, parent, b"{}", text])
    return {
        "no delimiter": [b"a", b"b", b"c"],
        "one empty frame": [b""],
        "nothing after the delimiter": [DELIMITER],
        "signature only": good[:2],
        "too few frames": good[:4],
        "no signature": [DELIMITER, b"", *good[2:]],
        "huge signature": [DELIMITER, b"0" * MIB, *good[2:]],
        "wrong key": kernel.signed(good[2:], key=b"another key"),
        "header is a list": kernel.signed([b"[]", parent, b"{}", text]),
        "header without id": kernel.signed([b'{"msg_type": "stream"}', parent, b"{}", text]),
        "type is a list": kernel.signed([b'{"msg_id": "a", "msg_type": []}', parent, b"{}", text]),
        "id is a number": kernel.signed([b'{"msg_id": 1, "msg_type": "x"}', parent, b"{}", text]),
        "header is no JSON": kernel.signed([b"{nonsense", parent, b"{}", text]),
        "content is null": kernel.signed([header, parent, b"{}", b"null"]),
        "content is a list": kernel.signed([header, parent, b"{}", b"[1]"]),
        "content is no JSON": kernel.signed([header, parent, b"{}", b"\xff\xfe"]),
        "content nested 100,000 deep": kernel.signed([header, parent, b"{}", b"[" * 100_000]),
        "header over its limit": kernel.signed(
            [header[:-1] + b" " * 100_000 + b"}", parent, b"{}", text]
        ),
        "65 buffers": [*good, *([b"x"] * (MAX_FRAMES + 1))],
        "65 routing frames": [*([b"x"] * (MAX_FRAMES + 1)), *good],
        "1,000 parts": [*good, *([b"x"] * 1000)],
    }


async def test_every_malformed_message_is_counted_and_harms_no_cell(short_dir: Path) -> None:
    sent: list[str] = []

    async def malformed(kernel: ScriptedKernel, request: Request) -> None:
        for name, frames in _bodies(kernel, request).items():
            sent.append(name)
            await kernel.publish_raw(frames)
            await kernel.reply_raw(request, frames)
        await kernel.stream(request, "good")
        await kernel.answer(request)

    async with (
        running_kernel(short_dir, {"malformed": malformed}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("malformed")
        assert (ended.status, ended.outputs.stdout.text()) == ("ok", "good")
        for channel in ("iopub", "shell"):
            counts = wire.channels.counts[channel]
            assert counts.invalid.total() + counts.dropped.total() == len(sent)
        assert not [event for event in wire.events if event.kind == "hostile"]


async def test_too_many_invalid_messages_are_reported_as_hostile_once(short_dir: Path) -> None:
    async def junk(kernel: ScriptedKernel, request: Request) -> None:
        for _ in range(200):
            await kernel.publish_raw([b"junk"])
        await kernel.answer(request)

    async with (
        running_kernel(short_dir, {"junk": junk}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        await wire.execute("junk")
        await wire.until(lambda: wire.channels.counts["iopub"].messages >= 200)
        hostile = [event for event in wire.events if event.kind == "hostile"]
        assert [(event.channel, event.detail) for event in hostile] == [
            ("iopub", "A message has no delimiter.")
        ]


async def test_a_frame_over_the_limit_is_seen_as_a_disconnect(short_dir: Path) -> None:
    async def oversized(kernel: ScriptedKernel, request: Request) -> None:
        await kernel.stream(request, "x" * 2 * MIB)
        await kernel.answer(request)

    limits = WireLimits(max_frame_bytes=MIB)
    async with (
        running_kernel(short_dir, {"oversized": oversized}) as kernel,
        open_wire(kernel.connection, limits=limits) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("oversized")
        assert (ended.status, ended.idle_lost) == ("ok", True)
        await wire.until(
            lambda: ("iopub", "disconnected") in [(e.channel, e.kind) for e in wire.events]
        )


async def test_a_message_over_the_limit_is_dropped_and_iopub_stays_alive(short_dir: Path) -> None:
    async def large(kernel: ScriptedKernel, request: Request) -> None:
        await kernel.publish_raw([b"x" * (MIB // 2)] * 10)
        await kernel.stream(request, "after")
        await kernel.answer(request)

    limits = WireLimits(max_message_bytes=MIB)
    async with (
        running_kernel(short_dir, {"large": large}) as kernel,
        open_wire(kernel.connection, limits=limits) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("large")
        assert ended.outputs.stdout.text() == "after"
        assert wire.channels.counts["iopub"].dropped["size"] == 1


async def test_a_message_of_100000_parts_does_not_stop_other_tasks(short_dir: Path) -> None:
    async with running_kernel(short_dir) as kernel, open_wire(kernel.connection) as wire:
        await kernel.wait_subscribed()
        counts = wire.channels.counts["iopub"]
        turns_in_the_middle = 0

        async def count_turns() -> None:
            nonlocal turns_in_the_middle
            while True:
                await checkpoint()
                turns_in_the_middle += 0 < counts.bytes < 100_000

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count_turns)
            await kernel.publish_raw([b"x"] * 100_000)
            await wire.until(lambda: counts.dropped["frames"] == 1)
            tasks.cancel_scope.cancel()
        assert turns_in_the_middle > 3
        assert (await wire.execute("1")).status == "ok"


async def test_a_flood_of_messages_is_dropped_beyond_the_budget_and_told(short_dir: Path) -> None:
    limits = WireLimits(burst_messages=1000, messages_per_s=10.0)

    async def flood(kernel: ScriptedKernel, request: Request) -> None:
        frames = kernel.frames("stream", {"name": "stdout", "text": "x"}, request.header)
        for _ in range(5000):
            await kernel.publish_raw(frames)
        await kernel.answer(request)

    async with (
        running_kernel(short_dir, {"flood": flood}) as kernel,
        open_wire(kernel.connection, limits=limits) as wire,
    ):
        await kernel.wait_subscribed()
        ended = await wire.execute("flood")
        assert ended.status == "ok"
        assert ended.idle_lost
        await wire.until(lambda: wire.channels.counts["iopub"].messages >= 5000)
        assert wire.channels.counts["iopub"].dropped["budget"] > 3000
        assert 900 < ended.outputs.stdout.total < 1200
        assert ("iopub", "flooding") in [(event.channel, event.kind) for event in wire.events]


async def test_a_stall_of_the_broker_loses_nothing_of_an_honest_burst(short_dir: Path) -> None:
    async def burst(kernel: ScriptedKernel, request: Request) -> None:
        for _ in range(5000):
            await kernel.stream(request, "x")
        await kernel.answer(request)

    async with (
        running_kernel(short_dir, {"burst": burst}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        await kernel.wait_subscribed()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_stall_now)
            ended = await wire.execute("burst")
        assert ended.outputs.stdout.total == 5000
        assert not ended.idle_lost


async def _stall_now() -> None:
    time.sleep(0.3)  # noqa: ASYNC251 - blocking the loop is the point


PUSHER = """
import sys, zmq
with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
    socket.setsockopt(zmq.XPUB_NODROP, 1)
    socket.bind("ipc://" + sys.argv[1])
    print("bound", flush=True)
    socket.recv()
    for _ in range(1000):
        socket.send(b"x" * 2**20)
    sys.stdin.read()
"""


async def test_memory_stays_bounded_while_a_kernel_pushes_a_gigabyte(short_dir: Path) -> None:
    async with running_kernel(short_dir) as kernel:
        pusher = kernel.connection.with_prefix(str(short_dir / "p"))
        for name in ("shell", "control", "stdin"):
            os.link(kernel.connection.socket_path(name), pusher.socket_path(name))
        command = [sys.executable, "-c", PUSHER, pusher.socket_path("iopub")]
        async with await anyio.open_process(command) as process:
            assert process.stdout is not None
            assert (await process.stdout.receive()).startswith(b"bound")
            before = highest = _resident_bytes()
            async with open_wire(pusher, limits=WireLimits(max_invalid=10)) as wire:
                counts = wire.channels.counts["iopub"]
                with anyio.fail_after(30):
                    while counts.messages < 1000:
                        highest = max(highest, _resident_bytes())
                        await anyio.sleep(0.005)
            assert highest - before < 50 * MIB
            process.kill()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_a_symlink_in_a_sockets_place_is_refused(short_dir: Path) -> None:
    async with running_kernel(short_dir) as kernel:
        decoy = kernel.connection.with_prefix(str(short_dir / "d"))
        for name in ("shell", "control", "stdin", "iopub"):
            os.symlink(kernel.connection.socket_path(name), decoy.socket_path(name))  # noqa: PTH211
        with pytest.raises(WireError, match="not a socket"):
            async with open_wire(decoy):
                pass


async def test_a_missing_socket_is_told_as_not_started(short_dir: Path) -> None:
    with pytest.raises(KernelStartError, match="no socket"):
        async with open_wire(ConnectionInfo.new(str(short_dir / "k"))):
            pass


async def test_a_request_never_reaches_a_later_kernel_at_the_same_paths(short_dir: Path) -> None:
    connection = ConnectionInfo.new(str(short_dir / "k"))
    first_may_end = anyio.Event()

    async def run_first(*, task_status: TaskStatus[None]) -> None:
        async with running_kernel(short_dir, connection=connection):
            task_status.started()
            await first_may_end.wait()

    async with anyio.create_task_group() as tasks:
        await tasks.start(run_first)
        limits = WireLimits(send_limit_s=1.0)
        async with open_wire(connection, limits=limits) as wire:
            await wire.until(lambda: _count(wire, "connected") == 4)
            first_may_end.set()
            await wire.until(lambda: _count(wire, "disconnected") == 4)
            async with running_kernel(short_dir, connection=connection) as second:
                with pytest.raises(WireError, match="took no execute_request"):
                    await wire.channels.send("shell", "execute_request", {"code": "1"})
                assert second.requests == []


def _count(wire: WireClient, kind: str) -> int:
    return sum(event.kind == kind for event in wire.events)


async def test_an_error_of_the_user_of_the_channels_arrives_as_itself(short_dir: Path) -> None:
    async with running_kernel(short_dir) as kernel:
        with pytest.raises(KeyError, match="mine"):
            async with open_wire(kernel.connection):
                raise KeyError("mine")


async def test_a_cell_that_cannot_be_encoded_is_refused_before_it_is_sent(short_dir: Path) -> None:
    async with running_kernel(short_dir) as kernel, open_wire(kernel.connection) as wire:
        await kernel.wait_subscribed()
        with pytest.raises(WireError, match="cannot be encoded"):
            await wire.channels.send("shell", "execute_request", {"code": object()})
        assert (await wire.execute("1")).status == "ok"
        assert len(kernel.requests) == 1


async def test_a_waiter_is_gone_when_its_caller_is_cancelled(short_dir: Path) -> None:
    async def deaf(kernel: ScriptedKernel, request: Request) -> None:
        pass

    async with (
        running_kernel(short_dir, {"deaf": deaf}) as kernel,
        open_wire(kernel.connection) as wire,
    ):
        execution = Execution(wire.channels.new_msg_id())
        with anyio.move_on_after(0.1):
            await wire.execute("deaf", execution=execution)
        with wire.router.expect(execution.msg_id, wire.foreign.append):
            pass
