// Markdown -> nodes: paragraphs, headings, lists, quotes, tables, code. HTML stays text, and nothing is loaded.
import { copyText, element, icon } from "./dom.js";
import { inline } from "./inline.js";
import { t } from "./strings.js";

const MAX_NESTED = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+•]|\d{1,9}[.)]) +(?=\S)/;

const blank = line => !line.trim();
const indentOf = line => line.length - line.trimStart().length;

/** Shows an answer that grows: blocks that are complete are made once, only the last one is made again. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.from = 0; // where the text begins that is not shown for good
    this.kept = 0; // nodes shown for good
    this.code = null; // the last block, if it is code: it grows in place, so that a reader can select in it
  }

  update(text) {
    const lines = linesOf(text.slice(this.from));
    const blocks = parse(lines);
    if (blocks.length === 1 && this.extendCode(blocks[0])) return;
    while (this.container.childNodes.length > this.kept) this.container.lastChild.remove();
    for (const block of blocks) this.container.append(render(block));
    this.code = blocks.at(-1)?.kind === "code" ? blocks.at(-1) : null;
    let complete = blocks.length - 1;
    // The last line is not complete: it may turn out to continue the block before, or to rule no table.
    while (complete > 0 && blocks[complete].line >= lines.length - 2) complete--;
    if (complete > 0) {
      this.kept += complete;
      for (let line = 0; line < blocks[complete].line; line++) this.from = text.indexOf("\n", this.from) + 1;
    }
  }

  extendCode(block) {
    const before = this.code;
    if (block.kind !== "code" || block.language !== before?.language || !block.text.startsWith(before.text)) return false;
    this.container.lastChild.querySelector("pre code").append(block.text.slice(before.text.length));
    this.code = block;
    return true;
  }
}

/** Returns the nodes of a complete text. */
export const markdown = text => parse(linesOf(text)).map(render);

const linesOf = text => text.split("\n").map(line => line.replace(/\r$/, "").replace(/^\t+/, tabs => "    ".repeat(
  tabs.length)));

/** Returns the blocks of lines, each with the line where it begins. */
function parse(lines, nested = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    const [block, next] = fence(lines, at) ?? heading(lines, at) ?? rule(lines, at)
      ?? (nested < MAX_NESTED ? quote(lines, at, nested) ?? list(lines, at, nested) : null)
      ?? table(lines, at) ?? paragraph(lines, at, nested);
    blocks.push({ ...block, line: at });
    at = next;
  }
  return blocks;
}

function fence(lines, at) {
  const found = FENCE.exec(lines[at]);
  if (!found) return null;
  const [, sign, about] = found, indent = indentOf(lines[at]), code = [];
  let next = at + 1;
  for (; next < lines.length; next++) {
    const line = lines[next].trim();
    if (line.length >= sign.length && line === sign[0].repeat(line.length)) break;
    code.push(lines[next].slice(Math.min(indent, indentOf(lines[next]))));
  }
  return [{ kind: "code", language: about.trim().split(/[\s{]/)[0], text: code.join("\n") }, next + 1];
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  return found && [{ kind: "heading", level: found[1].length, text: found[2].trimEnd().replace(/ #+$/, "") }, at + 1];
}

const rule = (lines, at) => (isRule(lines[at]) ? [{ kind: "rule" }, at + 1] : null);

function isRule(line) {
  const signs = line.replaceAll(" ", "");
  return indentOf(line) < 4 && signs.length > 2 && "-*_".includes(signs[0]) && signs === signs[0].repeat(signs.length);
}

function quote(lines, at, nested) {
  let next = at;
  while (next < lines.length && QUOTE.test(lines[next])) next++;
  if (next === at) return null;
  return [{ kind: "quote", blocks: parse(lines.slice(at, next).map(line => line.replace(QUOTE, "")), nested + 1) }, next];
}

function list(lines, at, nested) {
  const first = ITEM.exec(lines[at]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]), base = first[1].length, items = [];
  const startsItem = line => {
    const found = ITEM.exec(line);
    return found && /\d/.test(found[2]) === ordered && found[1].length < base + 2 && !isRule(line) ? found : null;
  };
  let item = null, width = 0, next = at, loose = false;
  while (next < lines.length) {
    const line = lines[next], found = startsItem(line);
    if (found) {
      item = [line.slice(found[0].length)];
      width = found[0].length;
      items.push(item);
    } else if (blank(line)) {
      let following = next;
      while (following < lines.length && blank(lines[following])) following++;
      if (following === lines.length) break;
      if (!startsItem(lines[following]) && indentOf(lines[following]) < base + 2) break;
      item.push(...Array(following - next).fill("")); // all of them: they may belong to code
      loose = true;
      next = following;
      continue;
    } else if (indentOf(line) >= base + 2) item.push(line.slice(Math.min(width, indentOf(line))));
    else if (item.at(-1) && !startsBlock(lines, next, nested)) item.push(line);
    else break;
    next++;
  }
  const blocks = items.map(one => parse(one, nested + 1));
  return [{ kind: "list", ordered, start: parseInt(first[2], 10), loose, items: blocks }, next];
}

function table(lines, at) {
  const aligned = isTable(lines, at);
  if (!aligned) return null;
  let next = at + 2;
  while (next < lines.length && lines[next].includes("|") && !blank(lines[next])) next++;
  const rows = lines.slice(at + 2, next).map(cellsOf);
  return [{ kind: "table", aligned, head: cellsOf(lines[at]), rows }, next];
}

/** Returns how the columns of a table that begins here are aligned; null if none does. */
function isTable(lines, at) {
  const below = lines[at + 1] ?? "";
  if (!lines[at].includes("|") || !below.includes("-") || !/^[ |:-]+$/.test(below)) return null;
  const signs = cellsOf(below);
  if (signs.length !== cellsOf(lines[at]).length || !signs.every(sign => /^:?-+:?$/.test(sign))) return null;
  return signs.map(sign => (sign.endsWith(":") ? (sign.startsWith(":") ? "center" : "right") : "left"));
}

function cellsOf(line) {
  const inside = line.trim().replace(/^\|/, "");
  const cells = inside.split(/(?<!\\)\|/).map(cell => cell.trim().replaceAll("\\|", "|"));
  if (cells.length > 1 && !cells.at(-1)) cells.pop();
  return cells;
}

function startsBlock(lines, at, nested) {
  const line = lines[at];
  return FENCE.test(line) || HEADING.test(line) || isRule(line) || isTable(lines, at)
    || (nested < MAX_NESTED && (QUOTE.test(line) || startsList(line)));
}

/** Tells whether a line can begin a list right below a paragraph: "2020. It was" cannot. */
function startsList(line) {
  const found = ITEM.exec(line);
  return found && (!/\d/.test(found[2]) || parseInt(found[2], 10) === 1);
}

function paragraph(lines, at, nested) {
  let next = at + 1;
  while (next < lines.length && !blank(lines[next]) && !startsBlock(lines, next, nested)) next++;
  return [{ kind: "paragraph", text: lines.slice(at, next).map(line => line.trim()).join("\n") }, next];
}

const RENDERED = {
  paragraph: block => element("p", {}, inline(block.text)),
  heading: block => element(`h${Math.min(block.level + 2, 6)}`, { class: `level-${block.level}` },
    inline(block.text)),
  rule: () => element("hr"),
  quote: block => element("blockquote", {}, block.blocks.map(render)),
  list: block => element(block.ordered ? "ol" : "ul", { start: block.ordered ? block.start : null },
    block.items.map(blocks => element("li", {}, blocks.map(one => (one.kind === "paragraph" && !block.loose
      ? element("div", { class: "line" }, inline(one.text)) : render(one)))))),
  table: block => element("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": t("table") },
    element("table", {}, element("thead", {}, row("th", block.head, block.aligned)),
      element("tbody", {}, block.rows.map(cells => row("td", cells, block.aligned))))),
  code: block => codeBlock(block.text, block.language),
};

const render = block => RENDERED[block.kind](block);

const row = (name, cells, aligned) => element("tr", {}, cells.map((cell, index) => element(name,
  { class: aligned[index] ?? "left", scope: name === "th" ? "col" : null }, inline(cell))));

/** Makes a block of code with its language and a button that copies it. */
export function codeBlock(text, language) {
  const state = element("span", { text: t("copy") }), code = element("code", { text });
  const copy = element("button", { type: "button", class: "copy-code", on: { click: async () => {
    state.textContent = t(await copyText(code.textContent) ? "copied" : "notCopied"); // it may have grown
    setTimeout(() => { state.textContent = t("copy"); }, 2000);
  } } }, icon("copy"), state);
  return element("div", { class: "code" },
    element("div", { class: "code-head" }, element("span", { text: language.slice(0, 40) }), copy),
    element("pre", { tabindex: "0" }, code));
}
