"""LangChain's own suite for chat models, run by its ChatOpenAI against the proxy; and chats of three turns."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import reduce
from operator import add
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from openai import DefaultAsyncHttpxClient

from tests.conftest import Stage
from tests.end_to_end.callers import MODELS, SSL, heard_by

NO_TOOLS = "a hosted bot calls no tools of its client's"
NO_FORM = "a hosted bot gives text, in no form that its client sets"
NO_FILES = "these bots take no files"
NO_ANTHROPIC = "parts in the form of another vendor's API"
NO_TAPE = "nothing is recorded: the vendors are simulated"

SKIPS: Mapping[str, str] = {
    "test_tool_calling": NO_TOOLS,
    "test_tool_calling_async": NO_TOOLS,
    "test_bind_runnables_as_tools": NO_TOOLS,
    "test_tool_message_histories_string_content": NO_TOOLS,
    "test_tool_message_histories_list_content": NO_TOOLS,
    "test_tool_choice": NO_TOOLS,
    "test_tool_calling_with_no_arguments": NO_TOOLS,
    "test_tool_message_error_status": NO_TOOLS,
    "test_structured_few_shot_examples": NO_TOOLS,
    "test_agent_loop": NO_TOOLS,
    "test_unicode_tool_call_integration": NO_TOOLS,
    "test_structured_output": NO_FORM,
    "test_structured_output_async": NO_FORM,
    "test_structured_output_pydantic_2_v1": NO_FORM,
    "test_structured_output_optional_param": NO_FORM,
    "test_json_mode": NO_FORM,
    "test_image_inputs": NO_FILES,
    "test_pdf_inputs": NO_FILES,
    "test_audio_inputs": NO_FILES,
    "test_image_tool_message": NO_FILES,
    "test_pdf_tool_message": NO_FILES,
    "test_anthropic_inputs": NO_ANTHROPIC,
    "test_stream_time": NO_TAPE,
}
"""The tests that the switches below turn off, and why; no other may be skipped."""


@pytest.fixture
async def params(on_stage: Stage) -> AsyncIterator[dict[str, Any]]:
    """How a ChatOpenAI reaches the proxy, as somebody nobody else is.

    Its own async client, closed in the test's own loop: LangChain keeps one for all loops, which dies with the first.
    """
    async with DefaultAsyncHttpxClient(verify=SSL) as http:
        yield {
            "model": "newoaks",
            "base_url": f"{on_stage.url}/v1",
            "api_key": "none",
            "max_retries": 0,
            "stream_usage": True,  # it asks for usage by itself only at its vendor's own address
            "http_async_client": http,
            "model_kwargs": {"user": f"person-{uuid4().hex}"},
        }


class Ending:
    """A pytest plugin that remembers how a test's own part ended."""

    skipped = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self.skipped = report.skipped


class TestChatOpenAI(ChatModelIntegrationTests):
    """LangChain's suite; what is switched off here stands in SKIPS."""

    has_tool_calling = False
    has_tool_choice = False
    has_structured_output = False
    supports_json_mode = False
    supports_image_inputs = False
    supports_pdf_inputs = False
    supports_audio_inputs = False
    supports_image_tool_message = False
    supports_pdf_tool_message = False
    supports_anthropic_inputs = False
    enable_vcr_tests = False

    chat_model_class = ChatOpenAI
    chat_model_params: dict[str, Any] = {}  # noqa: RUF012 - every test has its own
    model_override_value = "quickchat"

    @pytest.fixture(autouse=True)
    def listed(self, request: pytest.FixtureRequest, params: dict[str, Any]) -> Iterator[None]:
        """A test is skipped if, and only if, it is listed."""
        self.chat_model_params = params
        ending = Ending()
        request.config.pluginmanager.register(ending)
        yield
        request.config.pluginmanager.unregister(ending)
        assert ending.skipped == (request.node.originalname in SKIPS)

    @pytest.fixture
    def benchmark(self) -> None:
        """Of a plugin that is kept out."""

    @pytest.fixture
    def vcr(self) -> None:
        """Of a plugin that is kept out."""


def test_listed_skips_are_tests() -> None:
    """Every listed skip is a test that LangChain's suite has."""
    assert set(SKIPS) <= set(dir(ChatModelIntegrationTests))


# --- three turns

TURNS = ("Hello, my name is Ada.", "What is my name?", "And what did I say first?")

Way = Callable[[Any, Any], Awaitable[Any]]


async def invoke(model: Any, messages: Any) -> Any:
    return model.invoke(messages)


async def ainvoke(model: Any, messages: Any) -> Any:
    return await model.ainvoke(messages)


async def stream(model: Any, messages: Any) -> Any:
    return reduce(add, model.stream(messages))


async def astream(model: Any, messages: Any) -> Any:
    return reduce(add, [chunk async for chunk in model.astream(messages)])


WAYS: list[Way] = [invoke, ainvoke, stream, astream]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", [None, "v1"])
@pytest.mark.parametrize("model", MODELS)
async def test_three_turns_are_one_conversation(
    on_stage: Stage, params: dict[str, Any], model: str, version: str | None, way: Way
) -> None:
    """A chat of LangChain's messages is one vendor conversation, which hears each of its three turns once."""
    chat = ChatOpenAI(**{**params, "model": model, "output_version": version})
    messages: list[BaseMessage] = []
    for text in TURNS:
        messages.append(HumanMessage(text))
        messages.append(await way(chat, messages))
    assert heard_by(on_stage.simulator.vendors[model]) == [list(TURNS)]
    assert "Ada" in messages[3].text


@pytest.mark.filterwarnings(
    "ignore:.*MessageHistory.* deprecated"
)  # LangChain says so; applications use it all the same
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
async def test_history_that_langchain_keeps_is_continued(
    on_stage: Stage, params: dict[str, Any], model: str, way: Way
) -> None:
    """A chat whose history RunnableWithMessageHistory keeps is one vendor conversation with three turns."""
    kept = InMemoryChatMessageHistory()
    chat = RunnableWithMessageHistory(ChatOpenAI(**{**params, "model": model}), lambda session_id: kept)
    session = chat.with_config(configurable={"session_id": "one"})
    replies = [await way(session, text) for text in TURNS]
    assert heard_by(on_stage.simulator.vendors[model]) == [list(TURNS)]
    assert "Ada" in replies[1].text
    assert len(kept.messages) == 6
