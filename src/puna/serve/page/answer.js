// One answer while it grows: chunks of OpenAI's chat stream in, what the page shows out. Knows no elements.

const SHORTEST = 0.05; // seconds; what comes in less came in one piece, and says nothing about speed

/** Returns an answer that has not begun; `now` is in milliseconds. */
export function newAnswer(now) {
  return {
    text: "",
    calls: [], // { id, name, arguments }: arguments as the text that came
    tokens: [], // { token, logprob, bytes, top }
    routes: [], // for each token: per MoE layer a list of experts
    promptRoutes: null, // counts [layer][expert] of the tokens of the prompt that were read for it
    guards: null, // what the server's protections found
    usage: null,
    finish: null, // stop, length, tool_calls ...; "stopped" when the reader ended it
    error: null,
    asked: now,
    first: null, // when the first token arrived
    last: null,
    chunks: 0,
  };
}

/** Takes a chunk in. */
export function take(answer, chunk, now) {
  if (chunk.usage) answer.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (choice === undefined) return;
  const { delta = {}, logprobs, finish_reason: finish } = choice;
  const brings = Boolean(delta.content || delta.tool_calls?.length || logprobs?.content?.length);
  if (brings) {
    answer.first ??= now;
    answer.last = now;
    answer.chunks += 1;
  }
  if (delta.content) answer.text += delta.content;
  for (const part of delta.tool_calls ?? []) addCall(answer.calls, part);
  for (const entry of logprobs?.content ?? []) answer.tokens.push(readToken(entry));
  if (choice.routed_experts) {
    answer.routes.push(...choice.routed_experts.tokens);
    answer.promptRoutes ??= choice.routed_experts.prompt_counts ?? null;
  }
  if (choice.content_filter_results) answer.guards = choice.content_filter_results;
  if (finish) answer.finish = finish;
}

/** Returns counts and times for people: tokens made and read, seconds to the first, tokens a second; null: unknown. */
export function timings(answer) {
  const made = answer.usage?.completion_tokens ?? (answer.tokens.length || answer.chunks);
  const seconds = answer.first === null ? 0 : (answer.last - answer.first) / 1000;
  return {
    made,
    read: answer.usage?.prompt_tokens ?? null,
    remembered: answer.usage?.prompt_tokens_details?.cached_tokens ?? null,
    firstSeconds: answer.first === null ? null : (answer.first - answer.asked) / 1000,
    perSecond: made > 1 && seconds >= SHORTEST ? (made - 1) / seconds : null,
  };
}

function addCall(calls, { index = calls.length, id, function: called = {} }) {
  calls[index] ??= { id: "", name: "", arguments: "" };
  if (id) calls[index].id = id;
  if (called.name) calls[index].name += called.name;
  if (called.arguments) calls[index].arguments += called.arguments;
}

function readToken({ token, logprob, bytes, top_logprobs: top = [] }) {
  return { token, logprob, bytes, top: top.map(({ token, logprob }) => ({ token, logprob })) };
}
