// Conversations: what is in them, what the model is sent, and the rows they become. Nothing here knows the page.

/**
 * A chat is { id, title, changed, system, tools (JSON text), turns }.
 *
 * A turn is a question, { content }, or results of calls, { results: [{ id, name, content }] }; with `answers`, of
 * which `chosen` is the index of the one that the conversation goes on from. `pair`: the two answers are those of two
 * models, and `vote` says which is better. `branches` and `branch`: a turn that was edited keeps the other versions of
 * itself and all that followed; the place of the one shown is null.
 *
 * An answer is { model, content, reasoning, calls: [{ id, name, arguments }], finish, ... }. `finish` is null while it is
 * being written, then "stop", "length" or "tool_calls", as the server says, or "stopped", "broken" or "failed".
 */
export const newId = () => [...crypto.getRandomValues(new Uint8Array(12))].map(byte => byte.toString(16).padStart(2, "0"))
  .join("");

export const newChat = () => ({ id: newId(), title: "", changed: Date.now(), system: "", tools: "", turns: [] });

export const newAnswer = model => ({ model, content: "", reasoning: "", calls: [], finish: null, problem: null, tokens: 0 });

/** Tells whether a value that a browser kept is a chat: another version of the page, or a reader, may have written it. */
export function isChat(value) {
  const isText = text => typeof text === "string";
  const isAnswer = answer => answer && [answer.model, answer.content, answer.reasoning].every(isText)
    && Array.isArray(answer.calls) && answer.calls.every(call => call && [call.name, call.arguments].every(isText));
  const isResult = one => one && [one.name, one.content].every(isText);
  const isTurn = turn => turn && (isText(turn.content) || (Array.isArray(turn.results) && turn.results.every(isResult)))
    && Array.isArray(turn.answers) && turn.answers.every(isAnswer) && Boolean(turn.answers[turn.chosen])
    && (!turn.branches || (Array.isArray(turn.branches) && turn.branches.every(one => !one || one.every(isTurn))));
  return Boolean(value) && [value.id, value.title, value.system, value.tools].every(isText)
    && Array.isArray(value.turns) && value.turns.every(isTurn);
}

export const chosenAnswer = turn => turn.answers[turn.chosen];
export const isEmpty = answer => !answer.content.trim() && !answer.reasoning && !answer.calls.length;
export const isComplete = answer => saysSomething(answer) && ["stop", "tool_calls"].includes(answer.finish);
export const titleOf = chat => chat.title || (chat.turns[0]?.content ?? "").trim().split("\n")[0].slice(0, 80);

/** Returns the calls of an answer, without one that was cut off: neither servers nor training take half of its arguments. */
export const wholeCalls = answer => answer.calls.filter(call => !call.arguments.trim() || isObject(call.arguments));

/** Tells whether an answer holds anything that can be sent back. */
const saysSomething = answer => Boolean(answer.content.trim() || answer.reasoning || wholeCalls(answer).length);

function isObject(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && !Array.isArray(value);
  } catch {
    return false;
  }
}

/** Returns what the model is sent before a turn's answer: the system prompt and all turns through number `upTo`. */
export function historyOf(chat, upTo) {
  const messages = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  chat.turns.slice(0, upTo + 1).forEach((turn, index) => {
    const answer = chosenAnswer(turn), isLast = index === upTo;
    if (!isLast && !saysSomething(answer)) return; // a question that was never answered
    messages.push(...asked(turn), ...(isLast ? [] : [said(answer)]));
  });
  return messages;
}

function asked(turn) {
  if (!turn.results) return [{ role: "user", content: turn.content }];
  return turn.results.map(one => ({ role: "tool", tool_call_id: one.id, name: one.name, content: one.content }));
}

function said(answer) {
  const message = { role: "assistant", content: answer.content }, calls = wholeCalls(answer);
  if (answer.reasoning) message.reasoning_content = answer.reasoning;
  if (calls.length) message.tool_calls = calls.map(call => (
    { id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
  return message;
}

/** Returns the tools of a chat as the server takes them; throws a SyntaxError or TypeError if they are not a list. */
export function toolsOf(chat) {
  if (!chat.tools.trim()) return null;
  const tools = JSON.parse(chat.tools);
  if (!Array.isArray(tools) || !tools.every(tool => tool && typeof tool === "object" && !Array.isArray(tool))) {
    throw new TypeError("[{\"type\": \"function\", \"function\": {…}}]");
  }
  return tools.length ? tools : null;
}

/**
 * Returns the row that a chat becomes in training data; null if it has no complete answer. An answer that was cut off is
 * shown to the model and not learned: it would teach it to end there.
 */
export function rowOf(chat) {
  const last = chat.turns.findLastIndex(turn => isComplete(chosenAnswer(turn)));
  if (last < 0) return null;
  const conversations = historyOf(chat, last).slice(0, -asked(chat.turns[last]).length);
  let at = conversations.length && conversations[0].role === "system" ? 1 : 0;
  for (const turn of chat.turns.slice(0, last)) {
    const answer = chosenAnswer(turn);
    if (!saysSomething(answer)) continue;
    at += asked(turn).length;
    if (!isComplete(answer)) conversations[at] = { ...conversations[at], train: false };
    at++;
  }
  conversations.push(...asked(chat.turns[last]), said(chosenAnswer(chat.turns[last])));
  const tools = toolsOf(chat);
  return { conversations: conversations.map(withReadArguments), ...(tools ? { tools } : {}) };
}

/** Turns the arguments of calls from JSON text into objects, if they are some. */
function withReadArguments(message) {
  if (!message.tool_calls) return message;
  return { ...message, tool_calls: message.tool_calls.map(call => {
    try {
      return { ...call, function: { ...call.function, arguments: JSON.parse(call.function.arguments) } };
    } catch {
      return call;
    }
  }) };
}

export const jsonLines = rows => rows.map(row => `${JSON.stringify(row)}\n`).join("");

/** Starts another version of turn number `at`; the present one, and all that followed, is kept as a branch. */
export function branch(chat, at, turn) {
  const suffix = chat.turns.splice(at), first = suffix[0];
  const branches = first.branches ?? [null];
  branches[first.branch ?? 0] = suffix;
  delete first.branches;
  delete first.branch;
  chat.turns.push({ ...turn, branches: [...branches, null], branch: branches.length });
}

/** Shows another version of turn number `at`. */
export function switchBranch(chat, at, to) {
  const suffix = chat.turns.splice(at), first = suffix[0], { branches } = first;
  branches[first.branch] = suffix;
  delete first.branches;
  delete first.branch;
  chat.turns.push(...branches[to]);
  branches[to] = null;
  Object.assign(chat.turns[at], { branches, branch: to });
}

/** Yields all turns of a chat, those of branches that are not shown included, each with the turns before it. */
export function* allTurns(turns, before = []) {
  for (const [index, turn] of turns.entries()) {
    const earlier = [...before, ...turns.slice(0, index)];
    yield [turn, earlier];
    for (const other of turn.branches ?? []) if (other) yield* allTurns(other, earlier);
  }
}

/** Returns the votes of all chats: the models, the vote, the messages before the answers, and both answers. */
export function votesOf(chats) {
  const votes = [];
  for (const chat of chats) {
    for (const [turn, before] of allTurns(chat.turns)) {
      if (!turn.vote) continue;
      const prompt = historyOf({ ...chat, turns: [...before, turn] }, before.length).map(withReadArguments);
      const answers = turn.answers.map(answer => withReadArguments(said(answer)));
      votes.push({ models: turn.answers.map(answer => answer.model), vote: turn.vote, prompt, answers });
    }
  }
  return votes;
}

/** Counts votes by pair of models; a pair counts as the same whichever answer was A. */
export function tally(votes) {
  const pairs = new Map();
  for (const { models, vote } of votes) {
    const names = [...models].sort(), key = JSON.stringify(names);
    if (!pairs.has(key)) pairs.set(key, { models: names, wins: [0, 0], ties: 0, bad: 0 });
    const pair = pairs.get(key);
    if (vote === "tie") pair.ties++;
    else if (vote === "bad") pair.bad++;
    else pair.wins[names.indexOf(models[vote === "a" ? 0 : 1])]++;
  }
  return [...pairs.values()];
}

/** Returns the votes that prefer one answer as preference rows. */
export function preferenceRows(votes) {
  return votes.filter(one => one.vote === "a" || one.vote === "b").map(({ vote, prompt, answers, models }) => {
    const best = vote === "a" ? 0 : 1;
    return { prompt, chosen: [answers[best]], rejected: [answers[1 - best]], chosen_model: models[best],
      rejected_model: models[1 - best] };
  });
}
