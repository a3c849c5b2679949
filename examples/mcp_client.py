"""The smallest useful MCP client: open a session, compute, save a plot.

    .venv/bin/python examples/mcp_client.py [FILE.png]

Any MCP client does the same; this one uses the official Python package `mcp`.
"""

import base64
import os
import sys
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters
from mcp.types import ImageContent, TextContent

SERVER = StdioServerParameters(
    command=str(Path(sys.executable).with_name("sagebroker")), args=["mcp"], env=dict(os.environ)
)


async def main() -> bytes:
    async with Client(SERVER) as client:
        # A session is a name; opening it twice is the same as once. "default" needs no opening.
        await client.call_tool("sage_open", {"name": "curves"})

        code = "E = EllipticCurve('37a'); E.rank()"
        answer = await client.call_tool("sage_run", {"session": "curves", "code": code})
        text = "\n".join(part.text for part in answer.content if isinstance(part, TextContent))
        print(text)
        assert not answer.is_error
        assert text.splitlines()[-1].strip() == "1"

        # Variables stay from cell to cell; a plot comes back as a picture.
        code = "plot(E, xmin=-2, xmax=3)"
        answer = await client.call_tool("sage_run", {"session": "curves", "code": code})
        pictures = [part.data for part in answer.content if isinstance(part, ImageContent)]
        assert len(pictures) == 1, answer.content

        await client.call_tool("sage_close", {"session": "curves"})
        return base64.b64decode(pictures[0])


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output/curve.png")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(anyio.run(main))
    print(f"saved {file} ({file.stat().st_size} bytes)")
