"""The keeper with a plain ipykernel, against ordinary and hostile children."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator

import pytest
from tests.docker.keeper_harness import ANSWER_S, MIB, Kept, kept, until

pytestmark = pytest.mark.docker

EXIT_LEASE = 75
EXIT_HARD_LIFE = 76
EXIT_CONFIGURATION = 78


@pytest.fixture(scope="module")
def shared(sage_image: str) -> Iterator[Kept]:
    """One container for all tests that leave its kernel, or a new one, in order."""
    with kept(sage_image, crash_limit=100) as session:
        session.await_status(state="running")
        yield session


@pytest.fixture
def session(shared: Kept) -> Kept:
    """The shared container with a fresh kernel."""
    shared.replace()
    return shared


def test_a_cell_is_answered(session: Kept) -> None:
    assert session.run("1 + 1").text == "2"


def test_sigint_stops_a_loop_and_keeps_the_variables(session: Kept) -> None:
    before = session.status()["interrupts"]
    session.run("x = 41")
    running = session.send("print('go', flush=True)\nwhile True: pass")
    session.await_output("go")
    session.signal("INT")
    assert session.collect(running).ename == "KeyboardInterrupt"
    assert session.run("x + 1").text == "42"
    assert session.await_status(interrupts=before + 1)["state"] == "running"


def test_sigint_between_cells_does_nothing(session: Kept) -> None:
    before = session.status()["interrupts"]
    session.run("x = 41")
    session.signal("INT")
    session.await_status(interrupts=before + 1)
    assert session.run("x + 1").text == "42"


def test_an_order_replaces_a_kernel_that_ignores_everything(session: Kept) -> None:
    generation = session.status()["generation"]
    session.run("x = 1")
    session.send(
        "import os, signal, subprocess\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "print('go', flush=True)\n"
        "while True: pass"
    )
    session.await_output("go")
    assert any("sleep" in line for line in session.processes())
    status = session.replace()
    assert status["generation"] == generation + 1
    assert status["last_exit"]["requested"] is True
    assert status["last_exit"]["generation"] == generation
    assert session.run("'x' in dir()").text == "False"
    assert not any("sleep" in line for line in session.processes())


@pytest.mark.parametrize(
    ("code", "number", "exit_code"),
    [
        ("import os; os._exit(3)", None, 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL, None),
        (
            "import os, signal; signal.signal(signal.SIGSEGV, signal.SIG_DFL);"
            "os.kill(os.getpid(), signal.SIGSEGV)",
            signal.SIGSEGV,
            None,
        ),
        ("import ctypes; ctypes.string_at(0)", signal.SIGSEGV, None),
        ("import os; os.abort()", signal.SIGABRT, None),
    ],
)
def test_a_death_is_told_and_followed_by_a_new_kernel(
    session: Kept, code: str, number: int | None, exit_code: int | None
) -> None:
    generation = session.status()["generation"]
    session.send("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True)")
    session.send(code)
    status = session.await_status(generation=generation + 1, state="running")
    told = status["last_exit"]
    assert (told["generation"], told["signal"], told["code"]) == (generation, number, exit_code)
    assert told["requested"] is False
    assert told["oom"] is False
    session.disconnect()
    assert session.run("2 + 2").text == "4"
    assert not any("sleep" in line for line in session.processes())


def test_shutdown_by_a_client_gives_a_new_kernel(session: Kept) -> None:
    generation = session.status()["generation"]
    session.client().shutdown()
    status = session.await_status(generation=generation + 1, state="running")
    assert status["last_exit"]["code"] == 0


@pytest.mark.parametrize("code", ["exit", "quit", "exit()", "quit()", "exit(True)"])
def test_exit_and_quit_do_not_end_the_kernel(session: Kept, code: str) -> None:
    generation = session.status()["generation"]
    answer = session.run(code)
    assert answer.status == "ok"
    assert "do not end the kernel" in answer.out
    assert session.run("6 * 7").text == "42"
    assert session.status()["generation"] == generation


def test_running_out_of_memory_takes_the_kernel_only(sage_image: str) -> None:
    with kept(sage_image, memory=256 * MIB) as session:
        session.send("blocks = []\nwhile True: blocks.append(bytearray(2**20))")
        status = session.await_status(generation=2, state="running")
        assert status["last_exit"]["oom"] is True
        assert status["last_exit"]["signal"] == signal.SIGKILL
        assert status["oom_kills"] >= 1
        session.disconnect()
        assert session.run("1 + 1").text == "2"
        session.send("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert session.await_status(generation=3)["last_exit"]["oom"] is False


def _has_died(session: Kept, generation: int) -> bool:
    return bool((session.status()["last_exit"] or {}).get("generation") == generation)


def test_a_crash_loop_waits_for_an_order(sage_image: str) -> None:
    with kept(sage_image, crash_limit=3) as session:
        for generation in (1, 2, 3):
            session.await_status(generation=generation, state="running")
            session.send("import os; os._exit(9)")
            until(functools.partial(_has_died, session, generation))
            session.disconnect()
        status = session.await_status(state="crash_loop")
        assert status["generation"] == 3
        assert "SIGUSR1" in status["note"]
        assert session.replace()["generation"] == 4
        assert session.run("1 + 1").text == "2"


@pytest.mark.parametrize(
    "name", ["KILL", "STOP", "TSTP", "SEGV", "ABRT", "HUP", "QUIT", "ALRM", "CHLD", "USR2", "XCPU"]
)
def test_signals_of_the_users_code_do_not_reach_pid_1(session: Kept, name: str) -> None:
    answer = session.run(
        f"import os, signal\nfor _ in range(50): os.kill(1, signal.SIG{name})\n'sent'"
    )
    assert answer.text == "'sent'"
    assert session.run("1 + 1").text == "2"
    assert session.replace()["state"] == "running"


def test_the_users_code_may_order_its_own_replacement(session: Kept) -> None:
    before = session.status()["replacements"]
    session.send("import os, signal; os.kill(1, signal.SIGUSR1)")
    session.await_status(replacements=before + 1, state="running")
    session.disconnect()
    assert session.run("1 + 1").text == "2"


def test_the_users_code_may_end_its_own_container(sage_image: str) -> None:
    with kept(sage_image) as session:
        session.send("import os, signal; os.kill(1, signal.SIGTERM)")
        assert until(session.gone)["ExitCode"] == 0


@pytest.mark.parametrize("path", ["mem", "environ", "maps", "cwd", "root", "fd", "exe"])
def test_the_keepers_process_is_closed_to_the_users_code(session: Kept, path: str) -> None:
    answer = session.run(
        "import os\n"
        f"path = '/proc/1/{path}'\n"
        "open(path).read() if not os.path.islink(path) and not os.path.isdir(path)"
        " else (os.listdir(path) if os.path.isdir(path) or True else 0)"
    )
    assert answer.ename == "PermissionError"


def test_the_keeper_cannot_be_traced(session: Kept) -> None:
    answer = session.run(
        "import ctypes, errno\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "PTRACE_SEIZE = 0x4206\n"
        "libc.ptrace(PTRACE_SEIZE, 1, 0, 0), errno.errorcode[ctypes.get_errno()]"
    )
    assert answer.text == "(-1, 'EPERM')"


def test_a_fork_bomb_ends_by_order(session: Kept) -> None:
    session.send(
        "import os\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    try: os.fork()\n"
        "    except OSError: pass"
    )
    session.await_output("go")
    session.replace()
    assert session.run("1 + 1").text == "2"
    assert len(session.processes()) == 2


def test_a_stopped_kernel_is_replaced(session: Kept) -> None:
    session.send("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    session.replace()
    assert session.run("1 + 1").text == "2"


def test_wrecked_sockets_and_report_are_made_anew(session: Kept) -> None:
    generation = session.status()["generation"]
    session.run(
        "import os\n"
        "folder = '/run/kernel/s/'\n"
        "for name in os.listdir(folder): os.unlink(folder + name)\n"
        "os.makedirs(folder + 'status.json/a/b')\n"
        "os.mkdir(folder + 'k-1', 0o000)\n"
        "os.symlink('/run/kernel/connection.json', folder + 'k-2')\n"
        "os.mkfifo(folder + 'k-3')\n"
        "os.chmod(folder, 0o500)"
    )
    session.disconnect()
    session.signal("USR1")
    session.await_status(state="running", generation=generation + 1)
    assert session.run("1 + 1").text == "2"
    left = sorted(path.name for path in session.sockets.iterdir())
    assert left == ["k-1", "k-2", "k-3", "k-4", "k-5", "status.json"]


@pytest.mark.root
@pytest.mark.parametrize("fill", ["open(f, 'wb').write(bytes(2**20))", "open(f, 'w').close()"])
def test_a_full_socket_folder_does_not_silence_the_keeper(session: Kept, fill: str) -> None:
    before = session.status()["interrupts"]
    answer = session.run(
        "import errno\n"
        "try:\n"
        "    for at in range(1000):\n"
        "        f = f'/run/kernel/s/{at}'\n"
        f"        {fill}\n"
        "except OSError as error: print(errno.errorcode[error.errno])"
    )
    assert answer.out == "ENOSPC\n"
    session.signal("INT")
    session.await_status(interrupts=before + 1)
    session.replace()
    assert session.run("1 + 1").text == "2"


def test_an_untouched_lease_ends_the_container(sage_image: str) -> None:
    with kept(sage_image, lease_limit_s=2.0) as session:
        session.run("1")
        for _ in range(8):
            os.utime(session.lease)
            session.run("import time; time.sleep(0.5)")
        assert session.status()["state"] == "running"
        assert until(session.gone)["ExitCode"] == EXIT_LEASE
        assert session.status()["state"] == "ended"


def test_the_hard_life_ends_the_container(sage_image: str) -> None:
    with kept(sage_image, hard_life_s=3.0) as session:
        session.send("while True: pass")
        assert until(session.gone)["ExitCode"] == EXIT_HARD_LIFE
        assert "hard life" in session.status()["note"]


def test_sigterm_ends_all(sage_image: str) -> None:
    with kept(sage_image) as session:
        session.send("while True: pass")
        session.signal("TERM")
        assert until(session.gone)["ExitCode"] == 0
        assert session.status()["state"] == "ended"


def test_a_bad_configuration_is_told(sage_image: str) -> None:
    with kept(sage_image, crash_limit="many") as session:
        assert until(session.gone)["ExitCode"] == EXIT_CONFIGURATION
        assert "crash_limit" in session.log()


def test_a_missing_module_is_told(sage_image: str) -> None:
    with kept(sage_image, preload=["no_such_module"]) as session:
        until(session.gone)
        assert session.status()["state"] == "ended"
        assert "no_such_module" in session.status()["note"]


def test_a_gigabyte_in_a_loop_is_cut_at_both_ends_of_the_wire(session: Kept) -> None:
    session.run("import resource; line = 'x' * 999")
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    before = int(session.run(peak).text)
    answer = session.run("for at in range(1_000_000): print(f'{at:07d}{line}')", limit_s=120)
    after = int(session.run(peak).text)
    assert answer.status == "ok"
    assert answer.iopub_bytes < 30_000_000
    assert answer.longest_stream <= 65536
    assert answer.out.startswith("0000000xxx")
    assert answer.out.endswith("x\n")
    assert answer.out.splitlines()[-1].startswith("0999999")
    assert "bytes of output left out here" in answer.out
    assert (after - before) * 1024 < 100 * MIB


def test_one_long_string_is_cut(session: Kept) -> None:
    answer = session.run("print('a' * 25_000_000 + 'b' * 25_000_000)")
    assert answer.out.startswith("aaa")
    assert answer.out.endswith("bbb\n")
    assert len(answer.out) < 20_000_100


def test_output_of_c_code_and_subprocesses_is_captured(session: Kept) -> None:
    answer = session.run(
        "import ctypes, os, subprocess, sys\n"
        "os.system('echo shell')\n"
        "subprocess.run(['echo', 'inherited'])\n"
        "subprocess.run(['echo', 'handed'], stdout=sys.stdout)\n"
        "libc = ctypes.CDLL(None); libc.puts(b'from C'); libc.fflush(None)\n"
        "os.write(2, b'error\\n')"
    )
    assert answer.out.splitlines() == ["shell", "inherited", "handed", "from C"]
    assert answer.streams["stderr"] == "error\n"


def test_a_flood_of_a_subprocess_is_cut_and_kept_out_of_the_log(session: Kept) -> None:
    answer = session.run("import os; os.system('yes flood | head -c 300000000')", limit_s=120)
    assert answer.iopub_bytes < 40_000_000
    assert "bytes of output left out here" in answer.out
    assert "flood" not in session.log()


def test_generations_draw_different_random_numbers(session: Kept) -> None:
    code = "import random; random.random()"
    first = session.run(code).text
    session.replace()
    assert session.run(code).text != first


def test_input_history_is_there(session: Kept) -> None:
    session.run("40 + 2")
    assert session.run("(Out[max(Out)], In[-2], _ih[-2])").text == "(42, '40 + 2', '40 + 2')"


def test_modules_are_imported_from_the_working_directory_and_ours_are_not(session: Kept) -> None:
    (session.files / "streams.py").write_text("mine = 'mine'")
    assert session.run("import streams; streams.mine").text == "'mine'"
    assert session.run("import keeper").ename == "ModuleNotFoundError"


def test_the_kernel_is_the_one_to_go_when_memory_runs_out(session: Kept) -> None:
    assert session.run("open('/proc/self/oom_score_adj').read()").text == r"'500\n'"


def test_nothing_writable_is_shared_with_the_keeper(session: Kept) -> None:
    assert session.run("[line for line in open('/proc/self/maps') if 'rw-s' in line]").text == "[]"
    assert session.status()["note"] == ""


def test_no_debugger_listens(session: Kept) -> None:
    reply = session.client().kernel_info(reply=True, timeout=ANSWER_S)
    assert "debugger" not in reply["content"].get("supported_features", [])
    assert session.run("import sys; 'debugpy' in sys.modules").text == "False"
