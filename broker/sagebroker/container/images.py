"""`ImageBuilder`: makes, keeps up to date and checks the Sage image.

Everything blocks; call it in a worker thread. The image carries the digest of its recipe as a
label: a changed recipe is noticed and built, an unchanged one is not.
"""

from __future__ import annotations

import io
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from sagebroker.container.base_image import REPORT_INTERVAL_S, Paced, Progress, provide_base
from sagebroker.container.hardening import create_container
from sagebroker.container.recipe import BuildNetwork, Recipe, build_network, find_recipe
from sagebroker.container.replies import engine_info
from sagebroker.container.spec import LABEL_PREFIX, LABEL_ROLE, ContainerSpec, Limits, Mount, Tmpfs
from sagebroker.errors import ImageError, RuntimeUnavailableError

LABEL_RECIPE = LABEL_PREFIX + "recipe"
"""Digest of the recipe an image was built from."""
LABEL_STAGE = LABEL_PREFIX + "stage"
"""``builder`` or ``image``, set by the Dockerfile."""

BUILD_LIMIT_S = 3600.0
"""About four minutes here, most of it the download of 1 GB; a slow line may take an hour."""
BUILD_SILENCE_S = 900
"""Longest step without a word: copying 2 GB between stages, 20 s here, on a slow disk."""
CHECK_LIMIT_S = 300.0
"""All parts take 13 s here; a loaded small machine takes many times that."""
CHECK_POLL_S = 0.3
"""Time between two looks at the running check."""
CHECK_UID = 200_001
"""An ordinary uid that no image knows, as sessions have."""
LOG_TAIL_LINES = 15
"""Lines of a failed build that go into the error."""

GIB = 2**30
MIB = 2**20

# Docker's "Step 2/9 : RUN x", Podman's "[1/3] STEP 2/9: RUN x"
_STEP = re.compile(r"^(?:Step|(?:\[\d+/\d+\] )?STEP) (\d+)/(\d+) ?: (.*)")
_COLLECTING = re.compile(r"^Collecting ([A-Za-z0-9_.-]+)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True)
class ImageState:
    """What the engine has under the recipe's tag."""

    tag: str
    id: str
    """Empty: there is no such image."""
    is_current: bool
    """Whether it was built from the recipe as it is now."""
    size_bytes: int = 0


class BuildReport:
    """Turns an engine's build output into lines a person follows. Knows no clock and no engine.

    Args:
        packages: How many packages the lock names, for the count.
    """

    def __init__(self, packages: int) -> None:
        self._packages = packages
        self._collected = 0
        self._step = "starting"
        self.tail: list[str] = []
        """The last lines of output, for an error's text."""

    def feed(self, text: str) -> Iterator[tuple[str, bool]]:
        """Take a piece of output; yield (line, whether it begins something new)."""
        for raw in text.splitlines():
            line = _ANSI.sub("", raw).strip()
            if not line or line.startswith(("--->", "Removing intermediate")):
                continue
            self.tail = [*self.tail[1 - LOG_TAIL_LINES :], line]
            yield from self._line(line)

    def _line(self, line: str) -> Iterator[tuple[str, bool]]:
        if step := _STEP.match(line):
            number, count, instruction = step.groups()
            self._step = f"step {number}/{count}"
            if not instruction.startswith("RUN"):
                yield f"{self._step}: {_short(instruction)}", instruction.startswith("COPY --from")
        elif line.startswith("## "):
            yield f"{self._step}: {line[3:]}", True
        elif found := _COLLECTING.match(line):
            self._collected += 1
            percent = min(100, 100 * self._collected // max(1, self._packages))
            yield f"{self._step}: downloading {found[1]} ({percent} %)", False
        elif line.startswith("Installing collected packages"):
            yield f"{self._step}: unpacking {self._packages} packages", True


def _short(instruction: str) -> str:
    return instruction if len(instruction) <= 70 else instruction[:69] + "…"


class ImageBuilder:
    """Builds and checks the image of one recipe.

    Args:
        client: The engine; made with ``version="auto"``, so that old engines work.
        recipe: What to build.
        network: How this machine reaches the network.
    """

    def __init__(self, client: docker.DockerClient, recipe: Recipe, network: BuildNetwork) -> None:
        self._client = client
        self._recipe = recipe
        self._network = network

    def state(self) -> ImageState:
        """Look at what the engine has.

        Raises:
            ImageError: The engine failed.
        """
        with _engine_errors("did not say whether it has the image"):
            try:
                image = self._client.images.get(self._recipe.tag)
            except ImageNotFound:
                return ImageState(tag=self._recipe.tag, id="", is_current=False)
            current = image.labels.get(LABEL_RECIPE) == self._recipe.digest
            return ImageState(
                tag=self._recipe.tag,
                id=str(image.id),
                is_current=current,
                size_bytes=int(image.attrs.get("Size") or 0),
            )

    def ensure(self, progress: Progress) -> ImageState:
        """Build the image unless there is one of this very recipe.

        Raises:
            ImageError: It could not be built.
        """
        state = self.state()
        if state.is_current:
            return state
        if state.id:
            progress(f"{state.tag} was built from another recipe; building it anew")
        return self.build(progress)

    def build(self, progress: Progress) -> ImageState:
        """Build the image, whatever there is.

        Raises:
            ImageError: There is no base image, a step failed, or it took too long.
        """
        deadline = time.monotonic() + BUILD_LIMIT_S
        base = provide_base(self._client, progress)
        try:
            self._run_build(base, progress, deadline)
        finally:
            self._remove_builder_stages(progress)
        state = self.state()
        progress(f"{state.tag} is built, {state.size_bytes / 1e9:.2f} GB")
        return state

    def _run_build(self, base: str, progress: Progress, deadline: float) -> None:
        report = BuildReport(self._recipe.packages)
        paced = Paced(progress, REPORT_INTERVAL_S)
        with _engine_errors("could not build the image"):
            messages = self._client.api.build(
                fileobj=io.BytesIO(self._recipe.context(self._network)),
                custom_context=True,
                tag=self._recipe.tag,
                buildargs={"BASE_IMAGE": base, **self._network.arguments},
                labels=self._labels(base),
                # The default network has no way out where the engine runs without iptables.
                network_mode="host",
                rm=True,
                forcerm=True,
                decode=True,
                timeout=BUILD_SILENCE_S,
            )
            for message in messages:
                if "error" in message:
                    raise _build_error(str(message["error"]), report)
                for line, is_new in report.feed(str(message.get("stream") or "")):
                    (progress if is_new else paced)(line)
                if time.monotonic() > deadline:
                    # Dropping the connection is what ends a build.
                    messages.close()
                    raise _build_error(
                        f"it took longer than {BUILD_LIMIT_S / 60:.0f} minutes", report
                    )

    def _labels(self, base: str) -> dict[str, str]:
        return {
            LABEL_RECIPE: self._recipe.digest,
            "org.opencontainers.image.version": self._recipe.version,
            "org.opencontainers.image.base.name": base,
        }

    def _remove_builder_stages(self, progress: Progress) -> None:
        """Remove untagged images of our recipes: 6 GB of builder, with this machine's certificates in it."""
        wanted = {"dangling": True, "label": LABEL_STAGE}
        try:
            with _engine_errors("could not remove the builder stage"):
                for image in self._client.api.images(filters=wanted):
                    # One that a container still uses is refused, and goes after a later build.
                    with suppress(APIError):
                        self._client.api.remove_image(image["Id"])
        except ImageError as error:
            # The image itself is made: what is left over only takes space.
            progress(str(error))

    def check(self, progress: Progress, uid: int = CHECK_UID) -> None:
        """Run the recipe's smoke script in a container hardened as a session's.

        Args:
            progress: Takes each part's line.
            uid: User in the container.

        Raises:
            ImageError: A part failed or it took too long; the text has the reasons.
        """
        script = self._recipe.folder / "smoke.py"
        # The recipe's own folder may not be readable for the container's user.
        with tempfile.TemporaryDirectory(prefix="sagebroker-check-") as name:
            folder = Path(name)
            folder.chmod(0o755)
            (folder / script.name).write_bytes(script.read_bytes())
            (folder / script.name).chmod(0o644)
            with _engine_errors("could not check the image"):
                self._run_check(_check_spec(self._recipe.tag, folder, script.name, uid), progress)

    def _run_check(self, spec: ContainerSpec, progress: Progress) -> None:
        api = self._client.api
        engine = engine_info(api.version(), api.info())
        container = create_container(api, spec, engine)
        try:
            api.start(container)
            deadline = time.monotonic() + CHECK_LIMIT_S
            said = 0
            while True:
                # The state first: what is printed before the end is in the logs read after it.
                status = api.inspect_container(container)["State"]
                lines = (
                    api.logs(container, stdout=True, stderr=True)
                    .decode(errors="replace")
                    .splitlines()
                )
                ended = not status["Running"]
                complete = lines if ended else lines[:-1]
                for line in complete[said:]:
                    progress(line)
                said = max(said, len(complete))
                if ended:
                    break
                if time.monotonic() > deadline:
                    raise ImageError(
                        f"The check of {spec.image} was not done after {CHECK_LIMIT_S:.0f} s.",
                        hint=f"Its last line: {lines[-1] if lines else 'none'}.",
                    )
                time.sleep(CHECK_POLL_S)
        finally:
            with suppress(NotFound):
                api.remove_container(container, force=True)
        if status["ExitCode"] != 0:
            reasons = [line for line in lines if line.startswith("reason: ")] or lines[-3:]
            raise ImageError(
                f"The image {spec.image} failed its check (exit code {status['ExitCode']}): {' '.join(reasons)}",
                hint="Build it anew with 'sagebroker image build'.",
            )


def _check_spec(image: str, folder: Path, script: str, uid: int) -> ContainerSpec:
    return ContainerSpec(
        name=f"sagebroker-check-{folder.name.rpartition('-')[2]}",
        image=image,
        command=("python3", "-I", "-B", f"/opt/sagebroker/{script}"),
        uid=uid,
        gid=uid,
        limits=Limits(
            memory_bytes=4 * GIB, cpus=2.0, pids=256, open_files=4096, file_bytes=2 * GIB
        ),
        mounts=(Mount(source=folder, target="/opt/sagebroker", read_only=True),),
        tmpfs=(
            Tmpfs(target="/tmp", size_bytes=512 * MIB),
            Tmpfs(target="/home/sage", size_bytes=512 * MIB),
        ),
        environment={"HOME": "/home/sage"},
        labels={LABEL_ROLE: "check"},
    )


def _build_error(reason: str, report: BuildReport) -> ImageError:
    tail = "\n".join(report.tail)
    return ImageError(
        f"The image could not be built: {reason.strip()}.",
        hint=f"If packages could not be downloaded, check the network or pip's settings. The last output:\n{tail}",
    )


@contextmanager
def _engine_errors(what: str) -> Iterator[None]:
    """The one place where the engine's exceptions become ours."""
    try:
        yield
    except (DockerException, requests.RequestException) as error:
        raise ImageError(
            f"The container engine {what}: {error}.", hint="Check it with 'sagebroker doctor'."
        ) from error


@contextmanager
def open_builder(engine_url: str, environment: Mapping[str, str]) -> Iterator[ImageBuilder]:
    """The builder of the project's Sage image on one engine.

    Args:
        engine_url: Where the engine is; the version of its API is asked for.
        environment: Variables of the process, from `sagebroker.config`.

    Raises:
        RuntimeUnavailableError: The engine does not answer.
        ImageError: The recipe is missing.
    """
    recipe = find_recipe()
    try:
        client = docker.DockerClient(base_url=engine_url, version="auto")
    except (DockerException, requests.RequestException) as error:
        raise RuntimeUnavailableError(
            f"The container engine at {engine_url} does not answer: {error}.",
            hint="Check it with 'sagebroker doctor'.",
        ) from error
    with closing(client):
        yield ImageBuilder(client, recipe, build_network(environment))
