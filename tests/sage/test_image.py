from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import docker
import pytest

from sagebroker.container.images import ImageBuilder
from sagebroker.container.recipe import build_network, find_recipe, locked_packages
from sagebroker.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.sage, pytest.mark.docker]

MAX_IMAGE_BYTES = 2.8e9
"""What the project promises."""


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    made = docker.from_env(version="auto")
    yield made
    made.close()


@pytest.fixture(scope="module")
def builder(client: docker.DockerClient) -> ImageBuilder:
    made = ImageBuilder(client, find_recipe(), build_network(os.environ))
    if not made.state().id:
        pytest.fail("There is no Sage image; make it with 'sagebroker image build'.")
    return made


@pytest.fixture(scope="module")
def image(client: docker.DockerClient, builder: ImageBuilder) -> dict[str, Any]:
    attributes: dict[str, Any] = client.images.get(builder.state().tag).attrs
    return attributes


def in_image(client: docker.DockerClient, builder: ImageBuilder, code: str) -> str:
    """What a program prints inside, as root, so that nothing is hidden from it."""
    output: bytes = client.containers.run(
        builder.state().tag, ["python3", "-c", code],
        remove=True, network_mode="none", read_only=True, user="0:0",
    )  # fmt: skip
    return output.decode()


def test_the_image_is_that_of_the_recipe_in_the_repository(builder: ImageBuilder) -> None:
    assert builder.state().is_current
    assert builder.ensure(pytest.fail).is_current


def test_the_image_is_not_larger_than_promised(image: dict[str, Any]) -> None:
    assert image["Size"] <= MAX_IMAGE_BYTES


def test_the_image_names_its_version_and_its_base(image: dict[str, Any]) -> None:
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == find_recipe().version
    assert labels["org.opencontainers.image.base.name"]


def test_the_lock_is_exactly_what_is_inside(
    client: docker.DockerClient, builder: ImageBuilder
) -> None:
    code = (
        "import importlib.metadata as m, json\n"
        "print(json.dumps([[d.metadata['Name'], d.version] for d in m.distributions()]))"
    )
    inside = "\n".join(
        f"{name}=={version}" for name, version in json.loads(in_image(client, builder, code))
    )
    lock = (find_recipe().folder / "requirements.lock").read_text()
    assert locked_packages(inside) == locked_packages(lock)


def test_there_is_neither_compiler_nor_package_installer_nor_cache(
    client: docker.DockerClient, builder: ImageBuilder
) -> None:
    code = (
        "import os, shutil\n"
        "print([t for t in ('gcc', 'cc', 'g++', 'c++', 'clang', 'ld', 'as', 'pip', 'pip3', 'make') if shutil.which(t)])\n"
        "print([p for p in ('/root/.cache', '/build', '/var/lib/apt/lists', '/var/cache/apt') "
        "if os.path.isdir(p) and os.listdir(p)])\n"
        "print([f for d, _, fs in os.walk('/opt/sage') for f in fs if f.endswith(('.a', '.o'))])"
    )
    assert in_image(client, builder, code).split("\n")[:3] == ["[]", "[]", "[]"]


def test_no_file_gives_rights_its_user_does_not_have(
    client: docker.DockerClient, builder: ImageBuilder
) -> None:
    code = (
        "import os\n"
        "print([p for d, _, fs in os.walk('/', onerror=None) if not d.startswith(('/proc', '/sys', '/dev')) "
        "for f in fs for p in [os.path.join(d, f)] if not os.path.islink(p) and os.stat(p).st_mode & 0o6000])"
    )
    assert in_image(client, builder, code).strip() == "[]"


def test_bytecode_is_there_and_never_compared_with_its_source(
    client: docker.DockerClient, builder: ImageBuilder
) -> None:
    code = (
        "import importlib.util as u\n"
        "for name in ('sage.all', 'IPython', 'sympy', 'matplotlib'):\n"
        "    with open(u.find_spec(name).cached, 'rb') as f: print(int.from_bytes(f.read(8)[4:], 'little'))"
    )
    # PEP 552: bit 0 is "by hash", bit 1 "check the source"; 1 is an unchecked hash.
    assert in_image(client, builder, code).split() == ["1", "1", "1", "1"]


def test_nothing_of_the_building_machines_network_is_in_the_image(
    client: docker.DockerClient, builder: ImageBuilder, image: dict[str, Any]
) -> None:
    history = json.dumps(client.images.get(image["Id"]).history())
    settings = json.dumps([image["Config"]["Env"], image["Config"]["Labels"]])
    network = build_network(os.environ)
    for word in (
        "PIP_",
        "build-ca",
        "PROXY",
        "proxy",
        *(v for v in network.arguments.values() if "/" in v),
    ):
        assert word not in history
        assert word not in settings

    # The first line of each certificate: what this machine trusts beside the usual authorities.
    first_line = re.compile(r"-----BEGIN CERTIFICATE-----\n(\S+\n\S+)")
    ours = set(first_line.findall(network.certificates.decode(errors="replace")))
    code = (
        "import os, re, json\n"
        "found = []\n"
        "for d, _, fs in os.walk('/'):\n"
        "    if d.startswith(('/proc', '/sys', '/dev')): continue\n"
        "    for f in fs:\n"
        "        p = os.path.join(d, f)\n"
        "        if f.endswith(('.pem', '.crt', '.cer')) and os.path.isfile(p):\n"
        f"            found += re.findall({first_line.pattern!r}, open(p, errors='replace').read())\n"
        "import certifi\n"
        f"usual = re.findall({first_line.pattern!r}, open(certifi.where()).read())\n"
        "print(json.dumps([found, usual]))"
    )
    found, usual = json.loads(in_image(client, builder, code))
    assert usual
    assert not (set(found) - set(usual)) & ours


@pytest.mark.parametrize("uid", [200_001, 54_321])
def test_every_part_of_sage_works_for_any_user(builder: ImageBuilder, uid: int) -> None:
    lines: list[str] = []
    builder.check(lines.append, uid)
    assert not [line for line in lines if line.startswith("FAIL")]
    assert any(f"uid {uid}" in line for line in lines)
    assert re.search(r"(\d+) of \1 parts work", "\n".join(lines))


def test_a_failing_part_is_an_error_with_its_reason(
    client: docker.DockerClient, builder: ImageBuilder, tmp_path: Any
) -> None:
    import shutil

    from sagebroker.container.recipe import Recipe

    folder = tmp_path / "sagemath"
    shutil.copytree(find_recipe().folder, folder)
    (folder / "smoke.py").write_text(
        "import sys\nprint('reason: gap: gone', file=sys.stderr)\nsys.exit(1)\n"
    )
    broken = ImageBuilder(client, Recipe(folder=folder), build_network({}))
    with pytest.raises(ImageError, match="gap: gone"):
        broken.check(lambda _line: None)
    left = client.containers.list(all=True, filters={"label": "org.sagebroker.role=check"})
    assert not left
