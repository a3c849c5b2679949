"""The kernelspec with real Sage: Jupyter's own test of kernels, and a notebook, without a server at the start."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import jupyter_kernel_test
import pytest
from tests.conftest import PREFIX
from tests.jupyter import example
from tests.jupyter.conftest import Jupyter, await_server_end, places
from tests.jupyter.pty_command import in_terminal

from sagebroker.config import BrokerConfig

pytestmark = [pytest.mark.sage, pytest.mark.docker]

START_LIMIT_S = 60.0


def make_place(folder: Path, patch: pytest.MonkeyPatch) -> Jupyter:
    """Our kernelspec installed, and nothing that serves it; a server is to end a second after its last use."""
    for name, value in places(folder).items():
        patch.setenv(name, value)
    patch.setenv("SAGEBROKER_SERVE__IDLE_LIMIT_S", "1")
    config = BrokerConfig(state_dir=folder / "state", runtime_dir=folder / "run")
    place = Jupyter(folder, config, dict(os.environ))
    place.install()
    return place


@pytest.fixture
def place(short_dir: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        made = make_place(short_dir, patch)
        yield made
        await_server_end(made.config)


class TestKernel(jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """Run by jupyter_kernel_test against one kernel."""

    kernel_name = "sagemath"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('error', file=sys.stderr)"
    completion_samples: ClassVar = [
        {"text": "continued_fr", "matches": {"continued_fraction", "continued_fraction_list"}}
    ]
    complete_code_samples: ClassVar = [
        "1",
        "x^2",
        "print('hello, world')",
        "def f(x):\n  return x^2\n\n\n",
    ]
    incomplete_code_samples: ClassVar = ["print('''hello", "def f(x):\n  x^2"]
    invalid_code_samples: ClassVar = ["import = 7q"]
    code_page_something = "ZZ?"
    code_generate_error = "raise ValueError('no')"
    code_execute_result: ClassVar = [
        {"code": "2^10", "result": "1024"},
        {"code": "factor(12)", "result": "2^2 * 3"},
    ]
    code_display_data: ClassVar = [
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
        {"code": "plot(sin, 0, 1).show()", "mime": "image/png"},
    ]
    code_history_pattern = "2^1*"
    supported_history_operations = ("tail", "range", "search")
    code_inspect_sample = "factor"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    patch: ClassVar[pytest.MonkeyPatch]
    place: ClassVar[Jupyter]

    @classmethod
    def setUpClass(cls) -> None:
        cls.patch = pytest.MonkeyPatch()
        cls.place = make_place(Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")), cls.patch)
        super().setUpClass()
        cls.complete_once()

    @classmethod
    def complete_once(cls) -> None:
        """The first completion imports a library, which on a loaded machine takes longer than is waited for."""
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            cls.kc.complete("continued_fr")
            if cls.kc.get_shell_msg(timeout=START_LIMIT_S)["content"].get("matches"):
                return
        raise AssertionError("there are no completions")

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        await_server_end(cls.place.config)
        cls.patch.undo()
        shutil.rmtree(cls.place.folder)


async def test_tools_run_a_notebook_in_sage(place: Jupyter) -> None:
    path, done = place.folder / "it.ipynb", place.folder / "done.ipynb"
    pytest_options = ("-p", "no:cacheprovider", "-c", os.devnull)
    example.write(path, "sagemath")
    assert "3 passed" in await place.run("pytest", "--nbval", str(path), *pytest_options)
    assert "1 passed" in await place.run("pytest", "--nbmake", str(path), *pytest_options)
    await place.run("papermill", str(path), str(done), "--language", "python", "-p", "n", "7")
    assert example.outputs_in(done)[2][0]["text"] == "n is 7\n"
    example.write(path, "sagemath", wrong="99")
    await place.run("jupyter", "execute", "--inplace", str(path))
    assert example.outputs_in(path)[1][1]["data"] == {"text/plain": "15"}
    assert await place.names() == []


async def test_a_person_interrupts_sage_at_the_console_and_goes_on(place: Jupyter) -> None:
    env = {**place.environment, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    await place.link.open("curves")
    try:
        await interrupt_and_go_on(env)
        assert await place.names() == ["curves"]
    finally:
        await place.link.close("curves")


async def interrupt_and_go_on(env: dict[str, str]) -> None:
    async with in_terminal("sagebroker", "attach", "curves", "--console", env=env) as seen:
        await seen.show(r"In \[1\]: ")
        seen.type("E = EllipticCurve('37a'); E.rank()\r")
        await seen.show(r"Out\[1\]: 1.*In \[2\]: ")
        seen.type("print('runs'); sleep(1); factor(2^599-1)\r")
        await seen.show(r"\nruns")
        seen.type("\x03")
        await seen.show(r"KeyboardInterrupt.*In \[\d\]: ")
        seen.type("E.conductor()\r")
        await seen.show(r"Out\[\d\]: 37.*In \[\d\]: ")
        seen.type("%exit\r")
