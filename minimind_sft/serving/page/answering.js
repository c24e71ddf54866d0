// Gets an answer from the server into a turn of a chat.
import { Problem, streamAnswer } from "./api.js";
import { historyOf, isEmpty, toolsOf } from "./chats.js";

const SEEDS = 1_000_000;

/** Returns the body of the request for the answer to turn number `at`. */
export function requestOf(chat, at, answer, preferences) {
  const sampling = Object.fromEntries(Object.entries(preferences.sampling).filter(([, value]) => value !== null));
  const tools = toolsOf(chat);
  return { model: answer.model, messages: historyOf(chat, at), seed: Math.floor(Math.random() * SEEDS), ...sampling,
    ...(tools ? { tools } : {}), ...(preferences.thinking ? { open_thinking: true } : {}) };
}

/**
 * Streams an answer into `answer`; calls `changed` with each part. Never throws: `answer.finish` and `answer.problem` say
 * how it ended.
 */
export async function fillAnswer(answer, body, signal, changed) {
  const began = performance.now();
  let firstAt = 0, lastAt = 0, finish = null;
  answer.seed = body.seed;
  try {
    for await (const part of streamAnswer(body, signal)) {
      if (part.content || part.reasoning || part.calls.length) {
        lastAt = performance.now();
        firstAt ||= lastAt;
      }
      answer.content += part.content;
      answer.reasoning += part.reasoning;
      part.calls.forEach(piece => addCall(answer.calls, piece));
      if (part.usage) answer.tokens = part.usage.completion_tokens;
      finish = part.finish ?? finish;
      changed();
    }
    answer.finish = finish ?? "stop";
  } catch (error) {
    const problem = error instanceof Problem ? error : new Problem("cutBroken");
    if (error.name === "AbortError") answer.finish = "stopped";
    else {
      answer.finish = isEmpty(answer) ? "failed" : "broken";
      answer.problem = { kind: problem.kind, message: problem.message, after: problem.after };
    }
  }
  answer.first = firstAt ? (firstAt - began) / 1000 : 0;
  answer.seconds = firstAt ? (lastAt - began) / 1000 : 0;
}

/** Adds a piece of a call: the name comes first, then pieces of the arguments. */
function addCall(calls, piece) {
  const at = piece.index ?? calls.length;
  if (at > calls.length) return;
  calls[at] ??= { id: "", name: "", arguments: "" };
  calls[at].id ||= piece.id ?? "";
  calls[at].name += piece.function?.name ?? "";
  calls[at].arguments += piece.function?.arguments ?? "";
}
