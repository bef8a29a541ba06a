# requires: livekit-agents==1.8.9 livekit-plugins-openai==1.8.9
# manners: stream interrupted
# mypy: ignore-errors
"""LiveKit Agents: the LLM of its OpenAI plugin, as a voice agent uses it; `interrupted` hangs up on reply two."""

import asyncio

from cue import BASE_URL, KEY, MANNER, MODEL, TURNS, heard
from livekit.agents.llm import ChatContext
from livekit.plugins import openai


async def main() -> None:
    llm = openai.LLM(model=MODEL, base_url=BASE_URL, api_key=KEY)
    context = ChatContext.empty()
    context.add_message(role="system", content="Be kind.")
    for number, turn in enumerate(TURNS):
        context.add_message(role="user", content=turn)
        text, cut = "", False
        async with llm.chat(chat_ctx=context) as stream:
            async for chunk in stream:
                text += (chunk.delta and chunk.delta.content) or ""
                cut = MANNER == "interrupted" and number == 1 and len(text.split()) >= 4
                if cut:
                    break
        if cut:
            text = " ".join(text.split()[:4])  # what was spoken aloud until then
        context.add_message(role="assistant", content=text, interrupted=cut)
        heard(text, **({"interrupted": True} if cut else {}))
    await llm.aclose()


asyncio.run(main())
