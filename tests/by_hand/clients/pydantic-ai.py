# requires: pydantic-ai-slim[openai]==2.68.0
# manners: run run-stream
# mypy: ignore-errors
"""pydantic-ai: an agent, told the history with `message_history`."""

import asyncio

from cue import BASE_URL, KEY, MANNER, MODEL, TURNS, heard
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


async def main() -> None:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY))
    agent = Agent(model, instructions="Be kind.")
    history = []
    for turn in TURNS:
        if MANNER == "run-stream":
            async with agent.run_stream(turn, message_history=history) as result:
                heard("".join([piece async for piece in result.stream_text(delta=True)]))
                history = result.all_messages()
        else:
            result = await agent.run(turn, message_history=history)
            heard(result.output)
            history = result.all_messages()


asyncio.run(main())
