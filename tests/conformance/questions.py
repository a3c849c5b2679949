"""Tools and a prompt of the fixture server that ask the client before they answer (SEP-2322)."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import Context, Resolve, Sample, UserMessage
from mcp_types import (
    CallToolResult,
    CreateMessageRequest,
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
)

from sagebroker.server.app import SageServer

Answer = CallToolResult | InputRequiredResult


def form(message: str, **properties: str) -> ElicitRequest:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema))


def sample(question: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=question))
    return CreateMessageRequest(
        params=CreateMessageRequestParams(messages=[message], max_tokens=100)
    )


def asked(state: str | None = None, **requests: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=requests, request_state=state)


def done(words: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=words)])


def field(ctx: Context[Any], key: str, name: str) -> Any:
    """A value of an accepted form; None where there is none."""
    given = (ctx.input_responses or {}).get(key)
    return (given.content or {}).get(name) if isinstance(given, ElicitResult) else None


async def test_input_required_result_elicitation(ctx: Context[Any]) -> Answer:
    """Asks for a name."""
    name = field(ctx, "user_name", "name")
    if not isinstance(name, str):
        return asked(user_name=form("What is your name?", name="string"))
    return done(f"Hello, {name}!")


async def test_input_required_result_sampling(ctx: Context[Any]) -> Answer:
    """Asks a model."""
    given = (ctx.input_responses or {}).get("capital_question")
    if not isinstance(given, CreateMessageResult):
        return asked(capital_question=sample("What is the capital of France?"))
    return done(getattr(given.content, "text", ""))


async def test_input_required_result_list_roots(ctx: Context[Any]) -> Answer:
    """Asks for roots."""
    given = (ctx.input_responses or {}).get("client_roots")
    if given is None:
        return asked(client_roots=ListRootsRequest())
    return done(f"Roots: {given.model_dump_json()}")


async def test_input_required_result_capabilities(ctx: Context[Any]) -> Answer:
    """Asks only what the client can answer."""
    able = ctx.client_capabilities
    questions: dict[str, InputRequest] = {}
    if able is not None and able.sampling is not None:
        questions["sample"] = sample("Say something")
    if able is not None and able.elicitation is not None:
        questions["form"] = form("What is your name?", name="string")
    return asked(None, **questions) if questions else done("nothing to ask")


def ask_model() -> Sample:
    message = SamplingMessage(role="user", content=TextContent(type="text", text="Hello"))
    return Sample([message], max_tokens=10)


async def test_missing_capability(
    said: Annotated[CreateMessageResult, Resolve(ask_model)],
) -> str:
    """Wants a client that can sample."""
    return said.model_dump_json()


async def test_input_required_result_request_state(ctx: Context[Any]) -> Answer:
    """Knows its state again."""
    if field(ctx, "confirm", "ok") is None:
        return asked("begun", confirm=form("Please confirm", ok="boolean"))
    return done("state-ok" if ctx.request_state == "begun" else "state-lost")


async def test_input_required_result_tampered_state(ctx: Context[Any]) -> Answer:
    """Takes no state but its own."""
    if field(ctx, "confirm", "ok") is None:
        return asked("sealed", confirm=form("Please confirm", ok="boolean"))
    return done(f"state: {ctx.request_state}")


async def test_input_required_result_multiple_inputs(ctx: Context[Any]) -> Answer:
    """Asks three things at once."""
    given = ctx.input_responses or {}
    if len(given) < 3:
        return asked(
            "three",
            user_name=form("What is your name?", name="string"),
            greeting=sample("Generate a greeting"),
            client_roots=ListRootsRequest(),
        )
    return done(f"Got {', '.join(sorted(given))}")


async def test_input_required_result_multi_round(ctx: Context[Any]) -> Answer:
    """Asks twice."""
    if ctx.request_state is None:
        return asked("1", step1=form("Step 1: What is your name?", name="string"))
    if ctx.request_state == "1":
        name = field(ctx, "step1", "name")
        return asked(
            f"2 {name}", step2=form("Step 2: What is your favorite color?", color="string")
        )
    return done(f"{ctx.request_state[2:]} likes {field(ctx, 'step2', 'color')}")


async def test_input_required_result_prompt(
    ctx: Context[Any],
) -> list[UserMessage] | InputRequiredResult:
    """Asks before it is written."""
    words = field(ctx, "user_context", "context")
    if not isinstance(words, str):
        question = form("What context should the prompt use?", context="string")
        return asked(user_context=question)
    return [UserMessage(f"Use this context: {words}")]


def add_questions_first(server: SageServer) -> None:
    """Register all of them."""
    for tool in (
        test_input_required_result_elicitation,
        test_input_required_result_sampling,
        test_input_required_result_list_roots,
        test_input_required_result_capabilities,
        test_missing_capability,
        test_input_required_result_request_state,
        test_input_required_result_tampered_state,
        test_input_required_result_multiple_inputs,
        test_input_required_result_multi_round,
    ):
        server.add_tool(tool, structured_output=False)
    server.prompt()(test_input_required_result_prompt)
