"""What `import sagebroker` offers, and that each name has one home."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from pathlib import Path

import pytest

import sagebroker
from sagebroker import errors

PUBLIC = ["BrokerError", "__version__"]


def modules() -> list[str]:
    """Names of all modules but those that run on import or in the container."""
    return [
        found.name
        for found in pkgutil.walk_packages([str(Path(sagebroker.__file__).parent)], "sagebroker.")
        if not found.name.startswith(("sagebroker.inside", "sagebroker.__main__"))
    ]


def error_classes() -> list[type[errors.BrokerError]]:
    found = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.BrokerError)
    ]
    assert len(found) > 10
    return found


def test_the_package_exports_exactly_the_documented_names() -> None:
    assert sorted(sagebroker.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert hasattr(sagebroker, name)


@pytest.mark.parametrize("name", modules())
def test_every_module_can_be_imported_and_exports_what_it_names(name: str) -> None:
    module = importlib.import_module(name)
    for exported in getattr(module, "__all__", ()):
        assert hasattr(module, exported), exported


def test_every_error_has_a_code_of_its_own_and_a_name_that_says_error() -> None:
    codes = Counter(error.code for error in error_classes())
    assert [code for code, times in codes.items() if times > 1] == []
    assert [e.__name__ for e in error_classes() if not e.__name__.endswith("Error")] == []


def test_every_error_told_to_a_person_is_its_message_and_its_hint() -> None:
    for kind in error_classes():
        if kind is errors.SessionNotFoundError:
            text = str(errors.SessionNotFoundError("x", ["a"]))
            assert "'x'" in text
            assert "'a'" in text
        else:
            assert str(kind("It broke.", hint="Mend it.")) == "It broke. Mend it."
