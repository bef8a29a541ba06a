// requires: ai@6.0.322 @ai-sdk/openai-compatible@2.0.87
// manners: generate stream
// Vercel's AI SDK: generateText and streamText, with `response.messages` put back as they are.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const { PARLEY_BASE_URL, PARLEY_MODEL, PARLEY_TURNS, PARLEY_MANNER } = process.env;
const provider = createOpenAICompatible({ name: "parley", baseURL: PARLEY_BASE_URL, apiKey: "none" });
const model = provider(PARLEY_MODEL);
const messages = [];

for (const turn of JSON.parse(PARLEY_TURNS)) {
  messages.push({ role: "user", content: turn });
  let text, response;
  if (PARLEY_MANNER === "stream") {
    const result = streamText({ model, system: "Be kind.", messages });
    text = "";
    for await (const piece of result.textStream) text += piece;
    response = await result.response;
  } else {
    ({ text, response } = await generateText({ model, system: "Be kind.", messages }));
  }
  messages.push(...response.messages);
  console.log(JSON.stringify({ text, conversation: response.headers?.["x-parley-conversation"] }));
}
