"""The ``sagebroker`` command as a person uses it, on the real image."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import httpx2
import pytest

from sagebroker.container.spec import LABEL_ROLE

pytestmark = [pytest.mark.sage, pytest.mark.docker]

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(short_dir: Path, sage_image: str) -> dict[str, str]:
    (short_dir / "none.toml").touch()
    return {
        **os.environ,
        "SAGEBROKER_STATE_DIR": str(short_dir / "state"),
        "SAGEBROKER_RUNTIME_DIR": str(short_dir / "run"),
        "SAGEBROKER_CONFIG": str(short_dir / "none.toml"),
        "COLUMNS": "200",
    }


@pytest.fixture
def sagebroker(environment: dict[str, str]) -> Iterator[Command]:
    def call(*arguments: str, stdin: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sagebroker", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
            env={**environment, **changes},
        )

    yield call
    for entry in json.loads(call("sessions", "list", "--json").stdout or "[]"):
        call("sessions", "close", entry["id"])


def printed_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.core
def test_doctor_finds_everything_in_order_and_leaves_nothing(sagebroker: Command) -> None:
    report = printed_json(sagebroker("doctor", "--json"))
    assert report["ok"]
    names = [check["check"] for check in report["checks"]]
    assert names == ["folders", "kernelspec", "engine", "limits", "image", "session"]
    assert printed_json(sagebroker("sessions", "list", "--json")) == []


def test_doctor_says_what_to_do_when_the_image_is_missing(sagebroker: Command) -> None:
    done = sagebroker("doctor", SAGEBROKER_KERNEL__IMAGE="sagebroker/none:1")
    assert done.returncode == 3
    assert "sagebroker image build" in done.stdout


def test_doctor_says_what_to_do_when_there_is_no_engine(
    sagebroker: Command, short_dir: Path
) -> None:
    done = sagebroker("doctor", SAGEBROKER_ENGINE_URL=f"unix://{short_dir}/none.sock")
    assert done.returncode == 3
    assert "none.sock" in done.stdout
    assert "→" in done.stdout


@pytest.mark.core
def test_run_prints_the_value_and_what_the_code_prints(sagebroker: Command) -> None:
    done = sagebroker("run", "-c", "print('hello')\nfactor(2^101 - 1)")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello\n7432339208719 * 341117531003194129\n"


def test_run_reads_a_file_and_fails_with_its_error(sagebroker: Command, short_dir: Path) -> None:
    script = short_dir / "x.sage"
    script.write_text("R.<x> = QQ[]\nprint(R)\n1/0\n")
    done = sagebroker("run", str(script))
    assert done.returncode == 1
    assert "Univariate Polynomial Ring" in done.stdout
    assert "ZeroDivisionError: rational division by zero" in done.stderr


def test_run_keeps_to_its_time_limit(sagebroker: Command) -> None:
    done = sagebroker("run", "--time-limit", "1", "-c", "while True: pass")
    assert done.returncode == 1
    assert "time limit of 1 s" in done.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("-c", "1", "file.sage"), ("no-such-file.sage",), ("-s", "a/b", "-c", "1")]
)
def test_run_refuses_bad_usage_and_says_why(
    sagebroker: Command, arguments: tuple[str, ...]
) -> None:
    done = sagebroker("run", *arguments)
    assert done.returncode == 2
    assert "error:" in done.stderr


def test_a_named_session_keeps_its_variables_from_command_to_command(
    sagebroker: Command, short_dir: Path
) -> None:
    assert sagebroker("run", "-s", "work", "-c", "answer = 41").returncode == 0
    assert sagebroker("run", "-s", "work", "-c", "answer + 1").stdout == "42\n"
    images = short_dir / "images"
    assert (
        sagebroker("run", "-s", "work", "--images", str(images), "-c", "plot(sin)").returncode == 0
    )
    (image,) = images.iterdir()
    assert image.read_bytes().startswith(b"\x89PNG")
    (entry,) = printed_json(sagebroker("sessions", "list", "--json"))
    assert (entry["name"], entry["state"], entry["on_end"]) == ("work", "waiting", "stay")
    shown = printed_json(sagebroker("sessions", "show", "work", "--json"))
    words = [h["word"] for h in shown["events"] if h["word"].startswith("session.")]
    assert words == ["session.opened", "session.adopted", "session.adopted"]
    assert printed_json(sagebroker("sessions", "restart", "work", "--json"))["done"] == "restarted"
    assert "NameError" in sagebroker("run", "-s", "work", "-c", "answer").stderr
    assert printed_json(sagebroker("sessions", "close", "work", "--json"))["done"] == "closed"
    assert printed_json(sagebroker("sessions", "list", "--json")) == []


def test_variables_are_listed_saved_and_restored_from_command_to_command(
    sagebroker: Command,
) -> None:
    assert sagebroker("run", "-s", "work", "-c", "K.<a> = NumberField(x^3 - 2)").returncode == 0
    listed = printed_json(sagebroker("sessions", "variables", "work", "--json"))
    assert {v["name"] for v in listed["variables"]} == {"K", "a"}
    saved = printed_json(sagebroker("sessions", "save", "work", "--label", "field", "--json"))
    assert (saved["missing"], saved["error"]) == ([], "")
    assert sagebroker("run", "-s", "work", "-c", "a = 0").returncode == 0
    known = printed_json(sagebroker("sessions", "checkpoints", "work", "--json"))
    assert "field" in [info["label"] for info in known]
    assert sagebroker("sessions", "restore", "work", "none-such").returncode == 2
    assert sagebroker("sessions", "restore", "work", "field").returncode == 0
    assert sagebroker("run", "-s", "work", "-c", "a^3").stdout == "2\n"
    assert sagebroker("sessions", "close", "work").returncode == 0


def test_json_has_the_result_in_all_its_forms(sagebroker: Command) -> None:
    value = printed_json(sagebroker("run", "--json", "-c", "%display latex\nsqrt(2)"))
    assert value["status"] == "ok"
    (output,) = value["outputs"]
    assert "\\sqrt{2}" in str(output["data"])


def test_an_unknown_session_is_a_usage_error_that_names_the_known_ones(sagebroker: Command) -> None:
    done = sagebroker("sessions", "close", "nothing")
    assert done.returncode == 2
    assert "no session named 'nothing'" in done.stderr


def test_ctrl_c_interrupts_the_computation_and_ends_the_command(
    environment: dict[str, str], sagebroker: Command
) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "sagebroker",
            "run",
            "-c",
            "print('go', flush=True)\nwhile True: pass",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "variables are kept" in errors
    assert printed_json(sagebroker("sessions", "list", "--json")) == []


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_check_of_the_image_and_its_container(
    environment: dict[str, str], name: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "sagebroker", "image", "check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline()
        process.send_signal(signal.Signals[name])
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    client = docker.from_env(version="auto")
    try:
        assert client.containers.list(all=True, filters={"label": f"{LABEL_ROLE}=check"}) == []
    finally:
        client.close()


def test_images_that_cannot_be_saved_cost_no_result(sagebroker: Command, short_dir: Path) -> None:
    code = (
        "from IPython.display import display\n"
        "display({'image/png': 'no base64!', 'text/plain': 'a picture'}, raw=True)\n2 + 2"
    )
    images = short_dir / "[images]"
    done = sagebroker("run", "--images", str(images), "-c", code)
    assert done.returncode == 1
    assert done.stdout == "a picture\n4\n"
    assert "[images]/output-1.png could not be saved" in done.stderr
    assert "Traceback" not in done.stderr
    done = sagebroker("run", "--json", "--images", str(images), "-c", code)
    assert json.loads(done.stdout)["images"] == []
    assert done.returncode == 1


def test_opening_a_session_tells_what_became_of_its_variables(sagebroker: Command) -> None:
    assert sagebroker("run", "-s", "work", "-c", "answer = 41").returncode == 0
    (entry,) = printed_json(sagebroker("sessions", "list", "--json"))
    client = docker.from_env(version="auto")
    try:
        client.containers.get(entry["container"]).remove(force=True)
    finally:
        client.close()
    done = sagebroker("sessions", "open", "work")
    assert done.returncode == 0
    told = " ".join(done.stderr.split())
    assert "The container ended while nobody was connected." in told
    assert "1 variables as they were after In[1]" in told
    assert printed_json(sagebroker("sessions", "open", "work", "--json"))["notices"] == []


def test_output_that_goes_to_a_closed_pipe_ends_the_command_without_a_word(
    environment: dict[str, str], sagebroker: Command
) -> None:
    command = shlex.join([sys.executable, "-m", "sagebroker", "run", "-c"])
    code = shlex.quote(
        "import time\nfor i in range(600):\n    print(i, flush=True); time.sleep(float(0.1))"
    )
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {code} | head -n 2"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "0\n1\n", "")
    assert printed_json(sagebroker("sessions", "list", "--json")) == []


def test_sessions_of_a_running_server_are_opened_stopped_and_closed_through_it(
    sagebroker: Command, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "sagebroker", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            told = ""
            while "}" not in told:
                told += server.stdout.readline()
            socket = json.loads(told)["http_socket"]
            opened = printed_json(sagebroker("sessions", "open", "a", "--json"))
            assert opened == {"name": "a", "created": True, "notices": []}
            shown = printed_json(sagebroker("sessions", "show", "a", "--json"))
            assert (shown["state"], shown["process"]) == ("served", server.pid)
            transport = httpx2.HTTPTransport(uds=socket)
            with httpx2.Client(transport=transport, timeout=120) as http:
                cells = "http://localhost/api/sessions/a/cells"
                body = {"code": "x = 3\nwhile True: pass", "wait_s": 1}
                assert http.post(cells, json=body).json()["status"] == "running"
                assert sagebroker("sessions", "interrupt", "a").returncode == 0
                assert http.get(f"{cells}/1?wait_s=60").json()["status"] == "interrupted"
                kept = http.post(cells, json={"code": "x", "wait_s": 60}).json()
                assert kept["outputs"][0]["data"]["text/plain"] == "3"
                assert sagebroker("sessions", "restart", "a").returncode == 0
                gone = http.post(cells, json={"code": "x", "wait_s": 60}).json()
                # In Sage, x is a symbolic variable from the beginning.
                assert gone["outputs"][0]["data"]["text/plain"] == "x"
            assert sagebroker("sessions", "close", "a").returncode == 0
            assert printed_json(sagebroker("sessions", "list", "--json")) == []
        finally:
            server.terminate()
            assert server.wait(60) == 0
