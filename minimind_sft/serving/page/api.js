// Talks to the server that sent the page, in OpenAI's interface.

const CHAT = "v1/chat/completions";
let key = "";
export function setKey(text) { key = text; }

/** A request that got no answer. kind: "noServer", "refused", "busy" (after: seconds), "keyNeeded" or "cutBroken". */
export class Problem extends Error {
  constructor(kind, message = "", after = 0) {
    super(message);
    Object.assign(this, { kind, after });
  }
}

async function ask(address, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(address, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("noServer");
  }
  if (response.ok) return response;
  const message = await messageOf(response);
  if (response.status === 401) throw new Problem("keyNeeded", message);
  if (response.status === 429) throw new Problem("busy", message, Number(response.headers.get("Retry-After")) || 1);
  throw new Problem("refused", message);
}

async function messageOf(response) {
  try {
    const message = (await response.json()).error.message;
    return typeof message === "string" ? message : `HTTP ${response.status}`;
  } catch {
    return `HTTP ${response.status}`;
  }
}

/** Returns the names of the models that can chat; of all if none can, as the server then says why. */
export async function fetchModels() {
  const { data } = await (await ask("v1/models")).json();
  const chatting = data.filter(model => model.endpoints?.includes(`/${CHAT}`) ?? true);
  return (chatting.length ? chatting : data).map(model => String(model.id));
}

/**
 * Asks for an answer; yields the parts of the stream as they come: objects with `content`, `reasoning`, `calls`, `finish`
 * or `usage`.
 *
 * Throws a Problem, or an AbortError after `signal`.
 */
export async function* streamAnswer(body, signal) {
  const response = await ask(CHAT, { method: "POST", signal, body: JSON.stringify(
    { ...body, stream: true, stream_options: { include_usage: true } }), headers: { "Content-Type": "application/json" } });
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem("refused", String(chunk.error.message ?? ""));
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    finished ||= Boolean(choice?.finish_reason);
    yield { content: delta.content ?? "", reasoning: delta.reasoning_content ?? "", calls: delta.tool_calls ?? [],
      finish: choice?.finish_reason ?? null, usage: chunk.usage ?? null };
  }
  if (!finished) throw new Problem("cutBroken");
}

/** Yields the data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(error => {
        throw error.name === "AbortError" ? error : new Problem("cutBroken");
      });
      if (done) return;
      const lines = (waiting + value).split("\n");
      waiting = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
