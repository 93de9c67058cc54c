"use strict";
const SVG = "http://www.w3.org/2000/svg";
function drawn(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
  return made;
}
// A function from the values of an axis to places between two ends; logarithmic where a step multiplies.
function scale(values, log, from, to) {
  const at = (value) => (log ? Math.log10(value) : value);
  let [low, high] = [Math.min(...values.map(at)), Math.max(...values.map(at))];
  const margin = 0.08 * (high - low) || 0.5;
  [low, high] = [low - margin, high + margin];
  const place = (value) => from + ((at(value) - low) / (high - low)) * (to - from);
  const back = (share) => (log ? 10 ** (low + share * (high - low)) : low + share * (high - low));
  place.ticks = [0.1, 0.5, 0.9].map(back);
  return place;
}
const shortly = (value) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [360, 290, 62, 350, 12, 240];
function canvas(parent, label, x, y, titles) {
  const svg = drawn(parent, "svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  drawn(svg, "path", { d: `M${LEFT} ${TOP}V${BOTTOM}H${RIGHT}`, class: "axis" });
  for (const value of x.ticks) drawn(svg, "text", { x: x(value), y: BOTTOM + 20, "text-anchor": "middle" }, shortly(value));
  for (const value of y.ticks) drawn(svg, "text", { x: LEFT - 8, y: y(value) + 5, "text-anchor": "end" }, shortly(value));
  drawn(svg, "text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 42, "text-anchor": "middle" }, titles[0]);
  drawn(svg, "text", { x: 16, y: (TOP + BOTTOM) / 2, transform: `rotate(-90 16 ${(TOP + BOTTOM) / 2})`, "text-anchor": "middle" }, titles[1]);
  return svg;
}

// A click on a column's head sorts by it: first up, then down. Cells without a value stay last; ties keep their order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, column) => { cell.dataset.head = heads[column].textContent; }); // shown on a phone
  }
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const numeric = heads[column].classList.contains("number");
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}

// Two of a method's score and costs, which the reader picks; the line joins those that no other beats on both.
for (const place of document.querySelectorAll(".costs")) {
  const figure = JSON.parse(place.querySelector("script").textContent);
  const pick = (options, chosen, label) => {
    const select = document.createElement("select");
    select.setAttribute("aria-label", label);
    for (const [key, title] of options) select.add(new Option(title, key, false, key === chosen));
    select.addEventListener("change", draw);
    place.append(select);
    return select;
  };
  const panel = pick(figure.panels.map((each, i) => [i, each.title + (each.y ? `: ${each.y}` : "")]), 0, "encoder");
  const axes = Object.entries(figure.axes);
  const [across, up] = [pick(axes, "x", "axis across"), pick(axes, "y", "axis up")];
  const view = document.createElement("div");
  place.append(view);
  place.closest("figure").querySelector(".scroll").hidden = true; // the same without a choice
  function draw() {
    const [a, b] = [across.value, up.value];
    const { series, y: score } = figure.panels[panel.value];
    const points = series.filter((one) => one[a][0] !== null && one[b][0] !== null);
    view.replaceChildren();
    if (!points.length) { view.textContent = "Not measured."; return; }
    const values = (axis) => points.flatMap((one) => axis === "y" ? [one.y[0], one.low[0] ?? one.y[0], one.high[0] ?? one.y[0]] : one[axis]);
    const [x, y] = [scale(values(a), a !== "y", LEFT, RIGHT), scale(values(b), b !== "y", BOTTOM, TOP)];
    const titles = [a, b].map((axis) => axis === "y" ? score : figure.axes[axis]);
    const svg = canvas(view, titles.join(" against "), x, y, titles);
    const sign = score.endsWith("lower is better)") ? -1 : 1;
    const better = (one, other, axis) => axis === "y" ? sign * (one.y[0] - other.y[0]) : other[axis][0] - one[axis][0];
    const beats = (one, other) => [a, b].every((axis) => better(one, other, axis) >= 0) && [a, b].some((axis) => better(one, other, axis) > 0);
    const front = points.filter((one) => !points.some((other) => beats(other, one))).sort((one, other) => one[a][0] - other[a][0]);
    drawn(svg, "path", { d: "M" + front.map((one) => `${x(one[a][0])} ${y(one[b][0])}`).join("L"), class: "front" });
    points.forEach((one, i) => {
      const [left, top] = [x(one[a][0]), y(one[b][0])];
      if (b === "y" && one.low[0] !== null) drawn(svg, "path", { d: `M${left} ${y(one.low[0])}V${y(one.high[0])}`, class: "bar" });
      if (a === "y" && one.low[0] !== null) drawn(svg, "path", { d: `M${x(one.low[0])} ${top}H${x(one.high[0])}`, class: "bar" });
      drawn(svg, "circle", { cx: left, cy: top, r: 10 });
      drawn(svg, "text", { x: left, y: top + 4, "text-anchor": "middle", class: "mark" }, i + 1);
    });
    const names = document.createElement("ol");
    for (const one of points) names.append(Object.assign(document.createElement("li"), { textContent: one.label }));
    view.append(names);
  }
  draw();
}

// A click on a score shows its runs epoch by epoch.
const curves = JSON.parse(document.querySelector("#curves").textContent);
const shown = document.querySelector("#runs-of-cell");
for (const cell of document.querySelectorAll("td[data-cell]")) {
  if (!curves[cell.dataset.cell]) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...cell.childNodes);
  cell.append(button);
  button.addEventListener("click", () => {
    const runs = Object.entries(curves[cell.dataset.cell]);
    const values = runs.flatMap(([, run]) => run).filter((value) => value !== null);
    const longest = Math.max(...runs.map(([, run]) => run.length));
    const x = scale([1, longest], false, LEFT, RIGHT);
    const y = scale(values, false, BOTTOM, TOP);
    const title = `${cell.parentNode.cells[0].textContent}, ${cell.dataset.head}`;
    shown.querySelector("h3").textContent = title;
    const view = shown.querySelector("div");
    view.replaceChildren();
    x.ticks = [1, longest];
    const svg = canvas(view, title, x, y, ["epoch", cell.dataset.head]);
    for (const [seed, run] of runs) {
      const points = run.flatMap((value, i) => value === null ? [] : [`${x(i + 1)} ${y(value)}`]);
      drawn(drawn(svg, "path", { d: `M${points.join("L")}`, class: "run" }), "title", {}, `seed ${seed}`);
    }
    shown.showModal();
  });
}
// On paper, folded tables and what lies behind the verdicts are shown; single runs are not.
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll(".verdicts details, .folded:not(.runs)")) each.open = true;
});
