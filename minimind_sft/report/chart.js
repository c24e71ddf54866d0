// Shows the values of all charts at the step under the pointer, in their legends. Without it they show the last values.
"use strict";
(() => {
  const charts = () => document.querySelectorAll(".chart[data-values]");
  const read = chart => chart.values ??= JSON.parse(chart.dataset.values);
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= x) low = middle; else high = middle;
    }
    return Math.abs(points[low][0] - x) <= Math.abs(points[high][0] - x) ? points[low] : points[high];
  };
  const placed = (plot, name, left, top) => {
    const mark = document.createElement("i");
    mark.className = name;
    mark.style.left = left + "%";
    if (top !== undefined) mark.style.top = top / 10 + "%";
    plot.append(mark);
  };
  const clear = chart => chart.querySelectorAll(".cursor, .spot").forEach(mark => mark.remove());

  function show(chart, x) {
    const { range: [first, last], lines } = read(chart);
    const place = value => last > first ? 100 * (value - first) / (last - first) : 50;
    const plot = chart.querySelector(".plot"), outputs = chart.querySelectorAll("output");
    clear(chart);
    placed(plot, "cursor", Math.min(Math.max(place(x), 0), 100));
    lines.forEach((points, number) => {
      const [at, height, text] = nearest(points, x), line = outputs[number].closest("li");
      outputs[number].textContent = text;
      placed(plot, "spot c" + line.dataset.colour, place(at), height);
    });
    chart.querySelector(".at").textContent = chart.dataset.xName + " " + x.toLocaleString("en-US");
    chart.dataset.at = x;
  }

  function reset() {
    for (const chart of charts()) {
      if (chart.dataset.at === undefined) continue;
      clear(chart);
      read(chart).lines.forEach((points, number) => {
        chart.querySelectorAll("output")[number].textContent = points.at(-1)[2];
      });
      chart.querySelector(".at").textContent = "";
      delete chart.dataset.at;
    }
  }

  const showAll = (chart, x) => charts().forEach(other => {
    if (other.dataset.xName === chart.dataset.xName) show(other, x);
  });
  const xs = chart => read(chart).lines.reduce((most, points) => points.length > most.length ? points : most);

  function follow(event) {
    const plot = event.target.closest?.(".plot");
    if (!plot) return event.pointerType === "touch" ? undefined : reset();
    const chart = plot.closest(".chart"), { range: [first, last] } = read(chart), box = plot.getBoundingClientRect();
    showAll(chart, nearest(xs(chart), first + (event.clientX - box.left) / box.width * (last - first))[0]);
  }

  function step(event) {
    const chart = event.target.closest?.(".plot")?.closest(".chart"), by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") reset();
    if (!chart || !by) return;
    event.preventDefault();
    const points = xs(chart), now = chart.dataset.at === undefined ? points.length - (by > 0) :
      points.indexOf(nearest(points, +chart.dataset.at));
    showAll(chart, points[Math.min(Math.max(now + by, 0), points.length - 1)][0]);
  }

  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerdown", follow);
  document.addEventListener("pointerleave", event => event.pointerType !== "touch" && reset());
  document.addEventListener("keydown", step);
  window.addEventListener("beforeprint", () => {
    reset();
    document.querySelectorAll("details").forEach(one => one.open = true);
  });
})();
