"""The server as an OAuth resource server: an issuer on this machine, and tokens good and bad."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from tests.interaction.calling import call, run
from tests.interaction.conftest import local_serve
from tests.interaction.reading import is_error, result_text, text_of
from tests.interaction.test_http import GUARD_S, HEADERS, INITIALIZE
from tests.serving import Served, serving, serving_in

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Issuer:
    """Serves metadata and keys, and signs tokens."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fetches: list[str] = []

    def answer(self, path: str) -> dict[str, Any] | None:
        self.fetches.append(path)
        if path == "/.well-known/oauth-authorization-server":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            public = json.loads(RSAAlgorithm.to_jwk(KEY.public_key()))
            return {"keys": [{**public, "kid": "one", "alg": "RS256", "use": "sig"}]}
        return None

    def token(self, audience: str, **changes: Any) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": audience,
            "sub": "carol",
            "exp": now + 300,
            "iat": now,
            "scope": "openid sage:run",
        }
        key = changes.pop("key", KEY)
        kid = changes.pop("kid", "one")
        algorithm = changes.pop("algorithm", "RS256")
        claims = {k: v for k, v in (claims | changes).items() if v is not None}
        return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = made.answer(self.path)
            body = json.dumps(found or {}).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Issuer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer() as found:
        yield found


@pytest.fixture(scope="module")
async def served(issuer: Issuer) -> AsyncIterator[Served]:
    async with serving_in(local_serve, "jwt", SAGEBROKER_AUTH__ISSUER=issuer.url) as found:
        yield found


async def post(url: str, token: str) -> httpx2.Response:
    headers = HEADERS | {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(timeout=GUARD_S) as http:
        return await http.post(url, json=INITIALIZE, headers=headers)


async def test_a_user_of_the_issuer_has_sessions_of_his_own(
    served: Served, issuer: Issuer, era: str
) -> None:
    carols = issuer.token(served.url, sub=f"carol-{era}")
    async with served.client(carols, mode=era) as carol:
        await run(carol, "x = 'of carol'")
    async with served.client(issuer.token(served.url, sub=f"carl-{era}"), mode=era) as carl:
        assert "NameError" in text_of(await run(carl, "x"))
    # One of ours with the same name is another person.
    async with served.client(served.token(f"carol-{era}"), mode=era) as ours:
        assert "NameError" in text_of(await run(ours, "x"))
    async with served.client(carols, mode=era) as again:
        assert result_text(await run(again, "x")) == "'of carol'"


async def test_scopes_are_read_in_both_forms(served: Served, issuer: Issuer) -> None:
    token = issuer.token(served.url, scope=None, scp=["sage:read"])
    async with served.client(token) as reader:
        assert not is_error(await call(reader, "sage_sessions"))
        assert "sage:run" in text_of(await run(reader, "1"))
    none = await post(served.url, issuer.token(served.url, scope="openid"))
    assert none.status_code == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": 1},
        {"exp": None},
        {"aud": "https://elsewhere.example/mcp"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"key": OTHER_KEY},
        {"kid": "unknown"},
        {"key": "x" * 64, "algorithm": "HS256"},
        {"nbf": 2**33},
    ],
    ids=str,
)
async def test_a_token_that_is_not_for_us_is_refused_like_none(
    served: Served, issuer: Issuer, changes: dict[str, Any]
) -> None:
    audience = changes.pop("aud", served.url) if "aud" in changes else served.url
    refused = await post(served.url, issuer.token(audience, **changes))
    assert refused.status_code == 401
    assert refused.json()["error"] == "invalid_token"


async def test_the_metadata_says_whom_to_ask_for_a_token(served: Served, issuer: Issuer) -> None:
    refused = await post(served.url, "a.b.c")
    assert "resource_metadata=" in refused.headers["WWW-Authenticate"]
    async with httpx2.AsyncClient(timeout=GUARD_S) as http:
        url = f"{served.base}/.well-known/oauth-protected-resource/mcp"
        found = (await http.get(url)).json()
    assert found["resource"] == served.url
    assert [url.rstrip("/") for url in found["authorization_servers"]] == [issuer.url]


async def test_a_flood_of_unknown_keys_does_not_reach_the_issuer(
    served: Served, issuer: Issuer
) -> None:
    assert (await post(served.url, issuer.token(served.url))).status_code == 200
    before = len(issuer.fetches)
    for number in range(20):
        token = issuer.token(served.url, kid=f"k{number}")
        assert (await post(served.url, token)).status_code == 401
    assert len(issuer.fetches) == before


async def test_an_issuer_that_is_away_costs_a_refusal_and_no_hang(short_dir: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{probe.getsockname()[1]}"
    env = {**os.environ, "SAGEBROKER_AUTH__ISSUER": gone}
    async with serving(local_serve(short_dir), short_dir / "state", env) as found:
        assert (await post(found.url, Issuer(gone).token(found.url))).status_code == 401
        async with found.client(found.token("alice")) as alice:
            assert result_text(await run(alice, "1 + 1")) == "2"
