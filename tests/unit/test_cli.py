"""The ``sagebroker`` command without an engine: exit codes, settings, output that nobody reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import typer

from sagebroker import __version__
from sagebroker.cli import console
from sagebroker.cli.doctor import has_begun
from sagebroker.config import SessionConfig
from sagebroker.errors import (
    BrokerError,
    ConfigError,
    RuntimeUnavailableError,
    SessionNameError,
    SessionNotFoundError,
)
from sagebroker.session.queue import CellQueue

HANG_GUARD_S = 60.0

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def sagebroker(short_dir: Path) -> Command:
    def call(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "SAGEBROKER_STATE_DIR": str(short_dir / "state"),
            "SAGEBROKER_RUNTIME_DIR": str(short_dir / "run"),
            "SAGEBROKER_ENGINE_URL": f"unix://{short_dir}/none.sock",
            "XDG_CONFIG_HOME": str(short_dir / "home"),
            "COLUMNS": "200",
            **changes,
        }
        return subprocess.run(
            [sys.executable, "-m", "sagebroker", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_GUARD_S,
            env=environment,
        )

    return call


def raised_by(*errors: BaseException) -> BaseException:
    """What leaves `exits` when a task group ends with ``errors``."""
    with pytest.raises((typer.Exit, BaseExceptionGroup)) as caught, console.exits():
        raise BaseExceptionGroup("errors", [BaseExceptionGroup("inner", list(errors))])
    return caught.value


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (SessionNameError("x"), 2),
        (SessionNotFoundError("x", []), 2),
        (RuntimeUnavailableError("x"), 3),
        (BrokerError("x"), 3),
        (KeyboardInterrupt(), 130),
        (console.OutputLostError(""), 1),
    ],
)
def test_errors_become_exit_codes_from_whatever_depth(error: BaseException, code: int) -> None:
    left = raised_by(error)
    assert isinstance(left, typer.Exit)
    assert left.exit_code == code
    with pytest.raises(typer.Exit) as caught, console.exits():
        raise error
    assert caught.value.exit_code == code


def test_a_persons_wish_to_end_goes_before_what_failed_meanwhile() -> None:
    left = raised_by(BrokerError("x"), KeyboardInterrupt())
    assert isinstance(left, typer.Exit)
    assert left.exit_code == 130


def test_a_fault_of_the_program_is_not_hidden_behind_an_expected_error() -> None:
    assert isinstance(raised_by(BrokerError("x"), ValueError("bug")), BaseExceptionGroup)


def test_text_in_brackets_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console.complain("no file [bold]x[/bold] [/]")
    assert "error: no file [bold]x[/bold] [/]" in capsys.readouterr().err


def test_a_pipe_that_nobody_reads_is_told_and_the_stream_goes_nowhere() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        with pytest.raises(console.OutputLostError) as caught:
            console.write("x" * 100_000, stream)
        assert str(caught.value) == ""
        console.write("more", stream)


def test_a_full_disk_is_told_with_its_reason() -> None:
    with Path("/dev/full").open("w") as stream:
        with pytest.raises(console.OutputLostError, match="No space left"):
            console.write("x", stream)
        console.write("more", stream)


def test_a_hangup_that_nohup_has_ignored_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert console.ending_signals() == [signal.SIGINT, signal.SIGTERM]
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in console.ending_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_after_its_cleaning_up(name: str) -> None:
    script = """
import anyio, signal, sys
from sagebroker.cli.console import run_async

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started by

async def work():
    try:
        print("begun", flush=True)
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.1)
        print("cleaned", flush=True)

try:
    run_async(work)
except Exception as error:
    sys.exit(error.exit_code)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.Signals[name])
        printed, complaints = process.communicate(timeout=HANG_GUARD_S)
    assert (printed, complaints, process.returncode) == ("cleaned\n", "", 130)


async def test_waiting_for_a_cell_to_begin_ends_when_it_ended_unrun() -> None:
    queue = CellQueue("doctor", SessionConfig())
    cell = queue.add("while True: pass", None)
    queue.drop(cell, "failed", "The cell was not run.")
    with anyio.fail_after(HANG_GUARD_S):
        assert not await has_begun(cell)


@pytest.mark.parametrize(
    ("arguments", "changes", "said"),
    [
        (("--log-level", "loud", "sessions", "list"), {}, "'log.level'"),
        (("sessions", "list"), {"SAGEBROKER_LOG__LEVEL": "loud"}, "'log.level'"),
        (("sessions", "list"), {"SAGEBROKER_KERNEL": "abc"}, '"kernel"'),
        (("sessions", "list"), {"SAGEBROKER_CONFIG": "/no/such.toml"}, "/no/such.toml"),
        (("--config", "/no/such.toml", "sessions", "list"), {}, "/no/such.toml"),
        (("run", "no[bold]such.sage"), {}, "no[bold]such.sage cannot be read"),
        (("run", "-c", "1", "--images", "/dev/null/x"), {}, "/dev/null/x cannot be made"),
    ],
)
def test_what_a_person_got_wrong_is_told_in_a_sentence_before_anything_is_done(
    sagebroker: Command, arguments: tuple[str, ...], changes: dict[str, str], said: str
) -> None:
    done = sagebroker(*arguments, **changes)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_printed_without_a_command_and_whatever_the_settings(
    sagebroker: Command,
) -> None:
    done = sagebroker("--version", SAGEBROKER_CONFIG="/no/such.toml")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sagebroker {__version__}\n", "")


def test_without_an_engine_commands_say_where_they_looked(sagebroker: Command) -> None:
    for arguments in (("run", "-c", "1"), ("sessions", "list"), ("image", "build")):
        done = sagebroker(*arguments)
        assert done.returncode == 3, done.stderr
        assert "none.sock" in done.stderr
        assert "Traceback" not in done.stderr


def test_two_doctors_at_once_do_not_meet(sagebroker: Command, short_dir: Path) -> None:
    # What a doctor that was killed left behind under the same name would stand in the way, too.
    (short_dir / "run" / "doctor" / "ctl").mkdir(parents=True, mode=0o700)
    (short_dir / "run").chmod(0o700)
    done = sagebroker("doctor")
    assert "ok   folders" in done.stdout
    assert [entry.name for entry in (short_dir / "run").iterdir()] == ["doctor"]


def test_the_command_line_starts_without_the_servers_libraries() -> None:
    code = (
        "import sys, sagebroker.cli.main; print(*({'mcp', 'fastapi', 'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_GUARD_S,
    )
    assert done.stdout.split() == []
