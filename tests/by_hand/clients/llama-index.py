# requires: llama-index-llms-openai-like==0.8.1 llama-index-core==0.14.25
# manners: chat stream engine engine-stream memory complete
# alone: complete
# mypy: ignore-errors
"""LlamaIndex: OpenAILike with `is_chat_model`; and without, where the whole chat is one prompt to /v1/completions."""

import asyncio

from cue import BASE_URL, KEY, MANNER, MODEL, TURNS, heard
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import Memory
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(api_base=BASE_URL, api_key=KEY, model=MODEL, is_chat_model=MANNER != "complete", timeout=20)


def by_hand(stream: bool) -> None:
    messages = [ChatMessage(role="system", content="Be kind.")]
    for turn in TURNS:
        messages.append(ChatMessage(role="user", content=turn))
        answer = list(llm.stream_chat(messages))[-1] if stream else llm.chat(messages)
        messages.append(answer.message)
        heard(answer.message.content)


def engine(stream: bool) -> None:
    engine = SimpleChatEngine.from_defaults(llm=llm, system_prompt="Be kind.")
    for turn in TURNS:
        heard("".join(engine.stream_chat(turn).response_gen) if stream else engine.chat(turn).response)


async def memory() -> None:
    memory = Memory.from_defaults(session_id="by-hand", token_limit=40_000)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    for turn in TURNS:
        heard((await engine.achat(turn)).response)


if MANNER == "memory":
    asyncio.run(memory())
elif MANNER.startswith("engine"):
    engine("stream" in MANNER)
else:
    by_hand(MANNER == "stream")
