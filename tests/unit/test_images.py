from __future__ import annotations

import io
import json
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import docker
import pytest

from sagebroker.container import base_image
from sagebroker.container.base_image import (
    BaseFacts,
    BaseStep,
    base_plan,
    lines_of,
    no_base_error,
    provide_base,
    pull_public_base,
)
from sagebroker.container.images import LABEL_RECIPE, BuildReport, ImageBuilder, open_builder
from sagebroker.container.recipe import (
    BUILD_FILES,
    CA_FILE,
    BuildNetwork,
    Recipe,
    build_network,
    find_recipe,
    locked_packages,
    pip_arguments,
    proxy_arguments,
)
from sagebroker.errors import ImageError, RuntimeUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    folder = tmp_path / "sagemath"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    (folder / "requirements.lock").write_text(
        "# all of it\nIPython==9.18.1\npassagemath-standard==10.8.13\n"
    )
    (folder / "shrink.py").write_text("")
    return Recipe(folder=folder)


# --- recipe ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILD_FILES)
def test_a_changed_build_file_changes_the_digest(recipe: Recipe, name: str) -> None:
    before = recipe.digest
    path = recipe.folder / name
    path.write_text(path.read_text() + "# changed\n")
    assert recipe.digest != before


def test_a_changed_description_leaves_the_digest(recipe: Recipe) -> None:
    before = recipe.digest
    (recipe.folder / "README.md").write_text("words")
    (recipe.folder / "smoke.py").write_text("pass")
    assert recipe.digest == before


def test_the_digest_tells_where_one_file_ends(recipe: Recipe) -> None:
    (recipe.folder / "Dockerfile").write_text("ab")
    (recipe.folder / "requirements.lock").write_text("c")
    before = recipe.digest
    (recipe.folder / "Dockerfile").write_text("a")
    (recipe.folder / "requirements.lock").write_text("bc")
    assert recipe.digest != before


def test_the_tag_names_the_version_of_the_lock(recipe: Recipe) -> None:
    assert recipe.tag == "sagebroker/sagemath:10.8.13"


def test_a_lock_without_sage_is_refused_with_what_to_write(recipe: Recipe) -> None:
    (recipe.folder / "requirements.lock").write_text("IPython==9.18.1\n")
    with pytest.raises(ImageError, match="passagemath-standard==VERSION"):
        _ = recipe.tag


def test_a_folder_without_a_build_file_is_no_recipe(recipe: Recipe) -> None:
    (recipe.folder / "shrink.py").unlink()
    with pytest.raises(ImageError, match=r"has no file shrink\.py"):
        Recipe(folder=recipe.folder)


def test_the_projects_own_recipe_is_found() -> None:
    found = find_recipe()
    assert found.tag.startswith("sagebroker/sagemath:10.8")
    assert found.packages > 100


def test_an_unknown_recipe_is_named_in_the_error() -> None:
    with pytest.raises(ImageError, match="'gap'"):
        find_recipe("gap")


def test_every_line_of_the_lock_is_an_exact_version() -> None:
    lock = (find_recipe().folder / "requirements.lock").read_text()
    lines = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert len(locked_packages(lock)) == len(lines)


def test_names_in_a_lock_are_compared_in_their_normal_form() -> None:
    assert locked_packages("Foo_Bar.baz==1.0\n# x==2\n") == {"foo-bar-baz": "1.0"}


# --- build context -----------------------------------------------------------------------------


def context_files(content: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name] = file.read()
        return found


def test_the_context_has_the_build_files_and_the_certificates_and_nothing_else(
    recipe: Recipe,
) -> None:
    (recipe.folder / "secret.txt").write_text("no")
    files = context_files(recipe.context(BuildNetwork(certificates=CERTIFICATE)))
    assert set(files) == {*BUILD_FILES, CA_FILE}
    assert files[CA_FILE] == CERTIFICATE


def test_the_context_is_the_same_each_time(recipe: Recipe) -> None:
    assert recipe.context(BuildNetwork()) == recipe.context(BuildNetwork())


def test_the_certificates_are_no_part_of_the_digest_and_none_of_the_final_stage() -> None:
    text = (find_recipe().folder / "Dockerfile").read_text()
    stages = text.split("\nFROM ")
    (copied_in,) = [stage for stage in stages if f"COPY {CA_FILE}" in stage]
    assert copied_in.startswith("python AS builder")
    assert CA_FILE not in stages[-1]
    assert "PIP_" not in stages[-1]
    assert "COPY --from=builder /opt/sage /opt/sage" in stages[-1]


# --- how the machine reaches the network -------------------------------------------------------


def test_variables_win_over_pips_files() -> None:
    file = "[global]\nindex-url = https://files.example/simple\ntimeout = 60\n"
    found = pip_arguments({"PIP_INDEX_URL": "https://env.example/simple"}, [file])
    assert found == {"PIP_INDEX_URL": "https://env.example/simple", "PIP_DEFAULT_TIMEOUT": "60"}


def test_a_later_file_of_pip_wins_over_an_earlier_one() -> None:
    files = ["[global]\nindex-url=https://a.example\n", "[install]\nindex-url=https://b.example\n"]
    assert pip_arguments({}, files) == {"PIP_INDEX_URL": "https://b.example"}


def test_an_index_on_this_machines_disk_stays_out_of_the_build() -> None:
    found = pip_arguments(
        {"PIP_EXTRA_INDEX_URL": "file:///srv/simple https://x.example/simple"}, []
    )
    assert found == {"PIP_EXTRA_INDEX_URL": "https://x.example/simple"}
    assert pip_arguments({"PIP_EXTRA_INDEX_URL": "file:///srv/simple"}, []) == {}


def test_a_broken_pip_file_is_left_to_pip() -> None:
    assert pip_arguments({}, ["[global\nindex-url"]) == {}


def test_proxies_are_passed_in_the_spelling_they_have() -> None:
    assert proxy_arguments({"https_proxy": "http://p:1", "NO_PROXY": ""}) == {
        "https_proxy": "http://p:1"
    }


def test_the_first_named_file_with_certificates_is_taken(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty.pem", tmp_path / "full.pem"
    empty.write_text("")
    full.write_bytes(CERTIFICATE)
    network = build_network(
        {"PIP_CERT": str(empty), "SSL_CERT_FILE": str(full), "HOME": str(tmp_path)}
    )
    assert network.certificates == CERTIFICATE


# --- base image --------------------------------------------------------------------------------


def base_facts(
    *,
    has_local: bool = False,
    has_public: bool = False,
    is_root: bool = False,
    has_debootstrap: bool = False,
) -> BaseFacts:
    return BaseFacts(
        has_local=has_local, has_public=has_public, is_root=is_root, has_debootstrap=has_debootstrap
    )


def test_a_local_base_is_used_before_all_others() -> None:
    everything = base_facts(has_local=True, has_public=True, is_root=True, has_debootstrap=True)
    assert base_plan(everything) == (BaseStep.USE_LOCAL,)


def test_a_public_base_that_is_here_is_not_pulled() -> None:
    assert base_plan(base_facts(has_public=True, is_root=True)) == (BaseStep.USE_PUBLIC,)


def test_the_registry_is_asked_before_debootstrap() -> None:
    assert base_plan(base_facts(is_root=True, has_debootstrap=True)) == (
        BaseStep.PULL,
        BaseStep.DEBOOTSTRAP,
    )


def test_debootstrap_is_for_root_only() -> None:
    assert base_plan(base_facts(has_debootstrap=True)) == (BaseStep.PULL,)


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        (base_facts(is_root=True), "apt-get install debootstrap"),
        (base_facts(has_debootstrap=True), "as root once"),
        (base_facts(is_root=True, has_debootstrap=True), "sagebroker/base:bookworm"),
    ],
)
def test_without_a_base_the_error_says_what_to_do(facts: BaseFacts, advice: str) -> None:
    assert advice in str(no_base_error(facts, "no registry answered"))


def test_a_programs_lines_come_one_by_one() -> None:
    assert list(lines_of(["sh", "-c", "echo a; echo b >&2"], 30)) == ["a", "b"]


def test_a_failing_programs_last_words_are_told() -> None:
    with pytest.raises(ImageError, match="code 3; its last words: no space"):
        list(lines_of(["sh", "-c", "echo no space; exit 3"], 30))


def test_a_program_that_takes_too_long_is_ended_with_its_children() -> None:
    with pytest.raises(ImageError, match="took longer"):
        list(lines_of(["sh", "-c", "sleep 600 & wait"], 0.2))


# --- an engine, as far as the base and the recipe's label need one --------------------------------


class Engine(ThreadingHTTPServer):
    """Speaks the few calls of the Engine API that are asked here."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Calls)
        self.images: dict[str, dict[str, object]] = {}
        self.pull_answer: tuple[int, bytes] | None = None
        self.release = threading.Event()


class Calls(BaseHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass

    @property
    def engine(self) -> Engine:
        assert isinstance(self.server, Engine)
        return self.server

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.split("/images/", 1)[-1].removesuffix("/json")
        image = self.engine.images.get(name)
        self.answer(
            200 if image else 404, json.dumps(image or {"message": "No such image"}).encode()
        )

    def do_POST(self) -> None:
        if self.engine.pull_answer is None:
            self.engine.release.wait(30)
            return
        self.answer(*self.engine.pull_answer)


@pytest.fixture
def engine() -> Iterator[Engine]:
    server = Engine()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(engine: Engine) -> Iterator[docker.DockerClient]:
    port = engine.server_address[1]
    made = docker.DockerClient(base_url=f"tcp://127.0.0.1:{port}", version="1.41")
    yield made
    made.close()


def test_a_registry_that_never_answers_is_given_up(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_image, "FIRST_ANSWER_S", 0.2)
    with pytest.raises(ImageError, match="no registry answered"):
        pull_public_base(client, lambda _line: None)


def test_a_registrys_refusal_is_told(client: docker.DockerClient, engine: Engine) -> None:
    engine.pull_answer = (500, b'{"message": "lookup registry: no such host"}')
    with pytest.raises(ImageError, match="no such host"):
        pull_public_base(client, lambda _line: None)


def test_an_error_in_the_middle_of_a_pull_is_told(
    client: docker.DockerClient, engine: Engine
) -> None:
    engine.pull_answer = (200, b'{"status": "Pulling"}\n{"error": "unexpected EOF"}\n')
    with pytest.raises(ImageError, match="unexpected EOF"):
        pull_public_base(client, lambda _line: None)


def test_a_pulled_base_is_used(client: docker.DockerClient, engine: Engine) -> None:
    engine.pull_answer = (200, b'{"status": "Status: Downloaded newer image"}\n')
    lines: list[str] = []
    assert provide_base(client, lines.append) == "debian:bookworm-slim"
    assert lines[-1] == "base image: debian:bookworm-slim"


def test_a_local_base_is_taken_without_asking_a_registry(
    client: docker.DockerClient, engine: Engine
) -> None:
    engine.images["sagebroker/base:bookworm"] = {"Id": "sha256:1"}
    assert provide_base(client, lambda _line: None) == "sagebroker/base:bookworm"


def test_an_image_of_this_recipe_is_current_and_one_of_another_is_not(
    client: docker.DockerClient, engine: Engine, recipe: Recipe
) -> None:
    builder = ImageBuilder(client, recipe, BuildNetwork())
    assert not builder.state().id
    labels = {LABEL_RECIPE: recipe.digest}
    engine.images[recipe.tag] = {"Id": "sha256:2", "Size": 5, "Config": {"Labels": labels}}
    assert builder.state().is_current
    assert builder.ensure(lambda _line: None).size_bytes == 5
    (recipe.folder / "Dockerfile").write_text("FROM other\n")
    assert builder.state().id
    assert not builder.state().is_current


def test_an_engine_that_is_not_there_is_an_image_error(recipe: Recipe) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        client = docker.DockerClient(
            base_url=f"tcp://127.0.0.1:{unused.getsockname()[1]}", version="1.41"
        )
        with pytest.raises(ImageError, match="did not say"):
            ImageBuilder(client, recipe, BuildNetwork()).state()
        client.close()


def test_a_builder_for_an_engine_that_is_not_there_is_told_so() -> None:
    with (
        pytest.raises(RuntimeUnavailableError, match="does not answer"),
        open_builder("tcp://127.0.0.1:1", {}),
    ):
        pass


# --- progress ----------------------------------------------------------------------------------


def test_build_output_becomes_lines_for_a_person() -> None:
    report = BuildReport(packages=4)
    output = (
        'Step 3/9 : RUN echo "## Packages"\n ---> Running in 12ab\n',
        "## Packages\nCollecting foo==1.0\n  Downloading foo.whl (2 MB)\n",
        "\x1b[91mCollecting bar_baz==2\x1b[0m\nInstalling collected packages: foo\n",
        "Step 4/9 : COPY --from=builder /opt /opt\n",
    )
    lines = [line for text in output for line in report.feed(text)]
    assert lines == [
        ("step 3/9: Packages", True),
        ("step 3/9: downloading foo (25 %)", False),
        ("step 3/9: downloading bar_baz (50 %)", False),
        ("step 3/9: unpacking 4 packages", True),
        ("step 4/9: COPY --from=builder /opt /opt", True),
    ]


def test_podmans_way_of_counting_steps_is_understood() -> None:
    report = BuildReport(packages=4)
    output = '[2/3] STEP 3/9: RUN echo "## Packages"\n## Packages\nSTEP 4/9: COPY a /a\n'
    assert [line for line, _ in report.feed(output)] == [
        "step 3/9: Packages",
        "step 4/9: COPY a /a",
    ]


def test_the_last_lines_of_a_build_are_kept_for_its_error() -> None:
    report = BuildReport(packages=1)
    for number in range(100):
        list(report.feed(f"line {number}\n"))
    assert report.tail[-1] == "line 99"
    assert len(report.tail) == 15
