"""What an image is built from: the recipe's files, and how this machine reaches the network.

Nothing here talks to an engine. The recipe's digest becomes a label of the image, so that a changed
recipe is noticed and an unchanged one is not built twice.
"""

from __future__ import annotations

import configparser
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sagebroker.errors import ImageError

BUILD_FILES = ("Dockerfile", "requirements.lock", "shrink.py")
"""The files an image is made from; the others of the folder describe or check it."""
CA_FILE = "build-ca.pem"
"""Name of the certificates in the build context; the builder stage alone copies it."""
_ARCHIVE_MODE = 0o644

_SYSTEM_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # macOS, BSD
)
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
"""pip's own places, weakest first."""
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries")
_PIP_ARGUMENTS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "trusted-host": "PIP_TRUSTED_HOST",
    "timeout": "PIP_DEFAULT_TIMEOUT",
    "retries": "PIP_RETRIES",
}
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
"""Predefined build arguments: an engine keeps them out of the image's history by itself."""
_VERSION = re.compile(r"^passagemath-standard==(\S+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class BuildNetwork:
    """How the building machine reaches the network; used in the build, absent from the image."""

    certificates: bytes = b""
    """PEM: what this machine trusts, a corporate network's certificates among it."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Build arguments: pip's index and the proxies."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A folder of ``images/``.

    Raises:
        ImageError: A file is missing or the lock names no version of Sage.
    """

    folder: Path

    def __post_init__(self) -> None:
        for name in BUILD_FILES:
            if not (self.folder / name).is_file():
                raise ImageError(
                    f"The image recipe {self.folder} has no file {name}.",
                    hint="Use the folder images/sagemath of the project's repository.",
                )

    @property
    def version(self) -> str:
        """Sage's version, from the lock."""
        found = _VERSION.search((self.folder / "requirements.lock").read_text(encoding="utf-8"))
        if found is None:
            raise ImageError(
                f"{self.folder / 'requirements.lock'} does not name a version of passagemath-standard.",
                hint="Write it as passagemath-standard==VERSION.",
            )
        return found[1]

    @property
    def tag(self) -> str:
        """Name of the image."""
        return f"sagebroker/{self.folder.name}:{self.version}"

    @property
    def digest(self) -> str:
        """SHA-256 of the files an image is made from, names included; hexadecimal."""
        digest = hashlib.sha256()
        for name in BUILD_FILES:
            content = (self.folder / name).read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode())
            digest.update(content)
        return digest.hexdigest()

    @property
    def packages(self) -> int:
        """How many packages the lock names."""
        return len(locked_packages((self.folder / "requirements.lock").read_text(encoding="utf-8")))

    def context(self, network: BuildNetwork) -> bytes:
        """The build context, an uncompressed tar archive."""
        files = {name: (self.folder / name).read_bytes() for name in BUILD_FILES}
        files[CA_FILE] = network.certificates
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                # Fixed owner, mode and time: the engine's cache sees the content alone.
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(content), _ARCHIVE_MODE
                archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()


def locked_packages(lock: str) -> dict[str, str]:
    """The packages of a lock: name in its normal form (PEP 503) to version."""
    found = {}
    for line in lock.splitlines():
        name, separator, version = line.partition("==")
        if separator and not line.startswith("#"):
            found[re.sub(r"[-_.]+", "-", name).lower()] = version.strip()
    return found


def find_recipe(name: str = "sagemath") -> Recipe:
    """The recipe of this name: in the installed package, else in the repository around it.

    Raises:
        ImageError: Neither has it.
    """
    package = Path(__file__).resolve().parents[1]
    # An editable install has no share/: its package lies two folders below the repository's root.
    for folder in (package / "share" / "images" / name, package.parents[1] / "images" / name):
        if (folder / "Dockerfile").is_file():
            return Recipe(folder=folder)
    raise ImageError(
        f"There is no image recipe named {name!r} in this installation.",
        hint="Install sagebroker anew, or run it from a clone of its repository.",
    )


def build_network(environment: Mapping[str, str]) -> BuildNetwork:
    """Read how this machine reaches the network: certificates, pip's index, proxies.

    Args:
        environment: Variables of the process, from `sagebroker.config`.
    """
    home = environment.get("HOME", "/nonexistent")
    texts = [_text(Path(name.replace("~", home))) for name in _PIP_FILES]
    return BuildNetwork(
        certificates=_certificates(environment),
        arguments={**pip_arguments(environment, texts), **proxy_arguments(environment)},
    )


def pip_arguments(environment: Mapping[str, str], files: Iterable[str]) -> dict[str, str]:
    """Build arguments for pip, from its files (weakest first) and, above them, its variables.

    A ``file:`` index or a folder of this machine does not exist in the build and is left out.
    """
    found: dict[str, str] = {}
    for text in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue  # pip itself will say what is wrong with its file
        for section in ("global", "install"):
            for key in _PIP_KEYS:
                if parser.has_option(section, key):
                    found[_PIP_ARGUMENTS[key]] = parser.get(section, key)
    found.update(
        {name: environment[name] for name in _PIP_ARGUMENTS.values() if name in environment}
    )
    usable = {name: " ".join(filter(_is_remote, value.split())) for name, value in found.items()}
    return {name: value for name, value in usable.items() if value}


def proxy_arguments(environment: Mapping[str, str]) -> dict[str, str]:
    """Build arguments for the proxies, in the spellings that are set."""
    names = [spelling for name in _PROXY_VARIABLES for spelling in (name, name.lower())]
    return {name: environment[name] for name in names if environment.get(name)}


def _is_remote(word: str) -> bool:
    return "://" not in word or word.startswith(("http://", "https://"))


def _certificates(environment: Mapping[str, str]) -> bytes:
    named = [environment[name] for name in _CA_VARIABLES if environment.get(name)]
    for path in (*named, *_SYSTEM_CA_FILES):
        content = _bytes(Path(path))
        if b"-----BEGIN CERTIFICATE-----" in content:
            return content
    return b""


def _bytes(path: Path) -> bytes:
    """The file's content; nothing where this user has no such file or may not read it."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _text(path: Path) -> str:
    return _bytes(path).decode("utf-8", errors="replace")
