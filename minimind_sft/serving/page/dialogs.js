// The dialogs: settings, and the votes with their tally.
import { jsonLines, preferenceRows, tally, toolsOf, votesOf } from "./chats.js";
import { byId, download, element, iconButton } from "./dom.js";
import { t } from "./strings.js";

/** What a reader may set of the sampling; empty: the model's own. */
const SAMPLING = {
  temperature: { min: 0, max: 2, step: 0.05 },
  top_p: { min: 0.01, max: 1, step: 0.01 },
  top_k: { min: 0, max: 100000, step: 1 },
  max_tokens: { min: 1, max: 1000000, step: 1 },
  frequency_penalty: { min: -2, max: 2, step: 0.1 },
  seed: { min: 0, max: 2147483647, step: 1 },
};

const field = (label, hint, control, problem = null) => element("label", { class: "setting" },
  element("span", { class: "label", text: label }), hint ? element("span", { class: "faint", text: hint }) : null, control,
  problem);

function opened(dialog, title, close, ...content) {
  const heading = element("h2", { id: `${dialog.id}-title`, text: title });
  dialog.replaceChildren(element("div", { class: "dialog-head" }, heading,
    iconButton("close", t("close"), close, { class: "icon dialog-close" })), ...content);
  if (!dialog.open) dialog.showModal();
}

function choices(values, chosen) {
  const select = element("select", {}, ...values.map(([value, text]) => element("option", { value, text })));
  select.value = chosen;
  return select;
}

function text(value, rows) {
  const area = element("textarea", { rows: String(rows) });
  area.value = value;
  return area;
}

function numbers(sampling) {
  return Object.entries(SAMPLING).map(([name, range]) => {
    const input = element("input", { type: "number", name, inputmode: "decimal",
      placeholder: t(name === "seed" ? "random" : "own"), min: String(range.min), max: String(range.max),
      step: String(range.step) });
    input.value = sampling[name] ?? "";
    return [name, input, element("span", { class: "wrong problem", role: "alert", id: `problem-${name}` })];
  });
}

/** Returns a number, null if the field is empty, and undefined if it holds anything else. */
function numberIn(name, input) {
  const { min, max, step } = SAMPLING[name], value = Number(input.value);
  if (!input.value.trim() && !input.validity.badInput) return null;
  const isRight = !input.validity.badInput && value >= min && value <= max && (step < 1 || Number.isInteger(value));
  return isRight ? value : undefined;
}

/** Opens the settings; `changed` is called with { chat, key, preferences } when the dialog closes. */
export function openSettings({ chat, preferences, key, focus, changed }) {
  const dialog = byId("settings");
  const system = text(chat.system, 3), tools = text(chat.tools, 3), sampling = numbers(preferences.sampling);
  const keyField = element("input", { type: "password", autocomplete: "off" });
  const toolsProblem = element("span", { class: "wrong problem", role: "alert" });
  const blind = element("input", { type: "checkbox" });
  const language = choices([["", t("browserLanguage")], ["en", "English"], ["zh", "中文"]], preferences.language);
  const theme = choices([["system", t("system_theme")], ["light", t("light")], ["dark", t("dark")]], preferences.theme);
  keyField.value = key;
  blind.checked = preferences.blind;
  tools.spellcheck = false;

  const current = () => ({ chat: { system: system.value, tools: tools.value }, key: keyField.value.trim(), preferences: {
    sampling: Object.fromEntries(sampling.map(([name, input]) => [name, numberIn(name, input)])), blind: blind.checked,
    language: language.value, theme: theme.value } });

  /** Says what is wrong; returns the first field that is. */
  function firstWrong() {
    let wrong = null;
    toolsProblem.textContent = "";
    try {
      toolsOf({ tools: tools.value });
    } catch (error) {
      toolsProblem.textContent = t("toolsWrong", { message: error.message });
      wrong = tools;
    }
    for (const [name, input, problem] of sampling) {
      const isWrong = numberIn(name, input) === undefined;
      problem.textContent = isWrong ? t("numberWrong", SAMPLING[name]) : "";
      input.setAttribute("aria-invalid", String(isWrong));
      if (isWrong) wrong ??= input;
    }
    return wrong;
  }

  let isApplied = false;
  const apply = () => {
    if (!isApplied) isApplied = true, changed(current());
  };
  const close = () => {
    const wrong = firstWrong();
    if (wrong) wrong.focus();
    else apply(), dialog.close();
  };
  dialog.oncancel = event => { // Esc
    event.preventDefault();
    close();
  };
  dialog.onclose = () => { if (!firstWrong()) apply(); }; // browsers close a dialog at the second Esc, whatever we say
  [language, theme].forEach((select, at) => select.addEventListener("change", () => {
    if (firstWrong()) return;
    changed(current());
    openSettings({ chat, preferences, key: keyField.value.trim(), changed });
    dialog.querySelectorAll(".appearance select")[at].focus();
  }));
  opened(dialog, t("settings"), close,
    element("h3", { text: t("thisChat") }),
    field(t("system"), t("systemHint"), system), field(t("tools"), t("toolsHint"), tools, toolsProblem),
    element("h3", { text: t("allChats") }),
    element("div", { class: "numbers" }, ...sampling.map(([name, input, problem]) => (
      field(t(name === "seed" ? "seedSetting" : name), "", input, problem)))),
    element("label", { class: "toggle" }, blind, element("span", { text: t("blind") })),
    element("div", { class: "numbers appearance" }, field(t("language"), "", language), field(t("theme"), "", theme)),
    element("form", { on: { submit: event => { event.preventDefault(); close(); } } }, field(t("key"), t("keyHint"), keyField),
      element("button", { type: "submit", class: "main", text: t("done") })));
  if (focus === "key") keyField.focus();
}

/** Opens the votes of all chats: the tally, and two files to save. */
export function openVotes(chats) {
  const dialog = byId("votes"), votes = votesOf(chats), pairs = tally(votes);
  dialog.oncancel = dialog.onclose = null;
  if (!votes.length) {
    opened(dialog, t("votes"), () => dialog.close(), element("p", { class: "faint", text: t("noVotes") }));
    return;
  }
  const cards = pairs.map(pair => element("dl", { class: "tally" }, ...[
    ...pair.models.map((model, side) => [t("wins", { model }), pair.wins[side]]), [t("ties"), pair.ties],
    [t("bothBad"), pair.bad]].map(([name, count]) => (
    element("div", {}, element("dt", { text: name }), element("dd", { text: String(count) }))))));
  const rows = preferenceRows(votes);
  const button = (key, name, content) => element("button", { type: "button", class: "block", text: t(key),
    on: { click: () => download(name, content, "application/json") } });
  opened(dialog, t("votes"), () => dialog.close(), ...cards, element("div", { class: "dialog-foot" },
    button("saveVotes", "votes.json", JSON.stringify({ tally: pairs, votes }, null, 1)),
    rows.length ? button("savePreferences", "preferences.jsonl", jsonLines(rows)) : null));
}
