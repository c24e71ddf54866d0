// Keeps conversations and preferences in this browser, or in memory where it keeps nothing.
import { isChat } from "./chats.js";

const CHAT = "minimind-chat:", PREFERENCES = "minimind-preferences", KEY = "minimind-key";

export const DEFAULTS = { language: "", theme: "system", model: "", other: "", compare: false, blind: true, thinking: false,
  sampling: {} };

/** Returns an object if the text is the JSON of one; else null. */
function objectIn(text) {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Tells whether the browser keeps anything. */
export function isKept() {
  try {
    localStorage.setItem("minimind-test", "");
    localStorage.removeItem("minimind-test");
    return true;
  } catch {
    return false;
  }
}

export function readPreferences() {
  try {
    const kept = objectIn(localStorage.getItem(PREFERENCES)) ?? {};
    const isRight = name => typeof kept[name] === typeof DEFAULTS[name] && kept[name] !== null;
    return Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, isRight(name) ? kept[name] : value]));
  } catch {
    return { ...DEFAULTS };
  }
}

export const writePreferences = preferences => write(PREFERENCES, preferences);

/** Returns all chats, the last one first. */
export function readChats() {
  const chats = [];
  try {
    for (let index = 0; index < localStorage.length; index++) {
      const name = localStorage.key(index);
      const chat = name.startsWith(CHAT) ? objectIn(localStorage.getItem(name)) : null;
      if (isChat(chat)) chats.push(chat);
    }
  } catch { /* without storage, there are none */ }
  return chats.sort((a, b) => b.changed - a.changed);
}

/** Returns one chat as it is kept now: another tab may have changed it. */
export function readChat(id) {
  try {
    const chat = objectIn(localStorage.getItem(CHAT + id));
    return isChat(chat) ? chat : null;
  } catch {
    return null;
  }
}

/** Returns false if there is no room. */
export const writeChat = chat => write(CHAT + chat.id, chat);

export function removeChat(id) {
  try {
    localStorage.removeItem(CHAT + id);
  } catch { /* nothing was kept */ }
}

/** Returns the API key; only this tab knows it, until it closes. */
export function readKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function writeKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch { /* asked for again when the page is loaded again */ }
}

/** Calls `listener` with a chat's id when another tab changes or deletes it. */
export function onOtherTab(listener) {
  addEventListener("storage", event => { if (event.key?.startsWith(CHAT)) listener(event.key.slice(CHAT.length)); });
}
