"""Shows what sagebroker does: a real MCP client computes with real SageMath, cell by cell.

    .venv/bin/python examples/demo.py [FOLDER]

`make demo` runs it. The plot is saved in FOLDER (default ``demo-output``). Every answer is checked; the exit code
is 1 when one is not what it should be.
"""

import base64
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, ImageContent, TextContent
from rich.console import Console
from rich.markup import escape

CALL_LIMIT_S = 180.0
"""A hang guard; the first call starts a container and a kernel, which takes some seconds."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """An answer is not what it should be."""


@dataclass(frozen=True)
class Cell:
    """One piece of Sage code and what its answer must contain."""

    title: str
    code: str
    expects: tuple[str, ...] = ()
    plot: bool = False
    fails: bool = False


CELLS = (
    Cell(
        "Exact arithmetic",
        "n = 2^127 - 1\nn, n.is_prime(), sum(1/k for k in range(1, 21))",
        ("(170141183460469231731687303715884105727, True, 55835135/15519504)",),
    ),
    Cell(
        "A symbolic integral",
        "integrate(exp(-x^2) * cos(x), x, -oo, oo)",
        ("sqrt(pi)*e^(-1/4)",),
    ),
    Cell(
        "A number field",
        "K.<a> = NumberField(x^3 - 2)\n1/(1 + a), K.class_number(), K.discriminant()",
        ("(1/3*a^2 - 1/3*a + 1/3, 1, -108)",),
    ),
    Cell(
        "An elliptic curve",
        "E = EllipticCurve([0, 1, 1, -2, 0])\nE.conductor(), E.rank(), E.gens()",
        ("389, 2,",),
    ),
    Cell(
        "A Groebner basis",
        "R.<u,v,w> = PolynomialRing(QQ, order='lex')\n"
        "Ideal([u + v + w, u*v + v*w + w*u, u*v*w - 1]).groebner_basis()",
        ("[u + v + w, v^2 + v*w + w^2, w^3 - 1]",),
    ),
    Cell(
        "A graph",
        "G = graphs.PetersenGraph()\n"
        "G.chromatic_number(), G.is_planar(), G.automorphism_group().order()",
        ("(3, False, 120)",),
    ),
    Cell("A plot", "plot(sin(x)/x, (x, -20, 20), fill=True)", plot=True),
    Cell("LaTeX", "show(integrate(1/(1 + x^4), x))", (r"\sqrt{2}",)),
    Cell("An error, told with a traceback", "1 / (n - n)", ("ZeroDivisionError",), fails=True),
)
ENDLESS = Cell(
    "A computation that would take ages, interrupted",
    "factor((2^300).next_prime() * (2^305).next_prime())",
)
AFTERWARDS = Cell("The variables are still there", "n == 2^127 - 1, E.rank()", ("(True, 2)",))


NEXT_CLIENT = Cell(
    "The client has ended; the next one finds the session asleep, and wakes it",
    "n == 2^127 - 1, E.rank()",
    ("was asleep and is awake again", "(True, 2)"),
)


def sagebroker_mcp(state: str) -> StdioServerParameters:
    """The command that an MCP client is configured with: ``.venv/bin/sagebroker mcp``.

    Args:
        state: Folder for its sessions: the demo must not touch those of whoever runs it.
    """
    command = Path(sys.executable).with_name("sagebroker")
    # Clients pass on little of their environment; the demo passes all, for DOCKER_HOST and the like.
    env = {**os.environ, "SAGEBROKER_STATE_DIR": state}
    return StdioServerParameters(command=str(command), args=["mcp"], env=env)


def text_of(answer: CallToolResult) -> str:
    return "\n".join(part.text for part in answer.content if isinstance(part, TextContent))


def images_of(answer: CallToolResult) -> list[bytes]:
    return [
        base64.b64decode(part.data) for part in answer.content if isinstance(part, ImageContent)
    ]


async def call(client: Client, tool: str, **arguments: object) -> tuple[CallToolResult, float]:
    """Call a tool; its answer and the seconds it took."""
    began = time.monotonic()
    with anyio.fail_after(CALL_LIMIT_S):
        answer = await client.call_tool(tool, dict(arguments))
    return answer, time.monotonic() - began


def show(number: int, cell: Cell, text: str, seconds: float) -> None:
    console.print(
        f"\n[bold cyan]{number:2d}. {escape(cell.title)}[/bold cyan]  [dim]{seconds:.2f} s[/dim]"
    )
    for line in cell.code.splitlines():
        console.print(f"    [green]sage:[/green] {escape(line)}")
    show_text(text)


def show_text(text: str) -> None:
    for line in text.splitlines():
        console.print(f"    {escape(line)}")


def check(cell: Cell, answer: CallToolResult) -> None:
    text = text_of(answer)
    if bool(answer.is_error) != cell.fails:
        raise DemoError(f"{cell.title}: {'no error came' if cell.fails else 'it failed'}:\n{text}")
    for expected in cell.expects:
        if expected not in text:
            raise DemoError(f"{cell.title}: the answer should contain {expected!r}:\n{text}")


def save_plot(cell: Cell, answer: CallToolResult, folder: Path) -> Path:
    images = images_of(answer)
    if not images or not images[0].startswith(PNG_SIGNATURE):
        raise DemoError(f"{cell.title}: no PNG came.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plot.png"
    path.write_bytes(images[0])
    return path


async def run_cell(client: Client, number: int, cell: Cell, folder: Path) -> None:
    answer, seconds = await call(client, "sage_run", code=cell.code)
    show(number, cell, text_of(answer), seconds)
    check(cell, answer)
    if cell.plot:
        path = save_plot(cell, answer, folder)
        console.print(f"    saved as [bold]{path}[/bold] ({path.stat().st_size:,} bytes)")


async def interrupt_endless(client: Client, number: int) -> None:
    """Start a computation without waiting for its end, then interrupt it."""
    answer, seconds = await call(client, "sage_run", code=ENDLESS.code, wait_s=2)
    show(number, ENDLESS, text_of(answer), seconds)
    if not re.search(r"#\d+ running", text_of(answer)):
        raise DemoError("The endless computation is not running.")
    answer, seconds = await call(client, "sage_interrupt")
    console.print(f"    [green]sage_interrupt[/green]  [dim]{seconds:.2f} s[/dim]")
    show_text(text_of(answer))
    if answer.is_error:
        raise DemoError("The computation could not be interrupted.")


async def demonstrate(folder: Path, state: str) -> None:
    began = time.monotonic()
    console.print("Starting an MCP client and 'sagebroker mcp' ...")
    async with Client(sagebroker_mcp(state)) as client:
        tools = sorted(tool.name for tool in (await client.list_tools()).tools)
        console.print(f"The server offers {', '.join(tools)}.")
        console.print("Opening a session: a container of its own, with a fresh Sage kernel ...")
        answer, seconds = await call(client, "sage_open", name="default")
        if answer.is_error:
            raise DemoError(text_of(answer))
        console.print(f"Open after {seconds:.1f} s.")
        for number, cell in enumerate(CELLS, start=1):
            await run_cell(client, number, cell, folder)
        await interrupt_endless(client, len(CELLS) + 1)
        await run_cell(client, len(CELLS) + 2, AFTERWARDS, folder)
    async with Client(sagebroker_mcp(state)) as client:
        await run_cell(client, len(CELLS) + 3, NEXT_CLIENT, folder)
        answer, _ = await call(client, "sage_close", session="default")
        if answer.is_error:
            raise DemoError(text_of(answer))
        console.print(f"\n{escape(text_of(answer))}")
    console.print(
        f"[bold green]All as it should be[/bold green], in {time.monotonic() - began:.1f} s."
    )


def demo_error(failure: BaseException) -> DemoError | None:
    """The `DemoError` within what the client's task group raised."""
    if isinstance(failure, BaseExceptionGroup):
        return next((found for e in failure.exceptions if (found := demo_error(e))), None)
    return failure if isinstance(failure, DemoError) else None


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output")
    try:
        with tempfile.TemporaryDirectory(prefix="sagebroker-demo-") as state:
            anyio.run(demonstrate, folder, state)
    except (DemoError, BaseExceptionGroup) as failure:
        error = demo_error(failure)
        if error is None:
            raise
        console.print(f"\n[bold red]The demo failed.[/bold red] {escape(str(error))}")
        console.print("'make doctor' looks for the reason.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
