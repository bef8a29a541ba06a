# requires: pipecat-ai[openai]==1.14.0
# manners: pipeline interrupted
# mypy: ignore-errors
"""pipecat: OpenAILLMService in a pipeline, text in and text out; `interrupted` speaks into the second reply."""

import asyncio
import re

from cue import BASE_URL, KEY, MANNER, MODEL, TURNS, heard
from pipecat.frames.frames import EndFrame, InterruptionFrame, LLMContextFrame, LLMTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.workers.runner import WorkerRunner


class Speaker(FrameProcessor):
    """Stands where a voice would: lets so many words through and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.spoken, self.cut = 10_000, "", asyncio.Event()

    async def process_frame(self, frame, direction) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMTextFrame):
            await self.push_frame(frame, direction)
            return
        for piece in re.findall(r"\s+|\S+", frame.text):
            if len(self.spoken.split()) >= self.words:
                self.cut.set()
                return
            self.spoken += piece
            await self.push_frame(LLMTextFrame(piece), direction)


async def talk(worker, speaker, context) -> None:
    for number, turn in enumerate(TURNS):
        cut = MANNER == "interrupted" and number == 1
        speaker.words, speaker.spoken = (4 if cut else 10_000), ""
        context.add_message({"role": "user", "content": turn})
        await worker.queue_frame(LLMContextFrame(context))
        if cut:
            await speaker.cut.wait()
            await worker.queue_frame(InterruptionFrame())
        while context.messages[-1]["role"] != "assistant":  # noqa: ASYNC110 - the context tells nobody
            await asyncio.sleep(0.01)
        heard(context.messages[-1]["content"], **({"interrupted": True} if cut else {}))
    await worker.queue_frame(EndFrame())


async def main() -> None:
    settings = OpenAILLMService.Settings(model=MODEL, system_instruction="Be kind.")
    llm = OpenAILLMService(api_key=KEY, base_url=BASE_URL, settings=settings)
    context = LLMContext()
    speaker = Speaker()
    pipeline = Pipeline([llm, speaker, LLMContextAggregatorPair(context).assistant()])
    worker = PipelineWorker(pipeline, enable_rtvi=False)
    runner = WorkerRunner()
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), talk(worker, speaker, context))


asyncio.run(main())
