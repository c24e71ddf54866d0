// Shows one answer while it grows: thoughts, text, calls, and how it ended.
import { isEmpty } from "./chats.js";
import { element } from "./dom.js";
import { MarkdownView, codeBlock } from "./markdown.js";
import { t } from "./strings.js";

const MIN_PAUSE = 30;
const PAUSE_PER_COST = 8;
/** The pause between two updates is that many times as long as an update takes: the page stays usable however long an
 * answer is. */

export class AnswerView {
  constructor(answer, { name, showsFigures, actions }) {
    this.answer = answer;
    this.timer = 0;
    this.pause = MIN_PAUSE;
    this.thoughts = element("div", { class: "thoughts-text" });
    this.summary = element("summary");
    this.details = element("details", { class: "thoughts" }, this.summary, this.thoughts);
    this.content = element("div", { class: "content", dir: "auto" });
    this.markdown = new MarkdownView(this.content);
    this.calls = element("div", { class: "calls" });
    this.state = element("p", { class: "state" });
    this.figures = element("span", { class: "figures faint" });
    this.showsFigures = showsFigures;
    this.actions = element("div", { class: "actions" }, ...actions, this.figures);
    this.element = element("section", { class: "answer", "aria-label": name }, element("div", { class: "who", text: name }),
      this.details, this.content, this.calls, this.state, this.actions);
    this.show();
  }

  /** Shows what has come, soon. */
  update() {
    if (!this.timer) this.timer = setTimeout(() => this.show(), this.pause);
  }

  show() {
    clearTimeout(this.timer);
    this.timer = 0;
    const began = performance.now(), { answer } = this, running = answer.finish === null;
    this.details.hidden = !answer.reasoning;
    this.summary.textContent = t(running && !answer.content && !answer.calls.length ? "thinking" : "thought");
    if (this.thoughts.textContent.length !== answer.reasoning.length) this.thoughts.textContent = answer.reasoning;
    this.markdown.update(answer.content);
    this.calls.replaceChildren(...answer.calls.map(callCard));
    this.element.classList.toggle("running", running);
    this.element.setAttribute("aria-busy", String(running));
    this.state.textContent = running ? (isEmpty(answer) ? t("connecting") : "") : stateOf(answer);
    this.state.classList.toggle("wrong", answer.finish === "failed" || answer.finish === "broken");
    this.state.hidden = !this.state.textContent;
    this.actions.hidden = running;
    this.figures.replaceChildren(...(this.showsFigures ? figuresOf(answer) : []));
    this.pause = Math.max(MIN_PAUSE, PAUSE_PER_COST * (performance.now() - began));
  }
}

function callCard(call) {
  let shown = call.arguments;
  try {
    shown = JSON.stringify(JSON.parse(call.arguments), null, 2);
  } catch { /* not complete, or not JSON: shown as it is */ }
  return element("div", { class: "call" },
    element("div", { class: "call-name" }, `${t("call")} `, element("code", { text: call.name })), codeBlock(shown, "json"));
}

/** Returns the line that says how an answer ended, unless it ended well. */
export function stateOf(answer) {
  const { problem } = answer;
  if (problem) {
    const message = problem.message;
    if (problem.kind === "refused") return t("refused", { message });
    return t(problem.kind, { n: problem.after });
  }
  if (answer.finish === "length") return t("cutLength");
  if (answer.finish === "stopped") return t("cutStopped");
  if (answer.finish === "broken") return t("cutBroken");
  if (isEmpty(answer)) return t("empty");
  return answer.content.trim() || answer.calls.length ? "" : t("onlyThoughts");
}

const rounded = number => (number >= 100 ? number.toFixed(0) : number >= 10 ? number.toFixed(1) : number.toFixed(2));

/** Returns tokens, tokens per second since the question was sent, the seconds until the first, and the seed. */
function figuresOf(answer) {
  if (!answer.tokens) return [];
  const { tokens, seconds, first, seed } = answer;
  return [
    ["tokens", tokens === 1 ? t("oneToken") : t("tokens", { n: tokens.toLocaleString() })],
    ["speed", seconds > 0 ? t("speed", { n: rounded(tokens / seconds) }) : ""],
    ["first", first > 0 ? t("first", { n: rounded(first) }) : ""],
    ["seed", seed === undefined ? "" : t("seed", { n: seed })],
  ].filter(([, text]) => text).map(([name, text]) => element("span", { class: `figure ${name}`, text }));
}
