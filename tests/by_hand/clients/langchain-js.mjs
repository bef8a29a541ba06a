// requires: @langchain/openai@1.5.8 @langchain/core@1.4.0
// manners: invoke stream
// LangChain.js: ChatOpenAI with a base URL of its own.

import { HumanMessage, SystemMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";

const { PARLEY_BASE_URL, PARLEY_MODEL, PARLEY_TURNS, PARLEY_MANNER } = process.env;
const model = new ChatOpenAI({ model: PARLEY_MODEL, apiKey: "none", configuration: { baseURL: PARLEY_BASE_URL } });
const messages = [new SystemMessage("Be kind.")];

for (const turn of JSON.parse(PARLEY_TURNS)) {
  messages.push(new HumanMessage(turn));
  let answer;
  if (PARLEY_MANNER === "stream") {
    for await (const piece of await model.stream(messages)) answer = answer ? answer.concat(piece) : piece;
  } else {
    answer = await model.invoke(messages);
  }
  messages.push(answer);
  console.log(JSON.stringify({ text: answer.text }));
}
