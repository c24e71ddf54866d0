// Builds the page's nodes. Text becomes text nodes only: no function here takes HTML.

/**
 * Makes an element.
 *
 * properties: `class`, `text`, `on` (listeners by event), `data` (data- attributes); any other is an attribute, and one
 * that is null, undefined or false is left out.
 * children: nodes, texts, arrays of those; null and undefined are left out.
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (key === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    else if (key === "data") Object.assign(made.dataset, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) made.append(child);
  return made;
}

export const byId = id => document.getElementById(id);

/** Drawings of 24 by 24, in strokes. */
const PATHS = {
  add: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  done: "M5 12.5l4.5 4.5L19 7.5",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  next: "M9 6l6 6-6 6",
  previous: "M15 6l-6 6 6 6",
  regenerate: "M20 5v5h-5M4 19v-5h5M5.5 9.5A7 7 0 0 1 19 9M18.5 14.5A7 7 0 0 1 5 15",
  remove: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  save: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
};

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("aria-hidden", "true");
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}

/** Makes a button that shows a drawing and tells its name to screen readers and on hover. */
export function iconButton(name, label, listener, properties = {}) {
  return element("button", { type: "button", class: "icon", title: label, "aria-label": label, on: { click: listener },
    ...properties }, icon(name));
}

/** Copies text; returns whether it worked. Browsers offer their clipboard to pages of this machine or over TLS only. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const focused = document.activeElement;
    const field = element("textarea", { class: "unseen", "aria-hidden": "true" });
    field.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return copied;
  }
}

/** Hands the browser a file to save. */
export function download(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
