"use strict";
// Draws the charts of each dataset from the data in the page: curves with bands, a legend that toggles, values on hover.
const SVG = "http://www.w3.org/2000/svg";
const shape = (name, attributes, parent, text) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
const element = (name, className, parent, text) => {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
const isTime = (chart) => chart.axis === "seconds" || chart.axis.startsWith("hours");
const number = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });

// The multiples of a 1-2-2.5-5 step in a range, about as many as asked for.
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

// The ticks of an axis of labels are its points where their numbers have room.
function axisTicks(points, x0, x1, width) {
  const room = points.every((x, k) => !k || ((x - points[k - 1]) / (x1 - x0)) * width > 52);
  return room && points.length ? points : ticks(x0, x1, Math.max(2, width / 110));
}

const written = (value, unit) =>
  (unit === "percent" ? `${(100 * value).toFixed(2)}%` : value.toFixed(3)).replace("-", "\u2212");

// The range of the means, and of their intervals as far as these reach no further than the means' range again.
function limits(means, ends) {
  const low = Math.min(...means), high = Math.max(...means);
  const span = Math.max(high - low, 0.02 * Math.max(Math.abs(high), 0.1));
  const kept = ends.map((value) => Math.min(Math.max(value, low - span / 2), high + span / 2));
  const bottom = Math.min(low, ...kept), top = Math.max(high, ...kept);
  return [bottom - 0.06 * span, top + 0.06 * span];
}

function draw(figure, chart, styles, hidden) {
  const series = chart.series.filter(([name]) => !hidden.has(name));
  const partial = (chart.partial || []).filter(([name]) => !hidden.has(name));
  const ceilings = (chart.ceilings || []).filter(([name]) => !hidden.has(name));
  figure.querySelector("svg")?.remove();
  const width = figure.clientWidth, height = Math.round(Math.min(420, Math.max(260, width * 0.52)));
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": chart.title });
  figure.querySelector("figcaption").after(svg);
  const points = [...series, ...partial].flatMap(([, line]) => line);
  const means = [...points.map((p) => p[1]), ...ceilings.map(([, value]) => value)];
  if (!means.length) return shape("text", { x: 50, y: 40 }, svg, "nothing is chosen");
  const ends = points.flatMap((p) => p.slice(2, 4)).filter((value) => typeof value === "number");
  const [y0, y1] = limits(means, ends);
  const xs = [...new Set(points.map((p) => p[0]))].sort((a, b) => a - b);
  let [x0, x1] = isTime(chart) ? [0, Math.max(...xs)] : [Math.min(...xs), Math.max(...xs)];
  if (!(x1 > x0)) [x0, x1] = Number.isFinite(x0) ? [x0 - 1, x0 + 1] : [0, 1];
  const left = 58, right = 16, top = 12, bottom = 44;
  const X = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const Y = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const [lowest, highest] = chart.range;
  const possible = (y) => (lowest === null || y >= lowest) && (highest === null || y <= highest);
  for (const y of ticks(y0, y1, height / 48).filter(possible)) {
    shape("line", { class: "grid", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }, svg);
    const text = chart.unit === "percent" ? `${+(100 * y).toFixed(4)}%` : `${+y.toFixed(6)}`.replace("-", "\u2212");
    shape("text", { x: left - 8, y: Y(y) + 4, "text-anchor": "end" }, svg, text);
  }
  for (const x of axisTicks(isTime(chart) ? [] : xs, x0, x1, width - left - right)) {
    shape("line", { class: "grid", x1: X(x), x2: X(x), y1: top, y2: height - bottom }, svg);
    shape("text", { x: X(x), y: height - bottom + 18, "text-anchor": "middle" }, svg, number(x, 6));
  }
  shape("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, svg, chart.axis);
  const clip = `clip-${figure.id}`;
  const area = { x: left - 6, y: 0, width: width - left - right + 12, height: height - bottom };
  shape("rect", area, shape("clipPath", { id: clip }, svg));
  const inside = shape("g", { "clip-path": `url(#${clip})` }, svg);
  const path = (line, k) => line.map((p, i) => `${i ? "L" : "M"}${X(p[0]).toFixed(1)},${Y(p[k]).toFixed(1)}`).join("");
  for (const [name, line] of series) {
    const known = line.filter((p) => p[2] !== null);
    const outline = path(known, 2) + path([...known].reverse(), 3).replace("M", "L") + "Z";
    if (known.length > 1) shape("path", { class: "band", d: outline, style: `--c:${styles[name].color}` }, inside);
  }
  for (const [name, value] of ceilings) {
    shape("path", { class: "curve ceiling", "data-arm": name, d: `M${left},${Y(value).toFixed(1)}H${width - right}` }, inside);
    shape("text", { x: width - right, y: Y(value) - 6, "text-anchor": "end" }, svg, `${name} ${written(value, chart.unit)}`);
  }
  for (const [name, line] of partial) {
    shape("path", { class: "curve partial", "data-arm": name, d: path(line, 1), style: `--c:${styles[name].color}` }, inside);
  }
  for (const [name, line] of series) {
    const style = `--c:${styles[name].color};stroke-dasharray:${styles[name].dash.join(" ") || "none"}`;
    shape("path", { class: "curve", "data-arm": name, d: path(line, 1), style }, inside);
    for (const p of line) shape("circle", { class: "mark", cx: X(p[0]), cy: Y(p[1]), r: 3.2, style }, inside);
  }
  hover(figure, svg, chart, series, styles, { X, xs, top, bottom: height - bottom });
}

function hover(figure, svg, chart, series, styles, { X, xs, top, bottom }) {
  const tip = figure.querySelector(".tip");
  const cursor = shape("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" }, svg);
  const leave = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const x = xs.reduce((best, other) => (Math.abs(X(other) - at) < Math.abs(X(best) - at) ? other : best), xs[0]);
    const rows = series.flatMap(([name, line]) => line.filter((p) => p[0] === x).map((p) => [name, p]));
    if (!rows.length) return leave();
    tip.replaceChildren(element("b", "", null, `${number(x, isTime(chart) && x < 100 ? 2 : 0)} ${chart.axis}`));
    for (const [name, [, mean, , , n, half]] of rows.sort((a, b) => b[1][1] - a[1][1])) {
      const row = element("div", "", tip);
      element("span", "dot", row).style.setProperty("--c", styles[name].color);
      element("span", "", row, name);
      element("b", "", row, written(mean, chart.unit));
      element("i", "", row, half === null ? `n=${n}` : `± ${written(half, chart.unit)}`);
    }
    tip.hidden = false;
    const aside = X(x) > figure.clientWidth / 2 ? X(x) - tip.offsetWidth - 14 : X(x) + 14;
    tip.style.left = `${Math.max(0, Math.min(aside, figure.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${svg.getBoundingClientRect().top - figure.getBoundingClientRect().top + top}px`;
    for (const [key, value] of [["x1", X(x)], ["x2", X(x)], ["visibility", "visible"]]) cursor.setAttribute(key, value);
  });
}

function drawDataset(root, data, k) {
  const styles = Object.fromEntries(data.arms.map((arm) => [arm.name, arm]));
  const hidden = new Set(data.arms.filter((arm) => !arm.shown).map((arm) => arm.name));
  const figures = data.charts.map((chart, i) => {
    const figure = element("figure", "", root.querySelector(".charts"));
    figure.id = `chart-${k}-${i}`;
    element("figcaption", "", figure, chart.title);
    element("div", "tip", figure).hidden = true;
    return figure;
  });
  const redraw = () => figures.forEach((figure, i) => draw(figure, data.charts[i], styles, hidden));
  const buttons = data.arms.map((arm) => {
    const button = element("button", "", root.querySelector(".legend"));
    button.type = "button";
    button.dataset.arm = arm.name;
    const swatch = shape("svg", { width: 26, height: 8, "aria-hidden": "true" }, button);
    const style = `--c:${arm.color};stroke-dasharray:${arm.dash.join(" ") || "none"}`;
    shape("line", { class: "swatch", x1: 0, x2: 26, y1: 4, y2: 4, style }, swatch);
    element("span", "", button, arm.name);
    return button;
  });
  const update = () => {
    for (const button of buttons) button.setAttribute("aria-pressed", !hidden.has(button.dataset.arm));
    redraw();
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const name = button.dataset.arm;
      if (!hidden.delete(name)) hidden.add(name);
      update();
    });
  }
  const every = element("button", "every", root.querySelector(".legend"), "all / none");
  every.addEventListener("click", () => {
    const empty = hidden.size > 0;
    for (const arm of data.arms) empty ? hidden.delete(arm.name) : hidden.add(arm.name);
    update();
  });
  update();
  let width = root.clientWidth;
  addEventListener("resize", () => { if (root.clientWidth !== width) { width = root.clientWidth; redraw(); } });
}

JSON.parse(document.getElementById("data").textContent).forEach((data, k) => drawDataset(document.getElementById(`dataset-${k}`), data, k));
