// Speaks to a proxy through openai-node: `node caller.mjs PACKAGE_FOLDER`, what to do as JSON on standard input.
// Says what happened on standard output, a JSON object in each line; sdks.py tells both forms.

import { text } from "node:stream/consumers";

const { default: OpenAI } = await import(`${process.argv[2]}/index.mjs`);
const plan = JSON.parse(await text(process.stdin));

let answers = []; // of the requests that the SDK has sent of late, its repetitions among them

async function recorded(...request) {
  const answer = await fetch(...request);
  answers.push(answer);
  return answer;
}

function sdk(more = {}) {
  answers = [];
  return new OpenAI({ baseURL: `${plan.url}/v1`, apiKey: plan.key, maxRetries: 0, fetch: recorded, ...more });
}

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

// Every way of asking puts the pieces of a stream into `pieces`, also of one that fails, and returns what it was given.

const COUNTED = { stream_options: { include_usage: true } };

async function plain(client, request) {
  const { data, response, request_id } = await client.chat.completions.create(request).withResponse();
  const [{ message, finish_reason }] = data.choices;
  const own = response === answers.at(-1) && data._request_id === request_id;
  return { message, finish: finish_reason, usage: data.usage, request: own && request_id };
}

async function stream(client, request, pieces) {
  const asked = client.chat.completions.create({ ...request, ...COUNTED, stream: true });
  const { data, request_id } = await asked.withResponse();
  const told = { message: { role: "assistant", content: "" }, request: request_id };
  for await (const chunk of data) {
    for (const { delta, finish_reason } of chunk.choices) {
      if (delta.content) pieces.push(delta.content);
      told.finish = finish_reason ?? told.finish;
    }
    if (chunk.usage) told.usage = { ...chunk.usage, alone: chunk.choices.length === 0 };
  }
  told.message.content = pieces.join("");
  return told;
}

async function helper(client, request, pieces) {
  const runner = client.chat.completions.stream({ ...request, ...COUNTED });
  const events = { chunk: 0, content: 0, message: 0, error: 0, end: 0 };
  for (const name of Object.keys(events)) runner.on(name, () => events[name]++);
  runner.on("content", (piece) => pieces.push(piece));
  try {
    const message = await runner.finalMessage();
    const { choices } = await runner.finalChatCompletion();
    const same = (await runner.finalContent()) === message.content && choices[0].message.content === message.content;
    const usage = await runner.totalUsage();
    return { message, finish: choices[0].finish_reason, usage, events: { ...events, same } };
  } catch (fault) {
    fault.events = events;
    throw fault;
  }
}

async function iteratedHelper(client, request, pieces) {
  const runner = client.chat.completions.stream({ ...request, ...COUNTED });
  for await (const chunk of runner) {
    if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
  }
  const { choices, usage } = await runner.finalChatCompletion();
  return { message: choices[0].message, finish: choices[0].finish_reason, usage };
}

const WAYS = { plain, stream, helper, "iterated-helper": iteratedHelper };

async function asked(way, request, options = {}, client = sdk(options)) {
  const pieces = [];
  answers = [];
  try {
    const told = await WAYS[way](client, request, pieces);
    return { ...told, text: told.message.content, pieces, ...heads() };
  } catch (fault) {
    return { pieces, fault: described(fault), ...heads() };
  }
}

function heads() {
  const headers = answers.map((answer) => Object.fromEntries(answer.headers));
  return { headers: headers.at(-1) ?? {}, attempts: headers.length };
}

function described(fault) {
  const { status = null, code = null, type = null, param = null, message, requestID = null, events = null } = fault;
  const api = fault instanceof OpenAI.APIError && fault instanceof (OpenAI[fault.constructor.name] ?? Array);
  return { class: fault.constructor.name, api, status, code, type, param, message, request: requestID, events };
}

// --- chats

async function talk(model, way) {
  const label = `[${plan.client} ${model} ${way}]`;
  const client = sdk();
  const turn = (messages) => asked(way, { model, messages, user: label }, {}, client);
  const user = (content) => ({ role: "user", content });
  const messages = [];
  const turns = [];
  for (const content of plan.turns) {
    messages.push(user(turns.length ? content : `${label}: ${content}`));
    const told = await turn(messages);
    turns.push(told);
    messages.push(told.message);
  }
  const edited = await turn([...messages.slice(0, 2), user(plan.edit)]);
  const again = await turn(messages.slice(0, 2 * plan.turns.length - 1));
  const onward = await turn([...messages, user(plan.onward)]);
  say({ id: `talk ${model} ${way}`, label, turns, edited, again, onward });
}

// --- faults

async function meet(name, { model, text: content, more = {}, options = {} }, way) {
  const [key, retries] = [options.key ?? plan.key, options.retries ?? 0];
  const label = `[${plan.client} ${name} ${way}]`;
  const request = { model, messages: [{ role: "user", content: `${label}\n\n${content}` }], user: label, ...more };
  say({ id: `fault ${name} ${way}`, ...(await asked(way, request, { apiKey: key, maxRetries: retries })) });
}

// --- silence: the bot is slower than the proxy's heartbeat

async function wait(way) {
  const label = `[${plan.client} waits ${way}]`;
  const options = { baseURL: `${plan.slow}/v1` };
  const turn = (content) => asked(way, { model: "newoaks", messages: [{ role: "user", content }], user: label }, options);
  say({ id: `wait ${way}`, label, heard: await turn(label), failed: await turn(`${label}\nfault failed`) });
}

// --- leaving: the bot stops in the midst of its reply, or before it, and the client does not wait

const LEAVING = {
  async break(client, request, pieces) {
    for await (const chunk of await client.chat.completions.create({ ...request, stream: true })) {
      pieces.push(chunk.choices[0].delta.content);
      if (pieces.join("")) break;
    }
  },
  async controller(client, request, pieces) {
    const chunks = await client.chat.completions.create({ ...request, stream: true });
    for await (const chunk of chunks) {
      pieces.push(chunk.choices[0].delta.content);
      if (pieces.join("")) chunks.controller.abort();
    }
  },
  async signal(client, request, pieces) {
    const { signal, abort } = aborting();
    for await (const chunk of await client.chat.completions.create({ ...request, stream: true }, { signal })) {
      pieces.push(chunk.choices[0].delta.content);
      if (pieces.join("")) abort();
    }
  },
  async helper(client, request, pieces) {
    const runner = client.chat.completions.stream(request);
    runner.on("content", (piece) => {
      pieces.push(piece);
      runner.abort();
    });
    await runner.done();
  },
  async early(client, request) {
    const { signal, abort } = aborting();
    setTimeout(abort, 1000 * plan.patience);
    await client.chat.completions.create(request, { signal });
  },
  async timeout(client, request) {
    await client.chat.completions.create(request, { timeout: 1000 * plan.patience });
  },
};

function aborting() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

async function leave(manner) {
  const label = `[${plan.client} leaves ${manner}]`;
  const fault = ["early", "timeout"].includes(manner) ? "slow" : "stall";
  const messages = [{ role: "user", content: `${label}\nfault ${fault}` }];
  const request = { model: "newoaks", messages, user: label };
  const pieces = [];
  let raised = null;
  try {
    await LEAVING[manner](sdk(), request, pieces);
  } catch (error) {
    raised = described(error);
  }
  const content = pieces.join("");
  const more = [...messages, { role: "assistant", content }, { role: "user", content: plan.onward }];
  const next = content ? await asked("plain", { ...request, messages: more }) : null;
  say({ id: `leave ${manner}`, label, text: content, fault: raised, next });
}

// --- models

async function models() {
  const client = sdk();
  const listed = [];
  for await (const model of client.models.list()) listed.push(model);
  const retrieved = [];
  for (const { id } of listed) retrieved.push(await client.models.retrieve(id));
  const fault = await client.models.retrieve("no-such-bot").catch(described);
  const elsewhere = await client.embeddings.create({ model: "newoaks", input: "Hello" }).catch(described);
  say({ id: "models", listed, retrieved, fault, elsewhere });
}

for (const model of plan.models) for (const way of Object.keys(WAYS)) await talk(model, way);
for (const [name, how] of Object.entries(plan.faults)) {
  for (const way of Object.keys(WAYS).slice(0, how.ways)) await meet(name, how, way);
}
for (const way of Object.keys(WAYS)) await wait(way);
for (const manner of Object.keys(LEAVING)) await leave(manner);
await models();
say({ id: "end" });
