"""Test doubles that behave like the real thing; the contract suites prove it.

May import every layer; no product module imports it.
"""

from sagebroker.testing.fake_runtime import FakeRuntime

__all__ = ["FakeRuntime"]
