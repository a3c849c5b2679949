"""The product's server with what the conformance suite wants to find: ``python fixture_server.py FOLDER``.

Made by the same factory and served by the same front as ``sagebroker serve``; only the tools, resources
and prompts whose names begin with ``test`` are added. Each does what its scenario in
``@modelcontextprotocol/conformance`` says and no more.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import wave
from pathlib import Path
from typing import Any, Literal

import anyio
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import (
    AssistantMessage,
    Context,
    UserMessage,
)
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    EmptyResult,
    ImageContent,
    SamplingMessage,
    SetLevelRequestParams,
    TextContent,
    TextResourceContents,
)
from PIL import Image
from pydantic import BaseModel, Field
from tests.conformance.questions import add_questions_first

from sagebroker.config import BrokerConfig, ServeConfig
from sagebroker.kernel.kernelspec import KernelSpec
from sagebroker.logs import set_up_logging
from sagebroker.server import http_app, tasks
from sagebroker.server.app import SageServer, make_server
from sagebroker.server.serve import Serving, serve
from sagebroker.testing.local_runtime import LocalRuntime


def png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def wav() -> str:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(8000)
        sound.writeframes(b"\x80" * 8)
    return base64.b64encode(buffer.getvalue()).decode()


def embedded(uri: str, text: str, mime_type: str = "text/plain") -> EmbeddedResource:
    contents = TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    return EmbeddedResource(type="resource", resource=contents)


def text(words: str) -> TextContent:
    return TextContent(type="text", text=words)


class Name(BaseModel):
    name: str = Field(description="A name")


class Response(BaseModel):
    response: str = Field(description="Any words")


class Defaults(BaseModel):
    name: str = Field(default="John Doe")
    age: int = Field(default=30)
    score: float = Field(default=95.5)
    status: Literal["active", "inactive", "pending"] = "active"
    verified: bool = True


def one_of(**titles: str) -> dict[str, Any]:
    return {"oneOf": [{"const": value, "title": title} for value, title in titles.items()]}


class Choices(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["option1", "option2", "option3"]})  # noqa: N815
    titledSingle: str = Field(json_schema_extra=one_of(value1="First", value2="Second"))  # noqa: N815
    legacyEnum: str = Field(  # noqa: N815
        json_schema_extra={"enum": ["opt1", "opt2"], "enumNames": ["Option One", "Option Two"]}
    )
    untitledMulti: list[str] = Field(  # noqa: N815
        json_schema_extra={"items": {"type": "string", "enum": ["option1", "option2"]}}
    )
    titledMulti: list[str] = Field(  # noqa: N815
        json_schema_extra={
            "items": {
                "anyOf": [
                    {"const": "value1", "title": "First Choice"},
                    {"const": "value2", "title": "Second Choice"},
                ]
            }
        }
    )


def add_tools(server: SageServer) -> None:
    @server.tool(structured_output=False)
    async def test_simple_text() -> str:
        """Some text."""
        return "This is a simple text response for testing."

    @server.tool()
    async def test_image_content() -> ImageContent:
        """An image."""
        return ImageContent(type="image", data=png(), mime_type="image/png")

    @server.tool()
    async def test_audio_content() -> AudioContent:
        """A sound."""
        return AudioContent(type="audio", data=wav(), mime_type="audio/wav")

    @server.tool()
    async def test_embedded_resource() -> EmbeddedResource:
        """A resource."""
        return embedded("test://embedded-resource", "This is an embedded resource content.")

    @server.tool()
    async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
        """Several kinds of content."""
        return [
            text("Multiple content types test:"),
            ImageContent(type="image", data=png(), mime_type="image/png"),
            embedded(
                "test://mixed-content-resource", '{"test":"data","value":123}', "application/json"
            ),
        ]


def add_working_tools(server: SageServer) -> None:
    @server.tool(structured_output=False)
    async def test_error_handling() -> str:
        """An error."""
        raise ToolError("This tool intentionally returns an error for testing")

    @server.tool(structured_output=False)
    async def test_tool_with_progress(ctx: Context[Any]) -> str:
        """Progress."""
        for done in (0, 50, 100):
            await ctx.report_progress(done, 100, f"Completed step {done} of 100")
            await anyio.sleep(0.05)
        return "done"

    @server.tool(structured_output=False)
    async def test_tool_with_logging(ctx: Context[Any]) -> str:
        """Log messages."""
        for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
            await ctx.session.send_log_message("info", words)
            await anyio.sleep(0.05)
        return "Tool with logging executed successfully"


def add_changes(server: SageServer) -> None:
    @server.tool(structured_output=False)
    async def test_trigger_tool_change(ctx: Context[Any]) -> str:
        """Tell that the tools have changed."""
        await ctx.notify_tools_changed()
        return "told"

    @server.tool(structured_output=False)
    async def test_trigger_prompt_change(ctx: Context[Any]) -> str:
        """Tell that the prompts have changed."""
        await ctx.notify_prompts_changed()
        return "told"


def add_questions(server: SageServer) -> None:
    @server.tool(structured_output=False)
    async def test_sampling(prompt: str, ctx: Context[Any]) -> str:
        """Ask the client's model."""
        message = SamplingMessage(role="user", content=text(prompt))
        answer = await ctx.session.create_message([message], max_tokens=100)
        return f"LLM response: {getattr(answer.content, 'text', '')}"

    async def ask(ctx: Context[Any], message: str, schema: type[BaseModel]) -> str:
        answer = await ctx.elicit(message, schema)
        content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
        return f"User response: action={answer.action}, content={content}"

    @server.tool(structured_output=False)
    async def test_elicitation(message: str, ctx: Context[Any]) -> str:
        """Ask the user."""
        return await ask(ctx, message, Response)

    @server.tool(structured_output=False)
    async def test_elicitation_sep1034_defaults(ctx: Context[Any]) -> str:
        """Ask the user, with defaults."""
        return await ask(ctx, "Please review and update the form fields", Defaults)

    @server.tool(structured_output=False)
    async def test_elicitation_sep1330_enums(ctx: Context[Any]) -> str:
        """Ask the user to choose."""
        return await ask(ctx, "Please select options", Choices)


def add_resources(server: SageServer) -> None:
    @server.resource("test://static-text", mime_type="text/plain")
    async def static_text() -> str:
        """Text."""
        return "This is the content of the static text resource."

    @server.resource("test://static-binary", mime_type="image/png")
    async def static_binary() -> bytes:
        """Bytes."""
        return base64.b64decode(png())

    @server.resource("test://template/{id}/data", mime_type="application/json")
    async def template(id: str) -> str:  # noqa: A002
        """A template."""
        return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})

    @server.resource("test://watched-resource", mime_type="text/plain")
    async def watched() -> str:
        """What can be subscribed to."""
        return "Watched resource content"


def add_prompts(server: SageServer) -> None:
    @server.prompt()
    async def test_simple_prompt() -> str:
        """A prompt."""
        return "This is a simple prompt for testing."

    @server.prompt()
    async def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
        """A prompt with arguments."""
        return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"

    @server.prompt()
    async def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:  # noqa: N803
        """A prompt with a resource."""
        return [
            UserMessage(embedded(resourceUri, "Embedded resource content for testing.")),
            UserMessage("Please process the embedded resource above."),
        ]

    @server.prompt()
    async def test_prompt_with_image() -> list[UserMessage | AssistantMessage]:
        """A prompt with an image."""
        return [
            UserMessage(ImageContent(type="image", data=png(), mime_type="image/png")),
            UserMessage("Please analyze the image above."),
        ]


def add_task_tools(server: SageServer) -> None:
    """Tools that run a cell, as sage_run does: what takes long becomes a task."""

    async def run(code: str, ctx: Context[Any]) -> CallToolResult:
        answer = await server.call_tool("sage_run", {"code": code}, ctx)
        assert isinstance(answer, CallToolResult)
        return answer

    @server.tool(structured_output=False)
    async def greet(name: str) -> str:
        """Greet at once."""
        return f"Hello, {name}!"

    @server.tool(structured_output=False)
    async def slow_compute(
        ctx: Context[Any], seconds: float = 1.0, label: str = ""
    ) -> CallToolResult:
        """Sleep."""
        return await run(f"import time; time.sleep({seconds}); {label!r}", ctx)

    @server.tool(structured_output=False)
    async def failing_job(ctx: Context[Any]) -> CallToolResult:
        """Fail."""
        return await run("import time; time.sleep(1.5); 1/0", ctx)

    @server.tool(structured_output=False)
    async def confirm_delete(ctx: Context[Any], filename: str = "") -> CallToolResult:
        """Ask."""
        return await run(f"import time; time.sleep(1.5); input('Delete {filename}?')", ctx)


def add_logging(server: SageServer) -> None:
    """The product has no log messages for clients: SEP-2577 has deprecated them."""

    async def set_level(
        _: ServerRequestContext[Any, Any], __: SetLevelRequestParams
    ) -> EmptyResult:
        return EmptyResult()

    server._lowlevel_server.add_request_handler(
        "logging/setLevel", SetLevelRequestParams, set_level
    )


def make_fixture_server(*arguments: Any, **named: Any) -> SageServer:
    server = make_server(*arguments, **named)
    add_tools(server)
    add_working_tools(server)
    add_changes(server)
    add_questions(server)
    add_questions_first(server)
    add_resources(server)
    add_prompts(server)
    add_logging(server)
    add_task_tools(server)
    return server


def tell(serving: Serving) -> None:
    print(json.dumps(serving.as_json()), flush=True)


async def main(folder: Path) -> None:
    config = BrokerConfig(
        state_dir=folder / "state", runtime_dir=folder / "run", serve=ServeConfig(port=0)
    )
    tasks.TASK_TOOLS = frozenset({"slow_compute", "failing_job", "confirm_delete"})  # type: ignore[misc]
    http_app.make_server = make_fixture_server  # type: ignore[attr-defined]
    async with LocalRuntime(KernelSpec.load("sagemath").broker.image) as runtime:
        await serve(config, runtime, on_ready=tell)


if __name__ == "__main__":
    set_up_logging("warning", as_json=False)
    anyio.run(main, Path(sys.argv[1]))
