"""``sagebroker kernelspec`` and ``sagebroker attach --connection-file``."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import anyio
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from tests.jupyter.conftest import Jupyter

from sagebroker.kernel.kernelspec import KernelSpec, kernelspecs_folder


async def told(jupyter: Jupyter, *arguments: str) -> Any:
    return json.loads(await jupyter.run("sagebroker", *arguments, "--json"))


async def test_a_kernelspec_is_installed_where_jupyter_looks_and_removed(prepared: Jupyter) -> None:
    prefix = str(prepared.folder / "prefix")
    plain = await told(prepared, "kernelspec", "install", "--prefix", prefix)
    joining = await told(
        prepared, "kernelspec", "install", "--prefix", prefix, "--session", "My.work"
    )
    assert (plain["name"], plain["session"]) == ("sagemath", None)
    assert (joining["name"], joining["session"]) == ("sagemath-my.work", "My.work")
    assert await told(prepared, "kernelspec", "list") == [plain, joining]
    found = KernelSpecManager().get_kernel_spec("sagemath-my.work")
    assert (found.display_name, found.language) == ("SageMath: My.work", "sage")
    assert found.metadata["kernel_provisioner"]["config"] == {
        "session": "My.work",
        "state_dir": str(prepared.folder / "state"),
        "runtime_dir": str(prepared.folder / "run"),
    }
    await told(prepared, "kernelspec", "remove", "sagemath-my.work")
    assert await told(prepared, "kernelspec", "list") == [plain]
    said = await prepared.run("sagebroker", "kernelspec", "remove", "sagemath-my.work", code=2)
    assert "There are: sagemath." in said


async def test_a_kernelspec_is_installed_for_the_user(prepared: Jupyter) -> None:
    done = await told(prepared, "kernelspec", "install", "--user")
    assert Path(done["folder"]) == prepared.folder / "data" / "kernels" / "sagemath"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--session", "no good"], "no good"),
        (["--user", "--prefix", "/x"], "not both"),
        (["--prefix", "/proc/none"], "another place"),
    ],
)
async def test_a_kernelspec_that_cannot_be_installed_says_why(
    prepared: Jupyter, options: list[str], says: str
) -> None:
    said = await prepared.run("sagebroker", "kernelspec", "install", *options, code=2)
    assert says in said


def test_a_kernelspec_of_somebody_else_is_neither_listed_nor_removed(prepared: Jupyter) -> None:
    from sagebroker.errors import ConfigError
    from sagebroker.jupyter import specs

    assert "python3" in KernelSpecManager().get_all_specs()
    assert specs.installed() == []
    with pytest.raises(ConfigError, match="no kernelspec 'python3' of sagebroker"):
        specs.remove("python3")


def test_the_broker_reads_the_kernelspec_that_jupyter_has(prepared: Jupyter) -> None:
    prepared.install("a")
    folder = KernelSpecManager().get_kernel_spec("sagemath-a").resource_dir
    assert KernelSpec.load(folder).command() == KernelSpec.load("sagemath").command()


@pytest.mark.parametrize("size", [32, 64])
def test_the_logo_has_the_sizes_that_jupyter_asks_for(size: int) -> None:
    content = (kernelspecs_folder() / "sagemath" / f"logo-{size}x{size}.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (size, size)


async def test_any_jupyter_client_can_use_the_connection_file(jupyter: Jupyter) -> None:
    path = (await jupyter.run("sagebroker", "attach", "shared", "--connection-file")).split("\n")
    assert path[0] == "Session 'shared' is new."
    assert (await anyio.Path(path[1]).stat()).st_mode & 0o777 == 0o600
    client = AsyncKernelClient()
    client.load_connection_file(path[1])
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        reply = await client.execute_interactive("1", timeout=60)
        assert reply["content"]["status"] == "ok"
    finally:
        client.stop_channels()
    again = await told(jupyter, "attach", "shared", "--connection-file")
    assert again["connection_file"] == path[1]


@pytest.mark.parametrize("options", [[], ["--console", "--connection-file"]])
async def test_attaching_wants_one_way_to_do_it(prepared: Jupyter, options: list[str]) -> None:
    assert "one of them" in await prepared.run("sagebroker", "attach", "a", *options, code=2)
