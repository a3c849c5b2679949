"""How a client handles what takes long: wait in pieces, limit, interrupt; the variables stay.

.venv/bin/python examples/long_computation.py
"""

import os
import re
import sys
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, TextContent

SERVER = StdioServerParameters(
    command=str(Path(sys.executable).with_name("sagebroker")), args=["mcp"], env=dict(os.environ)
)
ENDLESS = "while True: pass"


def text_of(answer: CallToolResult) -> str:
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent))


def cell_number(answer: CallToolResult) -> int:
    """The number in the status line, ``[default #7 running 2.0 s]``."""
    found = re.match(r"\[\S+ #(\d+) ", text_of(answer))
    assert found, text_of(answer)
    return int(found[1])


async def main() -> None:
    async with Client(SERVER) as client:

        async def run(code: str, **more: float) -> CallToolResult:
            return await client.call_tool("sage_run", {"code": code, **more})

        await run("kept = 42")

        # 1. `wait_s` bounds the waiting, not the computation: the answer is "running", and sage_wait goes on.
        answer = await run("import time\ntime.sleep(4)\n'done'", wait_s=1)
        assert " running " in text_of(answer), text_of(answer)
        rounds = 0
        while " running " in text_of(answer):
            rounds += 1
            answer = await client.call_tool(
                "sage_wait", {"session": "default", "cell": cell_number(answer), "wait_s": 1}
            )
        assert "'done'" in text_of(answer), text_of(answer)
        print(f"1. a cell of 4 s, waited for in {rounds} further rounds")

        # 2. `time_limit_s` bounds the computation itself.
        answer = await run(ENDLESS, time_limit_s=1)
        assert " interrupted " in text_of(answer), text_of(answer)
        print("2. stopped by its time limit")

        # 3. sage_interrupt stops what runs now.
        await run(ENDLESS, wait_s=1)
        answer = await client.call_tool("sage_interrupt", {})
        assert not answer.is_error, text_of(answer)
        print("3. stopped by sage_interrupt")

        # 4. A client that gives up its call (its "Stop" button) interrupts the computation, too.
        with anyio.move_on_after(2):
            await run(ENDLESS)
        answer = await run("kept")
        assert text_of(answer).splitlines()[-1].strip() == "42", text_of(answer)
        print("4. stopped by cancelling the call; the variables are still there")


if __name__ == "__main__":
    anyio.run(main)
