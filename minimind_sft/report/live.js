// Asks the server for what has changed and puts it into the page, under the reader's pointer and open sections.
"use strict";
(() => {
  const SECONDS = 2, SECONDS_HIDDEN = 10, SECONDS_SILENT = 600;
  const content = document.getElementById("content"), state = document.getElementById("state");
  let version = "", ahead = 0, lostSince = null, pointer = null, timer = 0;

  const seconds = () => Date.now() / 1000 + ahead;
  const plots = () => [...content.querySelectorAll(".plot")];
  const opened = () => [...content.querySelectorAll("details")].map(one => one.open);

  function replace(html) {
    const open = opened(), focused = plots().indexOf(document.activeElement);
    content.innerHTML = html;
    content.querySelectorAll("details").forEach((one, number) => { one.open = open[number] ?? one.open; });
    plots()[focused]?.focus({ preventScroll: true });
    document.title = document.getElementById("tab").textContent;
    if (pointer) document.elementFromPoint(...pointer)?.dispatchEvent(
      new PointerEvent("pointermove", { clientX: pointer[0], clientY: pointer[1], bubbles: true }));
  }

  function ages() {
    for (const cell of content.querySelectorAll("[data-written]")) {
      const age = Math.max(Math.round(seconds() - cell.dataset.written), 0);
      cell.textContent = age < 120 ? age + " s ago" : age < 7200 ? Math.round(age / 60) + " min ago" :
        Math.round(age / 3600) + " h ago";
      cell.classList.toggle("warning", "unfinished" in cell.dataset && age > SECONDS_SILENT);
    }
    state.textContent = lostSince ? "watch_training.py does not answer since " + lostSince.toLocaleTimeString() : "live";
    state.classList.toggle("lost", lostSince !== null);
  }

  async function refresh() {
    clearTimeout(timer);
    try {
      const answer = await fetch("content" + location.search,
        { cache: "no-store", headers: version ? { "If-None-Match": version } : {} });
      ahead = Date.parse(answer.headers.get("Date")) / 1000 - Date.now() / 1000 || 0;
      if (answer.status === 200) {
        version = answer.headers.get("ETag");
        replace(await answer.text());
      }
      lostSince = answer.ok || answer.status === 304 ? null : lostSince ?? new Date();
    } catch {
      lostSince ??= new Date();
    }
    ages();
    timer = setTimeout(refresh, 1000 * (document.hidden ? SECONDS_HIDDEN : SECONDS));
  }

  document.addEventListener("pointermove", event => {
    if (event.isTrusted) pointer = event.pointerType === "mouse" ? [event.clientX, event.clientY] : null;
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
  setInterval(ages, 1000);
  refresh();
})();
