// The list of conversations; on a narrow screen, it slides over the page.
import { titleOf } from "./chats.js";
import { byId, element, icon, iconButton } from "./dom.js";
import { t } from "./strings.js";

const NARROW = matchMedia("(max-width: 800px)");

export class Sidebar {
  /** `on`: open(chat), remove(chat), rename(chat, title). */
  constructor(on) {
    this.on = on;
    this.bar = byId("sidebar");
    this.opener = byId("open-menu");
    const bars = element("span", { class: "bars", "aria-hidden": "true" });
    this.opener.append(bars);
    NARROW.addEventListener("change", () => this.setOpen(false));
    this.setOpen(false);
  }

  open() {
    this.setOpen(true);
    byId("close-menu").focus();
  }

  /** Closes the list if it covers the page; returns whether it did. */
  close() {
    const wasOpen = NARROW.matches && this.bar.classList.contains("open");
    this.setOpen(false);
    if (wasOpen) this.opener.focus();
    return wasOpen;
  }

  setOpen(isOpen) {
    this.bar.classList.toggle("open", isOpen);
    this.bar.inert = NARROW.matches && !isOpen;
    document.querySelector("main").inert = NARROW.matches && isOpen;
    this.opener.setAttribute("aria-expanded", String(isOpen));
  }

  show(chats, shown) {
    byId("chats").replaceChildren(...chats.map(chat => this.item(chat, chat === shown)));
  }

  item(chat, isShown) {
    const title = titleOf(chat) || t("untitled");
    const item = element("li", { class: isShown ? "shown" : "" },
      element("button", { type: "button", class: "chat", text: title, title, "aria-current": isShown ? "true" : null,
        on: { click: () => this.on.open(chat) } }));
    if (isShown) {
      item.append(iconButton("edit", t("rename"), () => this.rename(item, chat, title)),
        iconButton("remove", t("remove"), () => this.on.remove(chat)));
    }
    return item;
  }

  rename(item, chat, title) {
    const field = element("input", { type: "text", "aria-label": t("title"), maxlength: "200" });
    let isDone = false;
    const end = keep => {
      if (isDone) return;
      isDone = true;
      this.on.rename(chat, keep ? field.value.trim() : chat.title);
    };
    field.value = title;
    field.addEventListener("keydown", event => {
      if (event.isComposing || (event.key !== "Enter" && event.key !== "Escape")) return;
      event.stopPropagation();
      end(event.key === "Enter");
    });
    field.addEventListener("blur", () => end(true));
    item.replaceChildren(icon("edit"), field);
    field.select();
  }
}
