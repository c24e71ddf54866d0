// Markdown within a paragraph: emphasis, code, links. Takes time linear in the text, whatever the text is.
import { element } from "./dom.js";

const MAX_NESTED = 12;
const MAX_TARGET = 2000;
const MAX_SHOWN = 80;

const SPECIAL = /\\[!-/:-@[-`{-~]|`+|\*+|_+|~~|\[|\]|https?:\/\//gi;
const ADDRESS = /[^\s<>"`|\\^{}\u3000-\u303f\uff00-\uffef\u2018-\u201f]+/y;
const AFTER_ADDRESS = ".,;:!?)]*_~'";
const TAGS = { "*": ["em"], "_": ["em"], "**": ["strong"], "__": ["strong"], "***": ["strong", "em"],
  "___": ["strong", "em"], "~~": ["del"] };
const WORD = /[\p{L}\p{N}]/u;

/** Returns the nodes of a paragraph's text. */
export function inline(text) {
  const pieces = scan(text, true);
  pair(pieces);
  return build(pieces);
}

/** Cuts text into strings, nodes, and marks that may open or close emphasis. */
function scan(text, withLinks) {
  const pieces = [], brackets = [], codeEnds = endsOfCode(text), nextParenthesis = finder(text, ")");
  let done = 0, found;
  const special = new RegExp(SPECIAL);
  const upTo = end => { if (end > done) pieces.push(text.slice(done, end)); };
  while ((found = special.exec(text))) {
    const sign = found[0], at = found.index, after = at + sign.length;
    let piece = null, end = after;
    if (sign[0] === "\\") piece = sign[1];
    else if (sign[0] === "`") [piece, end] = code(text, at, sign.length, codeEnds) ?? [null, after];
    else if (sign === "[") {
      upTo(at);
      brackets.push({ piece: pieces.length, at });
      piece = "[";
    } else if (sign === "]") {
      const open = brackets.pop();
      const link = open && withLinks && text[after] === "(" ? linkAt(text, open.at, at, nextParenthesis) : null;
      if (link) {
        pieces.length = open.piece;
        done = at; // the label's text belongs to the link
        brackets.length = 0;
        [piece, end] = link;
      }
    } else if (/^h/i.test(sign)) [piece, end] = (withLinks ? bareAddress(text, at) : null) ?? [null, after];
    else piece = mark(text, at, sign);
    if (piece === null) continue;
    if (sign !== "[") upTo(at);
    pieces.push(piece);
    done = special.lastIndex = end;
  }
  upTo(text.length);
  return pieces;
}

/** Returns a function that finds the next `sign` from a position; positions must not decrease. */
function finder(text, sign) {
  let last = -1;
  return from => {
    if (last < from) last = text.indexOf(sign, from);
    if (last === -1) last = Infinity;
    return last;
  };
}

/** Returns the places of runs of backquotes, by their length. */
function endsOfCode(text) {
  const places = new Map();
  for (const run of text.matchAll(/`+/g)) {
    const length = run[0].length;
    if (!places.has(length)) places.set(length, { next: 0, at: [] });
    places.get(length).at.push(run.index);
  }
  return places;
}

function code(text, at, length, ends) {
  const same = ends.get(length);
  while (same && same.at[same.next] <= at) same.next++;
  const end = same?.at[same.next];
  if (end === undefined) return null;
  let inside = text.slice(at + length, end).replaceAll("\n", " ");
  if (inside.startsWith(" ") && inside.endsWith(" ") && inside.trim()) inside = inside.slice(1, -1);
  return [element("code", { text: inside }), end + length];
}

function mark(text, at, sign) {
  if (!(sign in TAGS)) return null;
  const before = text[at - 1] ?? " ", after = text[at + sign.length] ?? " ";
  const inWord = sign[0] === "_" && WORD.test(before) && WORD.test(after);
  const opens = !inWord && /\S/.test(after), closes = !inWord && /\S/.test(before);
  return opens || closes ? { sign, opens, closes } : null;
}

/** Returns the link whose label is between two brackets, and where it ends; null if it is none that may be followed. */
function linkAt(text, open, close, nextParenthesis) {
  const from = close + 2;
  let end = nextParenthesis(from);
  if (end - from > MAX_TARGET) return null;
  let target = text.slice(from, end);
  if (target.includes("(") && !target.includes("()") && /^[^\s()]*\)/.test(text.slice(end + 1, end + 200))) {
    end = text.indexOf(")", end + 1); // as in .../Mini_(disambiguation)
    target = text.slice(from, end);
  } else if (target.includes("(") && text[end + 1] === ")") {
    target = text.slice(from, ++end);
  }
  const title = /^(\S+)\s+"[^"]*"$/.exec(target.trim());
  const url = safeUrl(title ? title[1] : target.trim().replace(/^<([^<>]*)>$/, "$1"));
  if (!url) return null;
  const label = text.slice(open + 1, close);
  const pieces = scan(label, false);
  pair(pieces);
  return [anchor(url, build(pieces), label), end + 1];
}

function bareAddress(text, at) {
  ADDRESS.lastIndex = at;
  const found = ADDRESS.exec(text)?.[0] ?? "";
  let length = Math.min(found.length, MAX_TARGET);
  while (length && AFTER_ADDRESS.includes(found[length - 1])) length--;
  const shown = found.slice(0, length), url = safeUrl(shown);
  return url && [anchor(url, [document.createTextNode(shown)], shown), at + length];
}

/** Returns the address as a URL if it is one of the web, without a user name that could pass for a host. */
export function safeUrl(target) {
  if (!/^https?:\/\//i.test(target) || /\s/.test(target)) return null;
  try {
    const url = new URL(target);
    return url.username || url.password || !url.host ? null : url;
  } catch {
    return null;
  }
}

/** Makes a link that shows where it leads, unless its label is the address itself. */
function anchor(url, label, text) {
  const link = element("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow", title: url.href },
    element("bdi", {}, label));
  const shown = url.href.replace(/\/$/, "");
  if (text.replace(/\/$/, "") !== shown) {
    const short = shown.length > MAX_SHOWN ? `${shown.slice(0, MAX_SHOWN)}…` : shown;
    link.append(element("bdi", { class: "target", text: ` (${short})` }));
  }
  return link;
}

/** Finds the marks that belong together. A mark that is inside such a pair and has no partner there stays text. */
function pair(pieces) {
  const open = Object.fromEntries(Object.keys(TAGS).map(sign => [sign, []]));
  pieces.forEach((piece, index) => {
    if (!piece.sign) return;
    const partner = piece.closes ? open[piece.sign].at(-1) : undefined;
    if (partner !== undefined && index - partner > 1) {
      for (const waiting of Object.values(open)) while (waiting.at(-1) >= partner) waiting.pop();
      pieces[partner].role = "open";
      piece.role = "close";
    } else if (piece.opens) open[piece.sign].push(index);
  });
}

function build(pieces) {
  const nodes = [], path = [];
  let text = "";
  const add = node => (path.length ? path.at(-1).append(node) : nodes.push(node));
  const addText = () => {
    if (text) add(document.createTextNode(text));
    text = "";
  };
  for (const piece of pieces) {
    const isText = typeof piece === "string" || (piece.sign && !piece.role);
    if (isText) text += piece.sign ?? piece;
    else addText();
    if (isText) continue;
    if (!piece.sign) add(piece);
    else if (piece.role === "close") path.pop();
    else if (path.length >= MAX_NESTED) path.push(path.at(-1));
    else {
      const made = TAGS[piece.sign].map(tag => element(tag));
      add(made[0]);
      if (made[1]) made[0].append(made[1]);
      path.push(made.at(-1));
    }
  }
  addText();
  return nodes;
}
