"""``sagebroker serve`` and ``sagebroker token``: several users over HTTP."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from sagebroker.cli.console import (
    Json,
    err,
    exits,
    out,
    print_json,
    refuse,
    run_async,
)
from sagebroker.model import utcnow
from sagebroker.places import token_file
from sagebroker.store.tokens import Token, TokenFile
from sagebroker.users import PLAIN_NAME

if TYPE_CHECKING:
    from sagebroker.config import BrokerConfig
    from sagebroker.server.serve import Serving

token_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke users' bearer tokens.")

_UNITS_S = {"h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=-1)] = -1,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="No TCP port; ends by itself when nobody has needed it for some minutes.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve MCP over HTTP at /mcp, and unix sockets for this user, until Ctrl-C or SIGTERM."""
    from sagebroker.server import serve as server

    config: BrokerConfig = context.obj
    chosen: dict[str, Any] = {}
    if host:
        chosen["host"] = host
    if port >= 0:
        chosen["port"] = port
    config = config.model_copy(update={"serve": config.serve.model_copy(update=chosen)})
    run_async(
        partial(server.serve, is_local=local, on_ready=partial(_tell, as_json=as_json)),
        config,
        heeds_signals=True,
    )


def _tell(serving: Serving, *, as_json: bool) -> None:
    if as_json:
        print_json(serving.as_json())
        return
    out.print(f"MCP is served at {serving.url or serving.mcp_socket}", markup=False)
    if serving.url and not serving.wants_tokens:
        err.print(
            "Nobody is asked for a token: every user of this machine can use it. 'sagebroker token create "
            "USER' changes that, after a restart.",
            style="yellow",
            markup=False,
        )


@token_app.command("create")
def create(
    context: typer.Context,
    user: Annotated[str, typer.Argument(help="Whose sessions the token opens.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="sage:run (the default), sage:read or sage:metrics.")
    ] = None,
    expires: Annotated[
        str, typer.Option(help="Such as 12h, 30d, 8w; otherwise it is valid until revoked.")
    ] = "",
    note: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: Json = False,
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    from sagebroker.server.auth import RUN, SCOPES

    scopes = tuple(dict.fromkeys(scope or [RUN]))
    if not PLAIN_NAME.fullmatch(user):
        refuse(
            "a user's name has 1 to 64 letters, digits, '_', '.', '@' and '-', a letter or digit first."
        )
    if unknown := [one for one in scopes if one not in SCOPES]:
        refuse(f"there is no scope {unknown[0]!r}; there are: {', '.join(SCOPES)}.")
    now = utcnow().timestamp()
    expires_at = now + _seconds(expires) if expires else None
    with exits():
        text, token = _tokens(context).create(
            user, scopes, now=now, expires_at=expires_at, note=note
        )
    if as_json:
        print_json({"token": text, **_view(token)})
        return
    out.print(text, markup=False)
    err.print(
        f"Keep it now: it is not shown again. Clients send it as 'Authorization: Bearer {text[:12]}…'. "
        f"'sagebroker token revoke {token.id}' ends it.",
        markup=False,
    )


@token_app.command("list")
def list_tokens(context: typer.Context, as_json: Json = False) -> None:
    """Every token but the secrets."""
    with exits():
        tokens = _tokens(context).all()
    if as_json:
        print_json([_view(token) for token in tokens])
        return
    if not tokens:
        out.print("No tokens. One is made by: sagebroker token create USER")
        return
    table = Table("id", "user", "scopes", "created", "expires", "note")
    for token in tokens:
        view = _view(token)
        table.add_row(
            token.id,
            token.user,
            " ".join(token.scopes),
            view["created"],
            view["expires"] or "-",
            token.note,
        )
    out.print(table)


@token_app.command("revoke")
def revoke(
    context: typer.Context,
    meant: Annotated[
        str, typer.Argument(metavar="ID|USER", help="A token's id, or a user: all of his.")
    ],
    as_json: Json = False,
) -> None:
    """Make tokens useless at once, in running servers, too."""
    with exits():
        gone = _tokens(context).revoke(lambda token: meant in (token.id, token.user))
    if not gone:
        refuse(f"there is no token {meant!r} and no user of that name; see: sagebroker token list")
    if as_json:
        print_json([_view(token) for token in gone])
        return
    for token in gone:
        out.print(f"Token {token.id} of {token.user} is revoked.", markup=False)


def _tokens(context: typer.Context) -> TokenFile:
    config: BrokerConfig = context.obj
    return TokenFile(token_file(config))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if found is None or not float(found[1]):
        refuse(f"--expires {text}: give a time such as 12h, 30d or 8w.")
    return float(found[1]) * _UNITS_S[found[2]]


def _view(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "user": token.user,
        "scopes": list(token.scopes),
        "created": _date(token.created_at),
        "expires": None if token.expires_at is None else _date(token.expires_at),
        "note": token.note,
    }


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")
