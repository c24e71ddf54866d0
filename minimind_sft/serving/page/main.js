// The chat page: its state, and what happens at a click or a key.
import { stateOf } from "./answer_view.js";
import { fillAnswer, requestOf } from "./answering.js";
import { fetchModels, setKey } from "./api.js";
import { branch, chosenAnswer, isEmpty, jsonLines, newAnswer, newChat, rowOf, switchBranch, titleOf } from "./chats.js";
import { openSettings, openVotes } from "./dialogs.js";
import { byId, download, element, icon } from "./dom.js";
import { Notice } from "./notice.js";
import { Sidebar } from "./sidebar.js";
import * as storage from "./storage.js";
import { languageOfBrowser, setLanguage, t, translate } from "./strings.js";
import { TurnsView } from "./turns_view.js";

const SAVE_EVERY = 2000;
const ASK_AGAIN = 3000;
const NEAR_END = 80;
const MAX_ANNOUNCED = 2000;
const EXAMPLES = ["example1", "example2", "example3", "example4"];

const preferences = storage.readPreferences();
const running = new Map(); // chat id -> its AbortController
let chats = storage.readChats(), chat = newChat(), models = [], saveTimer = 0, modelsTimer = 0, followsEnd = true;

const message = byId("message"), scroll = byId("scroll"), notice = new Notice(byId("notice"));
const turns = new TurnsView(byId("turns"), { edit, regenerate, retry, choose, switchTo, vote, sendResults,
  enterKey: () => showSettings("key") });
const sidebar = new Sidebar({ open: openChat, remove, rename: renamed });

// Saving

function save(one) {
  one.changed = Date.now();
  if (!chats.includes(one)) chats.unshift(one);
  if (!storage.writeChat(one)) notice.show(t(storage.isKept() ? "full" : "noStorage"), { isWarning: true });
  sidebar.show(chats, chat);
}

function saveRunning() {
  saveTimer = 0;
  for (const one of chats) if (running.has(one.id)) storage.writeChat(one);
}

function changePreferences(changes) {
  Object.assign(preferences, changes);
  storage.writePreferences(preferences);
}

// Showing

function applyAppearance() {
  setLanguage(preferences.language || languageOfBrowser());
  if (preferences.theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = preferences.theme;
  translate(document);
  byId("export-one").title = t("exportOne");
  byId("think-label").title = t("thinkHint");
  byId("compare").parentElement.title = t("compareHint");
}

function showAll() {
  applyAppearance();
  sidebar.show(chats, chat);
  showModels();
  showChat();
}

function showChat() {
  const busy = running.has(chat.id);
  if (chat.turns.length) turns.show(chat, busy);
  else byId("turns").replaceChildren(welcome());
  byId("turns").classList.toggle("wide", chat.turns.some(turn => turn.pair));
  byId("title").textContent = titleOf(chat) || t("untitled");
  document.title = titleOf(chat) || t("page");
  byId("export-one").hidden = !chat.turns.length;
  const send = byId("send");
  send.replaceChildren(t(busy ? "stop" : "send"));
  send.classList.toggle("stops", busy);
  follow();
}

function welcome() {
  return element("div", { class: "welcome" }, element("h2", { text: t("welcome") }),
    element("p", { class: "faint", text: t("welcomeNote") }),
    element("div", { class: "examples" }, ...EXAMPLES.map(key => element("button", { type: "button", text: t(key),
      on: { click: () => ask(t(key)) } }))));
}

function showModels() {
  const options = names => names.map(name => element("option", { value: name, text: name }));
  const model = byId("model"), other = byId("other");
  model.replaceChildren(...(models.length ? options(models) : [element("option", { value: "", text: t("noModels") })]));
  other.replaceChildren(...options(models));
  model.value = models.includes(preferences.model) ? preferences.model : models[0] ?? "";
  other.value = models.includes(preferences.other) ? preferences.other : models[1] ?? models[0] ?? "";
  byId("compare").checked = preferences.compare;
  other.hidden = !preferences.compare;
  byId("think").checked = preferences.thinking;
}

function follow() {
  if (followsEnd) scroll.scrollTop = scroll.scrollHeight;
  byId("to-end").hidden = followsEnd;
}

const announce = text => { byId("announce").textContent = text; };

// Asking

async function answerTurn(one, at, answers) {
  const abort = new AbortController();
  const bodies = answers.map(answer => requestOf(one, at, answer, preferences));
  running.set(one.id, abort);
  save(one);
  if (one === chat) showChat();
  announce(t("writing"));
  await Promise.all(answers.map((answer, index) => fillAnswer(answer, bodies[index], abort.signal, () => {
    turns.updateAnswer(answer);
    saveTimer ||= setTimeout(saveRunning, SAVE_EVERY);
  })));
  running.delete(one.id);
  if (answers.some(answer => answer.problem)) loadModels({ isQuiet: true }); // it may be another server now
  if (!chats.includes(one)) return; // deleted meanwhile
  save(one);
  if (one !== chat) return;
  showChat();
  const said = answers.map(answer => `${answer.content} ${stateOf(answer)}`.trim()).join("\n");
  announce(`${t("ended")} ${said.slice(0, MAX_ANNOUNCED)}`);
}

/** Returns what a new turn gets as its answers: one, or two if models are compared. */
function emptyAnswers() {
  const first = byId("model").value;
  if (!preferences.compare) return { answers: [newAnswer(first)], chosen: 0 };
  const names = [first, byId("other").value];
  if (preferences.blind && Math.random() < 0.5) names.reverse();
  return { answers: names.map(newAnswer), chosen: 0, pair: true, blind: preferences.blind, vote: null };
}

function ask(text) {
  if (!text.trim() || running.has(chat.id)) return;
  startTurn({ content: text });
}

function startTurn(turn) {
  const made = { ...turn, ...emptyAnswers() };
  chat.turns.push(made);
  message.value = "";
  fitMessage();
  followsEnd = true;
  message.focus();
  answerTurn(chat, chat.turns.length - 1, made.answers);
}

function startBranch(at, turn) {
  const made = { ...turn, ...emptyAnswers() };
  branch(chat, at, made);
  followsEnd = true;
  message.focus();
  answerTurn(chat, at, chat.turns[at].answers);
}

function edit(at, text) { startBranch(at, { content: text }); }

function regenerate(at) {
  const turn = chat.turns[at], { content, results } = turn;
  if (turn.pair || preferences.compare || at < chat.turns.length - 1) {
    startBranch(at, results ? { results } : { content });
    return;
  }
  turn.answers.push(newAnswer(byId("model").value));
  turn.chosen = turn.answers.length - 1;
  answerTurn(chat, at, [chosenAnswer(turn)]);
}

/** Asks for an answer again that failed: in its place if nothing of it came, else beside what came. */
function retry(at, index) {
  const turn = chat.turns[at];
  if (!isEmpty(turn.answers[index])) {
    regenerate(at);
    return;
  }
  turn.answers[index] = newAnswer(turn.pair ? turn.answers[index].model : byId("model").value);
  answerTurn(chat, at, [turn.answers[index]]);
}

function sendResults(at, results) { startTurn({ results }); }

function choose(at, to) {
  chat.turns[at].chosen = to;
  save(chat);
  showChat();
}

function switchTo(at, to) {
  switchBranch(chat, at, to);
  save(chat);
  showChat();
}

function vote(at, side) {
  const turn = chat.turns[at];
  turn.vote = turn.vote === side ? null : side;
  if (at === chat.turns.length - 1) turn.chosen = turn.vote === "b" ? 1 : 0;
  save(chat);
  showChat();
}

// Chats

function openChat(one) {
  chat = one;
  followsEnd = true;
  showChat();
  sidebar.show(chats, chat);
  sidebar.close();
  message.focus();
}

function remove(one) {
  running.get(one.id)?.abort();
  const at = chats.indexOf(one);
  chats.splice(at, 1);
  storage.removeChat(one.id);
  if (one === chat) openChat(newChat());
  else sidebar.show(chats, chat);
  notice.show(t("removed"), { action: t("undo"), act: () => {
    chats.splice(at, 0, one);
    storage.writeChat(one);
    sidebar.show(chats, chat);
  } });
}

function renamed(one, title) {
  one.title = title;
  save(one);
  showChat();
}

function exportChats(which, name) {
  const rows = [];
  for (const one of which) {
    try {
      rows.push(rowOf(one));
    } catch (error) {
      notice.show(`${titleOf(one)}: ${t("toolsWrong", { message: error.message })}`, { isWarning: true });
      return;
    }
  }
  const found = rows.filter(Boolean);
  if (!found.length) {
    notice.show(t("nothingToSave"));
    return;
  }
  download(name, jsonLines(found), "application/jsonl");
  notice.show(found.length === 1 ? t("savedOne") : t("saved", { n: found.length }));
}

// Keys, clicks, and the rest of the world

function fitMessage() {
  message.style.height = "auto";
  message.style.height = `${Math.min(message.scrollHeight, 240)}px`;
}

function showSettings(focus) {
  sidebar.close();
  openSettings({ chat, preferences, key: storage.readKey(), focus, changed: changes => {
    if (changes.chat) Object.assign(chat, changes.chat), chat.turns.length && save(chat);
    if (changes.key !== undefined) useKey(changes.key);
    changePreferences(changes.preferences);
    showAll();
  } });
}

function useKey(key) {
  const changed = key !== storage.readKey();
  storage.writeKey(key);
  setKey(key);
  if (changed || !models.length) loadModels();
}

/** Asks for the names of the models, again and again while the server does not answer; says so once, unless `isQuiet`. */
async function loadModels({ isQuiet = false } = {}) {
  clearTimeout(modelsTimer);
  try {
    models = await fetchModels();
    if (modelsTimer) notice.hide();
    modelsTimer = 0;
  } catch (error) {
    const isKnown = isQuiet || modelsTimer;
    if (error.kind === "keyNeeded") models = [];
    if (error.kind === "noServer") modelsTimer = setTimeout(loadModels, ASK_AGAIN, { isQuiet });
    if (isKnown) return;
    const needsKey = error.kind === "keyNeeded";
    notice.show(error.kind === "refused" ? t("refused", { message: error.message }) : t(error.kind, { n: error.after }),
      { isWarning: true, action: t(needsKey ? "enterKey" : "tryAgain"),
        act: () => (needsKey ? showSettings("key") : loadModels()) });
  }
  showModels();
}

const stop = () => running.get(chat.id)?.abort();

byId("composer").addEventListener("submit", event => {
  event.preventDefault();
  if (running.has(chat.id)) stop();
  else ask(message.value);
});
message.addEventListener("input", fitMessage);
message.addEventListener("keydown", event => {
  if (event.isComposing || event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  if (!running.has(chat.id)) ask(message.value);
});
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (!sidebar.close()) stop();
});
byId("model").addEventListener("change", event => changePreferences({ model: event.target.value }));
byId("other").addEventListener("change", event => changePreferences({ other: event.target.value }));
byId("compare").addEventListener("change", event => {
  changePreferences({ compare: event.target.checked });
  showModels();
});
byId("think").addEventListener("change", event => changePreferences({ thinking: event.target.checked }));
byId("new-chat").addEventListener("click", () => openChat(newChat()));
byId("open-menu").addEventListener("click", () => sidebar.open());
byId("close-menu").addEventListener("click", () => sidebar.close());
byId("veil").addEventListener("click", () => sidebar.close());
byId("open-settings").addEventListener("click", () => showSettings());
byId("open-votes").addEventListener("click", () => { sidebar.close(); openVotes(chats); });
byId("export-all").addEventListener("click", () => exportChats(chats, "chats.jsonl"));
byId("export-one").addEventListener("click", () => exportChats([chat], "chat.jsonl"));
byId("to-end").addEventListener("click", () => { followsEnd = true; follow(); });
scroll.addEventListener("scroll", () => {
  followsEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_END;
  byId("to-end").hidden = followsEnd;
});
new ResizeObserver(follow).observe(byId("turns"));
addEventListener("pagehide", saveRunning);
storage.onOtherTab(id => {
  if (running.has(id)) return;
  const kept = storage.readChat(id);
  chats = [...(kept ? [kept] : []), ...chats.filter(one => one.id !== id)].sort((a, b) => b.changed - a.changed);
  if (chat.id === id && kept) chat = kept, showChat();
  sidebar.show(chats, chat);
});

for (const one of document.querySelectorAll("[data-icon]")) one.append(icon(one.dataset.icon));
for (const one of chats) {
  for (const turn of one.turns) for (const answer of turn.answers) answer.finish ??= "broken"; // the page was closed
}
setKey(storage.readKey());
showAll();
if (matchMedia("(hover: hover)").matches) message.focus();
loadModels();
