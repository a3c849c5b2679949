"""Bearer tokens over HTTP: who a token's bearer is, and what it may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import anyio.to_thread
from mcp.server.auth.provider import AccessToken

from sagebroker.errors import StorageError
from sagebroker.model import utcnow

if TYPE_CHECKING:
    from sagebroker.store.tokens import TokenFile

READ: Final = "sage:read"
"""Scope: look at sessions, cells, outputs, files."""
RUN: Final = "sage:run"
"""Scope: also run code, open, interrupt, restart and close sessions, write files."""
METRICS: Final = "sage:metrics"
"""Scope: read ``/metrics``, nothing else."""
SCOPES: Final = (READ, RUN, METRICS)


class OtherVerifier(Protocol):
    """Tells whose a JWT is."""

    async def verify_token(self, token: str) -> AccessToken | None:
        """None where it is not accepted."""
        ...


class BearerVerifier:
    """The SDK's ``TokenVerifier``: tokens of this installation, and JWTs where an issuer is set.

    Args:
        tokens: Those of this installation.
        resource: The address that they are for.
        jwts: For what looks like a JWT.
    """

    def __init__(self, tokens: TokenFile, resource: str, jwts: OtherVerifier | None = None) -> None:
        self._tokens = tokens
        self._resource = resource
        self._jwts = jwts

    async def verify_token(self, token: str) -> AccessToken | None:
        """Who bears the token; None where it is not accepted, whatever the reason."""
        if self._jwts is not None and token.count(".") == 2:
            return await self._jwts.verify_token(token)
        now = utcnow().timestamp()
        try:
            found = await anyio.to_thread.run_sync(lambda: self._tokens.find(token, now=now))
        except StorageError:
            # The file is damaged: nobody gets in, and /readyz tells the operator.
            return None
        if found is None:
            return None
        return AccessToken(
            token=token,
            client_id=found.id,
            subject=found.user,
            scopes=with_implied(found.scopes),
            expires_at=None if found.expires_at is None else int(found.expires_at),
            resource=self._resource,
        )


def with_implied(scopes: tuple[str, ...]) -> list[str]:
    """The scopes with those that they contain: who may run code may look at it."""
    return [*scopes, READ] if RUN in scopes and READ not in scopes else list(scopes)
