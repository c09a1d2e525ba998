// Lines drawn by hand in SVG, so that colours follow the style sheet and nothing is fetched.

import { h } from "./dom.js";
import { GAP, span } from "./timeline.js";

/** The d of a path through [x, y] of points; null values and pauses break it. */
function pathOf(points, value, x, y) {
  let d = "";
  let last = null;
  for (const point of points) {
    const v = value(point);
    if (v == null) { last = null; continue; }
    const joined = last != null && point.at - last < GAP;
    d += `${joined ? "L" : "M"}${x(point.at).toFixed(1)} ${y(v).toFixed(1)}`;
    if (!joined) d += "h.01"; // a lone point shows as a dot
    last = point.at;
  }
  return d;
}

/** A path's area down to `floor`: each unbroken part closed. */
function areaOf(d, floor) {
  return d.split("M").filter(Boolean).map((part) => {
    const first = part.split(/[ hL]/)[0];
    const last = part.split("L").at(-1).split(/[ h]/)[0];
    return `M${part.replace("h.01", "")}L${last} ${floor}L${first} ${floor}Z`;
  }).join("");
}

/** A round number not below `value`. */
export function nice(value, least = 1) {
  if (!(value > least)) return least;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

const top = (points, values) =>
  Math.max(0, ...points.flatMap((point) => values.map((value) => value(point) ?? 0)));

/** A line the width of its box, without axes. `values`: the main one first. */
export class Sparkline {
  constructor() {
    this.area = h("path", { class: "area" });
    this.second = h("path", { class: "line second" });
    this.line = h("path", { class: "line" });
    this.node = h("svg", { class: "spark", viewBox: "0 0 200 40", preserveAspectRatio: "none",
      "aria-hidden": "true" }, this.area, this.second, this.line);
  }

  draw(points, ...values) {
    const [begin, end] = span();
    const most = top(points, values) || 1;
    const x = (at) => ((at - begin) / (end - begin)) * 200;
    const y = (v) => 38 - (v / most) * 35;
    const d = pathOf(points, values[0], x, y);
    this.line.setAttribute("d", d);
    this.area.setAttribute("d", areaOf(d, 40));
    this.second.setAttribute("d", values[1] ? pathOf(points, values[1], x, y) : "");
  }
}

const LEFT = 44;
const FOOT = 20;
const SPLIT = 0.58; // of the height for the upper panel

/** Two panels over one time axis: tokens a second, and requests; scaling decisions as marks. */
export class LoadChart {
  constructor(box, onPoint) {
    this.box = box;
    this.onPoint = onPoint;
    this.pointer = null;
    this.svg = h("svg", { role: "img", "aria-label": "Output tokens a second, and running and "
      + "waiting requests, over the last five minutes" });
    box.append(this.svg);
    box.addEventListener("pointermove", (event) => { this.pointer = event.offsetX; this.again(); });
    box.addEventListener("pointerleave", () => { this.pointer = null; this.again(); });
    new ResizeObserver(() => this.again()).observe(box);
  }

  again() {
    if (this.last) this.draw(...this.last);
  }

  draw(points, marks) {
    this.last = [points, marks];
    const width = this.box.clientWidth;
    const height = this.box.clientHeight;
    if (!width) return;
    const [begin, end] = span();
    const x = (at) => LEFT + ((at - begin) / (end - begin)) * (width - LEFT - 6);
    const middle = (height - FOOT) * SPLIT;
    const panels = [
      { from: 30, to: middle - 4, unit: "tokens/s", least: 10,
        series: [["tokens", (p) => p.tokens]] },
      { from: middle + 24, to: height - FOOT, unit: "requests", least: 2,
        series: [["waiting", (p) => p.waiting], ["running", (p) => p.running]] },
    ];
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(
      ...timeAxis(x, begin, end, height),
      ...marks.filter((mark) => mark.unix > begin && mark.unix <= end)
        .map((mark) => drawMark(mark, x(mark.unix), height)),
      ...panels.flatMap((panel) => drawPanel(panel, points, x, width)),
      ...this.cross(points, x, height),
    );
  }

  /** The line under the pointer; tells which point is meant. */
  cross(points, x, height) {
    const nearest = this.pointer == null ? null : points.reduce((best, point) =>
      !best || Math.abs(x(point.at) - this.pointer) < Math.abs(x(best.at) - this.pointer)
        ? point : best, null);
    this.onPoint(nearest);
    if (!nearest) return [];
    const at = x(nearest.at);
    return [h("line", { class: "cross", x1: at, x2: at, y1: 8, y2: height - FOOT })];
  }
}

function timeAxis(x, begin, end, height) {
  return [4, 3, 2, 1, 0].flatMap((minutes) => {
    const at = x(end - minutes * 60);
    return [
      h("line", { class: "grid", x1: at, x2: at, y1: 14, y2: height - FOOT }),
      h("text", { class: "tick", x: at, y: height - 4, "text-anchor": minutes ? "middle" : "end" },
        minutes ? `−${minutes} min` : "now"),
    ];
  });
}

function drawPanel({ from, to, unit, least, series }, points, x, width) {
  const most = nice(top(points, series.map(([, value]) => value)), least);
  const y = (v) => to - (v / most) * (to - from);
  const lines = [0, 0.5, 1].flatMap((part) => [
    h("line", { class: part ? "grid" : "base", x1: LEFT, x2: width - 6,
      y1: y(most * part), y2: y(most * part) }),
    h("text", { class: "tick", x: LEFT - 6, y: y(most * part) + 3.5, "text-anchor": "end" },
      String(most * part)),
  ]);
  const paths = series.flatMap(([name, value]) => {
    const d = pathOf(points, value, x, y);
    return [
      h("path", { class: `area ${name}`, d: areaOf(d, to) }),
      h("path", { class: `line ${name}`, d }),
    ];
  });
  return [...lines, h("text", { class: "unit", x: LEFT + 4, y: from - 6 }, unit), ...paths];
}

function drawMark({ desired, present, reason }, at, height) {
  const up = desired >= present;
  return h("g", { class: `mark ${up ? "up" : "down"}` },
    h("line", { x1: at, x2: at, y1: 14, y2: height - FOOT }),
    h("text", { x: at, y: 10, "text-anchor": "middle" }, `${up ? "▲" : "▼"} ${desired}`),
    h("title", {}, `${present} → ${desired}: ${reason}`));
}
