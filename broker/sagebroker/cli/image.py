"""``sagebroker image``: build and check the Sage image.

The builder blocks for minutes, so it runs in the main thread without an event loop: nothing else could
end it at Ctrl-C.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sagebroker.cli.console import Json, err, exits, out, print_json, run_async
from sagebroker.config import BrokerConfig, engine_environment, environment
from sagebroker.container.engine import find_engine
from sagebroker.container.images import ImageBuilder, open_builder

image_app = typer.Typer(no_args_is_help=True, help="Build and check the Sage image.")


@image_app.command("build")
def build(
    context: typer.Context,
    force: Annotated[bool, typer.Option(help="Build even if there is a current one.")] = False,
    as_json: Json = False,
) -> None:
    """Build the image unless there is a current one; takes minutes and shows what it does."""

    def act(builder: ImageBuilder) -> dict[str, Any]:
        began = time.monotonic()
        say = _progress(began)
        state = builder.build(say) if force else builder.ensure(say)
        return {
            "image": state.tag,
            "id": state.id,
            "size_bytes": state.size_bytes,
            "seconds": round(time.monotonic() - began, 1),
        }

    built = _with_builder(context.obj, act)
    if as_json:
        print_json(built)
    else:
        out.print(
            f"{built['image']} is ready: {built['size_bytes'] / 1e9:.2f} GB, {built['seconds']} s",
            markup=False,
        )


@image_app.command("check")
def check(context: typer.Context, as_json: Json = False) -> None:
    """Prove in a hardened container that the image's parts of Sage work."""
    lines: list[str] = []

    def act(builder: ImageBuilder) -> str:
        say = _progress(time.monotonic())

        def tell(line: str) -> None:
            lines.append(line)
            if not as_json:
                say(line)

        builder.check(tell)
        return builder.state().tag

    tag = _with_builder(context.obj, act)
    if as_json:
        print_json({"image": tag, "ok": True, "lines": lines})
    else:
        out.print(f"{tag} works.", markup=False)


def _with_builder(config: BrokerConfig, act: Callable[[ImageBuilder], Any]) -> Any:
    engine = run_async(find_engine, config.engine_url, engine_environment())
    for number in (signal.SIGINT, signal.SIGTERM):
        # Raises KeyboardInterrupt wherever the builder is, so that it takes its containers along.
        signal.signal(number, signal.default_int_handler)
    with exits(), open_builder(engine.url, environment()) as builder:
        return act(builder)


def _progress(began: float) -> Callable[[str], None]:
    def say(line: str) -> None:
        err.print(f"{time.monotonic() - began:6.1f} s  {line}", markup=False)

    return say
