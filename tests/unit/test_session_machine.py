"""A broker over an engine that loses, repeats and delays everything: what holds whatever happens in which order."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.conftest import PREFIX, remove_folder
from tests.unit.session_world import HANG_S, World, world

from sagebroker.errors import RuntimeUnavailableError
from sagebroker.session.ending import Ending
from sagebroker.session.session import Session
from sagebroker.testing.fake_runtime import Operation

EXAMPLES = 25
STEPS = 30

names = st.sampled_from(["a", "b", "c"])
operations = st.sampled_from(
    ["ping", "image_digest", "create", "start", "signal", "inspect", "list", "stats", "remove"]
)

T = TypeVar("T")


class SessionMachine(RuleBasedStateMachine):
    """Rules are what callers do and what goes wrong; the loop runs in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("sagebroker.session.orphans.GRACE_S", -1.0)
        patch.setattr("sagebroker.session.runner.STOP_RETRY_S", 0.1)
        patch.setattr("sagebroker.kernel.start.REVIVE_LIMIT_S", 2.0)
        patch.setattr("sagebroker.session.life.ADOPT_LIMIT_S", 5.0)
        patch.setattr("sagebroker.session.losses.FATE_LIMIT_S", 0.3)
        patch.setattr("sagebroker.kernel.death.LOOK_INTERVAL_S", 0.05)
        patch.setattr("sagebroker.kernel.death.ENGINE_LOOK_INTERVAL_S", 0.2)
        patch.setattr("sagebroker.kernel.start.ENGINE_LOOK_INTERVAL_S", 0.05)
        patch.setattr("sagebroker.kernel.held.VERDICT_LIMIT_S", 0.5)
        patch.setattr("sagebroker.kernel.ladder.REPLACE_LIMIT_S", 0.5)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        self._stack.callback(remove_folder, folder)
        self._portal: BlockingPortal = self._stack.enter_context(start_blocking_portal("asyncio"))
        self.world: World = self._stack.enter_context(
            self._portal.wrap_async_context_manager(world(folder))
        )
        self._patch_kill(patch)

    def _patch_kill(self, patch: pytest.MonkeyPatch) -> None:
        """Have a broker that is killed do nothing for its sessions but lose their locks."""
        leave, run, made = Session.leave, Ending.run, self.world

        async def leave_unless_killed(session: Session) -> None:
            await (session._life.stop("stay") if made.is_killed else leave(session))

        async def run_unless_killed(ending: Ending) -> None:
            if made.is_killed:
                await anyio.to_thread.run_sync(ending._folder.unlock)
            else:
                await run(ending)

        patch.setattr(Session, "leave", leave_unless_killed)
        patch.setattr(Ending, "run", run_unless_killed)

    def do(self, work: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
        """Run something in the loop; nothing hangs."""

        async def bounded() -> T:
            with anyio.fail_after(HANG_S):
                return await work(*args, **options)

        return self._portal.call(bounded)

    def teardown(self) -> None:
        """The end is well, too."""
        try:
            self.do(self.world.heal)
        finally:
            self._stack.close()

    @initialize()
    def begin(self) -> None:
        for name in ("a", "b"):
            self.do(self.world.open, name)

    @rule(name=names)
    def open(self, name: str) -> None:
        self.do(self.world.open, name)

    @rule(name=names)
    def set(self, name: str) -> None:
        self.do(self.world.set, name)

    @rule(name=names)
    def get(self, name: str) -> None:
        self.do(self.world.get, name)

    @rule(name=names)
    def block(self, name: str) -> None:
        self.do(self.world.block, name)

    @rule(name=names)
    def interrupt(self, name: str) -> None:
        self.do(self.world.interrupt, name)

    @rule(name=names)
    def let_go(self, name: str) -> None:
        self.do(self.world.let_go, name)

    @rule(name=names, restore=st.booleans())
    def restart(self, name: str, restore: bool) -> None:
        self.do(self.world.restart, name, restore=restore)

    @rule(name=names)
    def hibernate(self, name: str) -> None:
        self.do(self.world.hibernate, name)

    @rule(name=names)
    def close(self, name: str) -> None:
        self.do(self.world.close, name)

    @rule()
    def sweep(self) -> None:
        self.do(self.world.sweep)

    @rule(killed=st.booleans())
    def next_broker(self, killed: bool) -> None:
        self.do(self.world.next_broker, killed=killed)

    @rule(name=names)
    def kill_kernel(self, name: str) -> None:
        self.do(self.world.kill_kernel, name)

    @rule(name=names, how=st.sampled_from(["vanish", "die", "hide"]))
    def kill_container(self, name: str, how: str) -> None:
        self.do(self.world.kill_container, name, how)

    @rule(how=st.sampled_from(["lose", "repeat", "break"]))
    def disturb_events(self, how: str) -> None:
        self.do(self.world.disturb_events, how)

    @rule(operation=operations, times=st.integers(1, 2), lost_reply=st.booleans())
    def fail(self, operation: Operation, times: int, lost_reply: bool) -> None:
        error = RuntimeUnavailableError("The engine lost its way.")
        self.world.engine.fail(operation, times=times, error=error, lost_reply=lost_reply)

    @rule(operation=operations)
    def delay(self, operation: Operation) -> None:
        self.world.engine.delay(operation, 0.05)

    @rule(is_down=st.booleans())
    def go_down(self, is_down: bool) -> None:
        self.world.engine.is_down = is_down

    @rule()
    def heal(self) -> None:
        self.do(self.world.heal)

    @invariant()
    def nothing_is_reserved_for_nobody(self) -> None:
        broker = self.world.broker
        assert broker._reserved == 0
        assert len(broker.sessions()) <= self.world.config.session.max_sessions


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None
)
