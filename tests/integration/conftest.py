"""A whole broker over real kernels of this machine, without containers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sagebroker.broker import Broker
from sagebroker.config import BrokerConfig
from sagebroker.testing.local_runtime import LocalRuntime


@pytest.fixture
async def runtime(sage_image: str) -> AsyncIterator[LocalRuntime]:
    async with LocalRuntime(sage_image) as local:
        yield local
        assert not local.containers, "a session left its container"


@pytest.fixture
async def broker(config: BrokerConfig, runtime: LocalRuntime) -> AsyncIterator[Broker]:
    async with Broker(config, runtime) as opened:
        yield opened
