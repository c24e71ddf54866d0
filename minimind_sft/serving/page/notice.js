// A line at the foot of the page: what has happened, and perhaps a button.
import { element, iconButton } from "./dom.js";
import { t } from "./strings.js";

const SECONDS = 10;

export class Notice {
  constructor(box) {
    this.box = box;
    this.timer = 0;
  }

  /** Shows a line; a warning stays until it is closed. */
  show(text, { action = "", act = null, isWarning = false } = {}) {
    clearTimeout(this.timer);
    const button = action && element("button", { type: "button", class: "plain", text: action, on: { click: () => {
      this.hide();
      act();
    } } });
    this.box.replaceChildren(element("span", { text }), ...(button ? [button] : []),
      iconButton("close", t("close"), () => this.hide()));
    this.box.classList.toggle("warning", isWarning);
    this.box.hidden = false;
    if (!isWarning) this.timer = setTimeout(() => this.hide(), SECONDS * 1000);
  }

  hide() { this.box.hidden = true; }
}
