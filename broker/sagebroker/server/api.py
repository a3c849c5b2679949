"""`make_api`: the JSON API, for programs that want sessions and cells without MCP.

The command line uses it where a server runs. ``/api/openapi.json`` describes it.
"""

import math
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final

import anyio
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from sagebroker import __version__
from sagebroker.broker import Broker
from sagebroker.errors import (
    BrokerError,
    CapacityError,
    CellNotFoundError,
    CheckpointNotFoundError,
    NoEndpointError,
    NoInputWantedError,
    SessionBusyError,
    SessionClosedError,
    SessionInUseError,
    SessionNameError,
    SessionNotFoundError,
)
from sagebroker.places import API_PATH
from sagebroker.protocol.text import clean
from sagebroker.racing import first
from sagebroker.server.api_views import (
    CellBody,
    Cells,
    CellView,
    Done,
    InputBody,
    Name,
    Number,
    OpenBody,
    Problem,
    Remote,
    RestartBody,
    SessionAnswer,
    Sessions,
    Wait,
    cell_line,
    cell_view,
)
from sagebroker.server.callers import current_user, missing_scope
from sagebroker.server.failures import sentence
from sagebroker.server.session_tools import list_sessions, look_at
from sagebroker.session.cell import Cell
from sagebroker.session.session import Session
from sagebroker.users import ServedUsers

MOST_CELLS: Final = 500
"""Newest cells in a list."""

_STATUS: Final = (
    ((SessionNotFoundError, CellNotFoundError, CheckpointNotFoundError), 404),
    (
        (
            SessionInUseError,
            SessionBusyError,
            SessionClosedError,
            NoInputWantedError,
            NoEndpointError,
        ),
        409,
    ),
    ((SessionNameError,), 422),
    ((CapacityError,), 429),
)
_UNAVAILABLE: Final = 503
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    code: {"model": Problem, "description": text}
    for code, text in (
        (400, "The body is no JSON."),
        (401, "No valid token."),
        (403, "The token lacks a scope."),
        (404, "There is no such session, cell or checkpoint, or it is another user's."),
        (405, "The path has no such method."),
        (409, "The session or the cell is not in a state for that; says in which it is."),
        (422, "The request is not one; says what is wrong."),
        (429, "A limit is reached; says when to come again."),
        (503, "The engine, a kernel or the disk cannot serve now."),
    )
}


class _ForbiddenError(Exception):
    """The token lacks a scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"The token lacks the scope {scope}.")


async def _serving(request: Request) -> Broker:
    """The caller's broker, if he may make the call, and now."""
    return await _admitted(request, reads_only=request.method == "GET")


async def _commanding(request: Request) -> Broker:
    """The same for a call that is as good as running code, though it only reads."""
    return await _admitted(request, reads_only=False)


async def _admitted(request: Request, *, reads_only: bool) -> Broker:
    users: ServedUsers = request.app.state.users
    if lacking := missing_scope(reads_only=reads_only):
        raise _ForbiddenError(lacking)
    users.count_call(current_user())
    return await users.broker_of(current_user())


async def _ending(request: Request) -> anyio.Event:
    users: ServedUsers = request.app.state.users
    return users.ending


Serving = Annotated[Broker, Depends(_serving)]
Commanding = Annotated[Broker, Depends(_commanding)]
Ending = Annotated[anyio.Event, Depends(_ending)]

router = APIRouter()


@router.get("/sessions", summary="List the sessions")
async def get_sessions(broker: Serving) -> Sessions:
    """Every session, those that are open first."""
    listed = await list_sessions(broker)
    return Sessions(sessions=listed.sessions)


@router.get("/sessions/{name}", summary="Look at a session")
async def get_session(broker: Serving, name: Name) -> SessionAnswer:
    """One session."""
    return await _view(broker, name)


@router.put(
    "/sessions/{name}",
    summary="Open a session, or wake it",
    responses={201: {"model": SessionAnswer, "description": "It is new."}},
)
async def put_session(
    broker: Serving, name: Name, response: Response, body: OpenBody | None = None
) -> SessionAnswer:
    """Open a session, or find or wake it; idempotent."""
    wanted = body or OpenBody()
    session, created = await broker.open_session(name, keep=wanted.keep, hibernate=wanted.hibernate)
    notices = session.take_notices()
    if created:
        response.status_code = 201
    elif wanted.keep and not session.keep:
        notices.append("It was opened without keep, and that stays so.")
    return await _view(broker, name, notices)


@router.delete("/sessions/{name}", summary="End a session with its variables and files")
async def delete_session(broker: Serving, name: Name) -> Done:
    """End a session, open or asleep."""
    return Done(message=await broker.close_session(name))


@router.post("/sessions/{name}/interrupt", summary="Stop the running cell")
async def interrupt(broker: Serving, name: Name) -> Done:
    """Climb the interrupt ladder; variables are kept where that is possible."""
    session = broker.open_one(name)
    if session is None:
        await broker.directory.check(name)
    outcome = None if session is None else await session.interrupt()
    if session is None or outcome is None:
        return Done(message=f"Nothing runs in session {name!r}.")
    return Done(message="The running cell was stopped.", notices=session.take_notices())


@router.post("/sessions/{name}/restart", summary="Put a new kernel into a session")
async def restart(broker: Serving, name: Name, body: RestartBody | None = None) -> Done:
    """A new kernel, whatever runs."""
    session = await broker.awake(name)
    order = await session.restore_order((body or RestartBody()).restore)
    message = await session.restart(restore=order)
    return Done(message=message, notices=session.take_notices())


@router.get("/sessions/{name}/connection", summary="Connect a Jupyter client")
async def get_connection(
    broker: Commanding,
    name: Name,
    remote: Remote = False,  # noqa: FBT002 - a query's parameter
) -> dict[str, Any]:
    """What a Jupyter connection file says; the session is woken, or another process of the same user serves it."""
    # Where another process serves it, its endpoint is there all the same.
    with suppress(SessionInUseError):
        await broker.awake(name)
    return await broker.directory.connection(name, is_remote=remote)


@router.get("/sessions/{name}/cells", summary="List the newest cells")
async def get_cells(broker: Serving, name: Name) -> Cells:
    """The newest cells, in order."""
    found = await broker.directory.list_cells(name, MOST_CELLS)
    return Cells(session=name, cells=[cell_line(cell) for cell in found])


@router.post("/sessions/{name}/cells", status_code=202, summary="Run a cell")
async def post_cell(broker: Serving, ending: Ending, name: Name, body: CellBody) -> CellView:
    """Run a cell; answers at its end, or after `wait_s` with what there is."""
    session = await broker.awake(name)
    cell = await session.cell_of_request(body.request_id)
    if cell is None:
        broker.directory.check_room_for_cell()
        cell = session.submit(
            body.code,
            time_limit_s=body.time_limit_s,
            author="api",
            request_id=body.request_id,
        )
    await _wait(cell, body.wait_s, ending)
    return _told(name, cell, session)


@router.get("/sessions/{name}/cells/{number}", summary="Look at a cell, or wait for it")
async def get_cell(
    broker: Serving, ending: Ending, name: Name, number: Number, wait_s: Wait = 0
) -> CellView:
    """A cell with its outputs, of a session awake or asleep."""
    cell = await broker.read_cell(name, number)
    await _wait(cell, wait_s, ending)
    return _told(name, cell, broker.open_one(name))


def make_api(users: ServedUsers) -> FastAPI:
    """The application, to be mounted at `API_PATH` behind the check of tokens."""
    api = FastAPI(
        title="sagebroker",
        version=__version__,
        description="Sessions of SageMath and their cells.",
        docs_url=None,
        redoc_url=None,
        responses=_PROBLEMS,
        root_path_in_servers=False,
        servers=[{"url": API_PATH}],
    )
    api.state.users = users
    api.include_router(router)
    _add_handlers(api)
    return api


@router.post("/sessions/{name}/cells/{number}/input", summary="Answer what a cell asks")
async def post_input(broker: Serving, name: Name, number: Number, body: InputBody) -> Done:
    """Give `input()` its answer."""
    session = await broker.awake(name)
    await session.answer(await session.recall(number), body.text)
    return Done(message=f"Cell {number} has its answer.")


async def _view(broker: Broker, name: str, notices: list[str] | None = None) -> SessionAnswer:
    view = await look_at(broker, name)
    return SessionAnswer(**view.model_dump(), notices=notices or [])


async def _wait(cell: Cell, wait_s: float, ending: anyio.Event) -> None:
    """Until the cell ends or asks something, the time is over or the server is about to end.

    Whoever stops waiting does not stop the cell: an API's client asks for that.
    """
    await first(partial(cell.wait_settled, wait_s), ending.wait)


def _told(name: str, cell: Cell, session: Session | None) -> CellView:
    """The cell as an answer; its end need not be told again."""
    cell.tell()
    view = cell_view(name, cell)
    if session is not None:
        view.notices = [*session.take_notices(), *view.notices]
    return view


def _add_handlers(api: FastAPI) -> None:
    """Every error leaves as a `Problem`."""

    @api.exception_handler(BrokerError)
    async def refuse(_: Request, error: BrokerError) -> JSONResponse:
        status = next((code for kinds, code in _STATUS if isinstance(error, kinds)), _UNAVAILABLE)
        later = error.retry_after_s if isinstance(error, CapacityError) else None
        return _problem(status, error.code, sentence(error), later)

    @api.exception_handler(_ForbiddenError)
    async def forbid(_: Request, error: _ForbiddenError) -> JSONResponse:
        return _problem(403, "insufficient_scope", str(error))

    @api.exception_handler(HTTPException)
    async def deny(request: Request, error: HTTPException) -> JSONResponse:
        answer = _problem(error.status_code, "http", f"{error.detail}.")
        if error.status_code == 405:
            # Each route knows its own methods only, and its router names those of the first.
            answer.headers["Allow"] = ", ".join(_methods(request))
        return answer

    @api.exception_handler(RequestValidationError)
    async def explain(_: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not sent back: it need not even be Unicode.
        found = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return _problem(422, "invalid_request", f"The request does not fit: {'; '.join(found)}.")


def _methods(request: Request) -> list[str]:
    """The methods that the path of a request has."""
    fitting = (
        route
        for route in router.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    )
    return sorted({method for route in fitting for method in route.methods or ()})


def _problem(
    status: int, code: str, message: str, retry_after_s: float | None = None
) -> JSONResponse:
    body = Problem(error=code, message=clean(message), retry_after_s=retry_after_s)
    headers = {} if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)
