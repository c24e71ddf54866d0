// Shows the turns of a chat: questions, answers, versions, votes, and the results of calls.
import { AnswerView } from "./answer_view.js";
import { chosenAnswer, wholeCalls } from "./chats.js";
import { copyText, element, icon, iconButton } from "./dom.js";
import { t } from "./strings.js";

const VOTES = { a: "voteA", b: "voteB", tie: "voteTie", bad: "voteBad" };
const SIDES = ["A", "B"];

const waitsForResults = answer => answer.finish === "tool_calls" && wholeCalls(answer).length > 0;

export class TurnsView {
  /** `on`: what to do at a reader's wish: edit, regenerate, retry, choose, switchTo, vote, sendResults, enterKey. */
  constructor(container, on) {
    this.container = container;
    this.on = on;
    this.views = new Map();
  }

  /** Shows a chat from the beginning; `running` while it is being answered. */
  show(chat, running) {
    const focus = document.activeElement?.dataset?.focus;
    const open = [...this.container.querySelectorAll("details[open]")].map(one => one.parentElement.dataset.key);
    this.views.clear();
    this.container.replaceChildren(...chat.turns.map((turn, at) => this.turn(chat, turn, at, running)));
    for (const one of this.container.querySelectorAll("[data-key]")) {
      if (open.includes(one.dataset.key)) one.querySelector("details").open = true;
    }
    if (focus) this.container.querySelector(`[data-focus="${CSS.escape(focus)}"]`)?.focus();
  }

  updateAnswer(answer) { this.views.get(answer)?.update(); }

  turn(chat, turn, at, running) {
    const isLast = at === chat.turns.length - 1, shown = turn.pair ? turn.answers : [chosenAnswer(turn)];
    const answers = shown.map((answer, side) => this.answer(turn, at, answer, side, { isLast, running }));
    return element("article", { class: turn.pair ? "turn pair" : "turn" },
      turn.results ? this.results(turn, at, running) : this.question(turn, at, running),
      element("div", { class: "answers" }, ...answers),
      turn.pair && !running ? this.votes(turn, at, isLast) : null,
      isLast && !running && !turn.pair && waitsForResults(chosenAnswer(turn)) ? this.resultsForm(turn, at) : null);
  }

  question(turn, at, running) {
    const text = element("div", { class: "bubble", dir: "auto", text: turn.content });
    const box = element("section", { class: "question", "aria-label": t("question") }, text);
    const actions = element("div", { class: "actions" }, this.copyButton(() => turn.content, `${at}:copy-question`));
    if (!running) {
      actions.append(iconButton("edit", t("edit"), () => this.openEditor(box, turn, at), { "data-focus": `${at}:edit` }),
        ...this.branches(turn, at));
    }
    box.append(actions);
    return box;
  }

  results(turn, at, running) {
    return element("section", { class: "results", "aria-label": t("results") }, turn.results.map(one => (
      element("div", { class: "result" }, element("div", { class: "call-name" }, t("callResult", { name: one.name })),
        element("pre", { tabindex: "0", text: one.content })))),
    element("div", { class: "actions" }, running ? [] : this.branches(turn, at)));
  }

  branches(turn, at) {
    return this.versions(turn.branch ?? 0, turn.branches?.length ?? 1, to => this.on.switchTo(at, to), `${at}:branch`);
  }

  openEditor(box, turn, at) {
    const field = element("textarea", { "aria-label": t("edit"), rows: "3", on: { keydown: event => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) event.preventDefault(), form.requestSubmit();
      if (event.key === "Escape") event.stopPropagation(), close();
    } } });
    const close = () => {
      form.replaceWith(...hidden);
      box.querySelector(`[data-focus="${at}:edit"]`)?.focus();
    };
    const form = element("form", { class: "editor", on: { submit: event => {
      event.preventDefault();
      if (field.value.trim()) this.on.edit(at, field.value);
    } } }, field, element("div", { class: "editor-foot" },
      element("button", { type: "button", class: "plain", text: t("cancel"), on: { click: close } }),
      element("button", { type: "submit", class: "main", text: t("sendEdited") })));
    const hidden = [...box.childNodes];
    box.replaceChildren(form);
    field.value = turn.content;
    field.focus();
  }

  answer(turn, at, answer, side, { isLast, running }) {
    const hidesName = turn.pair && turn.blind && !turn.vote;
    const place = turn.pair ? t(`answer${SIDES[side]}`) : answer.model;
    const name = turn.pair && !hidesName ? `${place} · ${answer.model}` : place;
    const view = new AnswerView(answer, { name, showsFigures: !hidesName,
      actions: this.answerActions(turn, at, answer, side, { isLast, running }) });
    view.element.dataset.key = `${at}:${side}:${turn.chosen}`;
    if (turn.pair && turn.vote && turn.chosen === side) view.element.classList.add("chosen");
    this.views.set(answer, view);
    return view.element;
  }

  answerActions(turn, at, answer, side, { isLast, running }) {
    const text = () => answer.content || answer.reasoning;
    const actions = answer.finish === "failed" ? [] : [this.copyButton(text, `${at}:copy${side}`)];
    if (running) return actions;
    const hasFailed = answer.finish === "failed" || answer.finish === "broken";
    if (hasFailed) {
      const needsKey = answer.problem?.kind === "keyNeeded";
      actions.push(element("button", { type: "button", class: "plain", text: t(needsKey ? "enterKey" : "tryAgain"),
        "data-focus": `${at}:retry${side}`,
        on: { click: () => (needsKey ? this.on.enterKey() : this.on.retry(at, turn.pair ? side : turn.chosen)) } }));
    }
    if (side === 0 && !hasFailed) {
      actions.push(iconButton("regenerate", t("regenerate"), () => this.on.regenerate(at), { "data-focus": `${at}:again` }));
    }
    if (isLast && !turn.pair) {
      actions.push(...this.versions(turn.chosen, turn.answers.length, to => this.on.choose(at, to), `${at}:version`));
    }
    return actions;
  }

  copyButton(text, focus) {
    const button = iconButton("copy", t("copy"), async () => {
      const copied = await copyText(text());
      button.replaceChildren(icon(copied ? "done" : "close"));
      button.setAttribute("aria-label", t(copied ? "copied" : "notCopied"));
      setTimeout(() => {
        button.replaceChildren(icon("copy"));
        button.setAttribute("aria-label", t("copy"));
      }, 2000);
    }, { "data-focus": focus });
    return button;
  }

  versions(at, count, go, focus) {
    if (count < 2) return [];
    return [
      iconButton("previous", t("earlier"), () => go(at - 1), { disabled: at === 0, "data-focus": `${focus}-` }),
      element("span", { class: "faint version", text: t("version", { at: at + 1, all: count }) }),
      iconButton("next", t("later"), () => go(at + 1), { disabled: at === count - 1, "data-focus": `${focus}+` }),
    ];
  }

  votes(turn, at, isLast) {
    if (!turn.answers.every(answer => answer.finish && answer.finish !== "failed")) return null;
    const buttons = Object.entries(VOTES).map(([vote, key]) => element("button", { type: "button", text: t(key),
      class: turn.vote === vote ? "vote chosen" : "vote", "aria-pressed": String(turn.vote === vote),
      "data-focus": `${at}:vote-${vote}`, on: { click: () => this.on.vote(at, vote) } }));
    const side = SIDES[turn.chosen];
    const said = turn.vote ? [t("voted", { vote: t(VOTES[turn.vote]) }), isLast ? t("goesOn", { side }) : ""].join(" ")
      : t("vote");
    return element("div", { class: "votes", role: "group", "aria-label": t("vote") },
      element("p", { text: said }), element("div", { class: "vote-buttons" }, ...buttons));
  }

  resultsForm(turn, at) {
    const calls = wholeCalls(chosenAnswer(turn));
    const fields = calls.map(call => element("textarea", { rows: "2", placeholder: t("callHint"),
      "aria-label": t("callResult", { name: call.name }) }));
    return element("form", { class: "results-form", on: { submit: event => {
      event.preventDefault();
      this.on.sendResults(at, calls.map((call, index) => ({ id: call.id, name: call.name, content: fields[index].value })));
    } } }, ...fields.flatMap((field, index) => [
      element("div", { class: "faint", text: t("callResult", { name: calls[index].name }) }), field]),
    element("button", { type: "submit", class: "main", text: t("sendResults") }));
  }
}
