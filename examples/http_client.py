"""MCP over HTTP: a server, a token, a client that uses both; and the same session by the JSON API.

    .venv/bin/python examples/http_client.py

The server is started and ended here; usually it runs for everybody: `sagebroker serve`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

SAGEBROKER = str(Path(sys.executable).with_name("sagebroker"))


def make_token(user: str) -> str:
    """A bearer token; only its hash is kept, and `sagebroker token revoke` ends it."""
    made = subprocess.run(
        [SAGEBROKER, "token", "create", user, "--expires", "1h", "--json"],
        capture_output=True,
        check=True,
    )
    token: str = json.loads(made.stdout)["token"]
    return token


async def compute(url: str, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx2.AsyncClient(headers=headers, timeout=120) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            code = "p = next_prime(10^30); p"
            answer = await client.call_tool("sage_run", {"code": code})
            texts = [part.text for part in answer.content if isinstance(part, TextContent)]
            print("\n".join(texts))
            assert texts[-1] == "1000000000000000000000000000057"

        # The connection is gone; the session is not. Here it is by the JSON API.
        cells = url.removesuffix("/mcp") + "/api/sessions/default/cells"
        cell = (await http.post(cells, json={"code": "p.is_prime()", "wait_s": 60})).json()
        print(f"cell {cell['number']}: {cell['outputs'][0]['data']['text/plain']}")
        assert cell["outputs"][0]["data"]["text/plain"] == "True"
        await http.delete(url.removesuffix("/mcp") + "/api/sessions/default")


def main() -> None:
    token = make_token("alice")
    command = [SAGEBROKER, "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ)) as server:
        assert server.stdout is not None
        told = b""
        while b"}" not in told:
            told += server.stdout.readline()
        try:
            anyio.run(compute, json.loads(told)["url"], token)
        finally:
            server.terminate()
    subprocess.run([SAGEBROKER, "token", "revoke", "alice"], check=True)


if __name__ == "__main__":
    main()
