"""JWTs of an OAuth authorization server: the resource server's half (RFC 9068, RFC 8414, RFC 7517)."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx2
import jwt
from mcp.server.auth.provider import AccessToken

from sagebroker.server.auth import with_implied

if TYPE_CHECKING:
    from sagebroker.config import AuthConfig

FETCH_LIMIT_S: Final = 10.0
"""For one document of the issuer."""
MAX_DOCUMENT_BYTES: Final = 2**20
KEYS_LIVE_S: Final = 3600.0
"""Time after which keys are fetched again; a revoked one is refused from then on."""
RETRY_INTERVAL_S: Final = 30.0
"""Between two fetches: a token with an unknown key must not make the server call its issuer each time."""
LEEWAY_S: Final = 30.0
"""Clocks differ."""
METADATA: Final = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")

_log = logging.getLogger(__name__)


class IssuerKeys:
    """The public keys of an issuer, fetched when they are needed and kept for a while.

    Args:
        auth: The issuer.
    """

    def __init__(self, auth: AuthConfig) -> None:
        self._auth = auth
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -KEYS_LIVE_S
        self._tried_at = -RETRY_INTERVAL_S
        self._fetching = anyio.Lock()

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """The key with this id; None where the issuer has none, or cannot be reached."""
        async with self._fetching:
            now = time.monotonic()
            is_old = now - self._fetched_at >= KEYS_LIVE_S
            if (is_old or key_id not in self._keys) and now - self._tried_at >= RETRY_INTERVAL_S:
                self._tried_at = now
                await self._fetch()
            return self._keys.get(key_id)

    async def _fetch(self) -> None:
        try:
            async with httpx2.AsyncClient(timeout=FETCH_LIMIT_S) as http:
                url = self._auth.jwks_url or await self._jwks_url(http)
                found = jwt.PyJWKSet.from_dict(await _document(http, url))
        except (httpx2.HTTPError, jwt.PyJWTError, ValueError, LookupError, TypeError) as error:
            # Those that are known stay good: an issuer that is away for a while locks nobody out.
            _log.warning("The keys of the issuer %s cannot be had: %s", self._auth.issuer, error)
            return
        self._keys = {key.key_id: key for key in found.keys if key.key_id}
        self._fetched_at = time.monotonic()

    async def _jwks_url(self, http: httpx2.AsyncClient) -> str:
        base = self._auth.issuer.rstrip("/")
        for path in METADATA:
            try:
                document = await _document(http, base + path)
            except (httpx2.HTTPError, ValueError):
                continue
            if str(document.get("issuer", "")).rstrip("/") == base:
                return str(document["jwks_uri"])
        raise LookupError("its metadata cannot be read; set auth.jwks_url")


class JwtVerifier:
    """The SDK's ``TokenVerifier`` for JWTs.

    Args:
        auth: Whose tokens, and what of them counts.
        resource: The address that they must be meant for, where ``auth.audience`` says no other.
    """

    def __init__(self, auth: AuthConfig, resource: str) -> None:
        self._auth = auth
        self._resource = resource
        self._keys = IssuerKeys(auth)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Whose the token is; None where it is not accepted, whatever the reason."""
        auth = self._auth
        try:
            header = jwt.get_unverified_header(token)
            key = await self._keys.find(str(header.get("kid", "")))
            if key is None:
                return None
            claims = jwt.decode(
                token,
                key,
                algorithms=list(auth.algorithms),
                audience=auth.audience or self._resource,
                issuer=auth.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            _log.info("A JWT was refused: %s", error)
            return None
        user = claims.get(auth.user_claim)
        if not isinstance(user, str) or not user:
            return None
        return AccessToken(
            token=token,
            client_id=str(claims.get("client_id") or claims.get("azp") or user),
            # With its issuer: no user of ours has a space in his name.
            subject=f"{auth.issuer} {user}",
            scopes=with_implied(_scopes(claims)),
            expires_at=int(claims["exp"]),
            resource=self._resource,
            claims={"iss": auth.issuer},
        )


def _scopes(claims: dict[str, Any]) -> tuple[str, ...]:
    """The scopes, in either of the forms that issuers use."""
    found = claims.get("scope", claims.get("scp", ""))
    if isinstance(found, str):
        return tuple(found.split())
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


async def _document(http: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    async with http.stream("GET", url) as answer:
        answer.raise_for_status()
        text = b""
        async for chunk in answer.aiter_bytes():
            text += chunk
            if len(text) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{url} is longer than {MAX_DOCUMENT_BYTES} bytes")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError(f"{url} is no JSON object")
    return found
