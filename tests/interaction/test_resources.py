"""Resources, completions and prompts, as a client reads them."""

from __future__ import annotations

import json

import pytest
from mcp import Client, MCPError
from mcp_types import (
    INVALID_PARAMS,
    PromptReference,
    ResourceTemplateReference,
    TextContent,
    TextResourceContents,
)
from tests.interaction.calling import call, run

from sagebroker.server.resources import PAGE_CHARS
from sagebroker.server.uris import CELL

TEMPLATES = {
    "sage://sessions/{session}/cells",
    "sage://sessions/{session}/cells/{cell}",
    "sage://sessions/{session}/cells/{cell}/{stream}{?offset,limit}",
    "sage://sessions/{session}/cells/{cell}/images/{number}",
    "sage://sessions/{session}/cells/{cell}/displays/{number}/html{?offset,limit}",
    "sage://sessions/{session}/cells/{cell}/displays/{number}/svg{?offset,limit}",
    "sage://sessions/{session}/cells/{cell}/displays/{number}/png",
    "sage://sessions/{session}/cells/{cell}/displays/{number}/jpeg",
    "sage://sessions/{session}/cells/{cell}/displays/{number}/gif",
    "sage://sessions/{session}/cells/{cell}/displays/{number}/webp",
    "sage://sessions/{session}/files",
    "sage://sessions/{session}/files/{+path}",
    "sage://sessions/{session}/notebook.ipynb",
}
PROMPTS = {
    "solve_and_check": "problem",
    "explore_object": "thing",
    "prove_claim": "claim",
    "verify": "claim",
}


async def read(client: Client, uri: str) -> str:
    [content] = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return content.text


async def complete(client: Client, argument: str, begun: str, **given: str) -> list[str]:
    found = await client.complete(
        ResourceTemplateReference(uri=CELL),
        {"name": argument, "value": begun},
        context_arguments=given,
    )
    return found.completion.values


async def test_sessions_cells_and_outputs_are_read_as_the_tools_show_them(client: Client) -> None:
    await run(client, "print('out')\n6 * 7")
    await run(client, "1/0")
    [session] = json.loads(await read(client, "sage://sessions"))["sessions"]
    assert (session["name"], session["state"], session["last_cell"]) == ("default", "ready", 2)
    listed = json.loads(await read(client, "sage://sessions/default/cells"))["cells"]
    assert [(cell["number"], cell["status"]) for cell in listed] == [(1, "ok"), (2, "error")]
    assert listed[0]["code"] == "print('out')"
    first = await read(client, listed[0]["uri"])
    assert first.startswith("[default #1 ok ")
    assert "print('out')\n6 * 7" in first
    assert first.endswith("stdout:\nout\nresult:\n42")
    assert await read(client, f"{listed[0]['uri']}/stdout") == "out\n"
    assert "ZeroDivisionError" in await read(client, f"{listed[1]['uri']}/traceback")


async def test_the_templates_are_listed_and_their_variables_completed(client: Client) -> None:
    templates = (await client.list_resource_templates()).resource_templates
    assert {template.uri_template for template in templates} == TEMPLATES
    assert [r.uri for r in (await client.list_resources()).resources] == ["sage://sessions"]
    await call(client, "sage_open", name="curves")
    await call(client, "sage_open", name="cubics")
    await run(client, "1", session="curves")
    assert await complete(client, "session", "cu") == ["cubics", "curves"]
    assert await complete(client, "session", "cur") == ["curves"]
    assert await complete(client, "cell", "", session="curves") == ["1"]
    assert await complete(client, "cell", "", session="nowhere") == []
    assert await complete(client, "stream", "std") == ["stdout", "stderr"]


async def test_what_is_not_there_is_told_with_what_is(memory_client: Client) -> None:
    await run(memory_client, "1")
    for uri, said in {
        "sage://sessions/curves/cells": "'default'",
        "sage://sessions/curves/cells/1": "'default'",
        "sage://sessions/default/cells/9": "9",
    }.items():
        with pytest.raises(MCPError, match=said) as caught:
            await read(memory_client, uri)
        assert caught.value.error.code == INVALID_PARAMS
    for uri in (
        "sage://sessions/default/cells/1/stdin",
        "sage://sessions/default/cells/x",
        "sage://sessions/..%2f..%2fetc/cells",
        "sage://sessions/default/cells/1/stdout?limit=9999999",
    ):
        with pytest.raises(MCPError):
            await read(memory_client, uri)


async def test_a_long_output_comes_by_pages_that_name_the_next(client: Client) -> None:
    await run(client, f"print('x' * {PAGE_CHARS} + 'é\\ud800y')")
    uri = "sage://sessions/default/cells/1/stdout"
    first = await read(client, uri)
    assert first.startswith("x" * PAGE_CHARS)
    following = f"{uri}?offset={PAGE_CHARS}"
    assert following in first[PAGE_CHARS:]
    rest = await read(client, following)
    assert rest.startswith("é")
    assert rest.endswith("y\n")
    assert await read(client, f"{uri}?offset={PAGE_CHARS}&limit=1") == (
        f"é\n… {len(rest) - 1} characters left out; {uri}?offset={PAGE_CHARS + 1} has more …\n"
    )


@pytest.mark.parametrize(("name", "argument"), PROMPTS.items())
async def test_a_prompt_names_its_session_and_what_it_is_about(
    memory_client: Client, name: str, argument: str
) -> None:
    listed = {prompt.name: prompt for prompt in (await memory_client.list_prompts()).prompts}
    assert listed.keys() == PROMPTS.keys()
    arguments = {a.name: a.required for a in listed[name].arguments or ()}
    assert arguments == {argument: True, "session": False}
    filled = await memory_client.get_prompt(name, {argument: "x^2 >= {0}", "session": "curves"})
    [message] = filled.messages
    assert isinstance(message.content, TextContent)
    assert "x^2 >= {0}" in message.content.text
    assert "session 'curves'" in message.content.text
    await call(memory_client, "sage_open", name="curves")
    found = await memory_client.complete(
        PromptReference(name=name), {"name": "session", "value": "c"}
    )
    assert found.completion.values == ["curves"]


@pytest.mark.parametrize(
    ("name", "cause"),
    [("nope", "Unknown prompt: nope"), ("prove_claim", "Missing required arguments: {'claim'}")],
)
async def test_a_prompt_that_cannot_be_filled_is_the_callers_error_and_says_what_to_do(
    client: Client, name: str, cause: str
) -> None:
    with pytest.raises(MCPError) as caught:
        await client.get_prompt(name)
    assert caught.value.error.code == INVALID_PARAMS
    assert caught.value.error.message == (
        f"{cause}. prompts/list tells the prompts and their arguments."
    )
