// The range of replicas, and the last decisions about it.

import { $, announce, h, keyed, say } from "./dom.js";
import { clock } from "./format.js";
import { order } from "./api.js";

const steppers = ["floor", "ceiling"].map(stepper);
let range = { floor: 0, ceiling: 0 };

function stepper(end) {
  const value = h("output", {}, "–");
  const step = (by) => h("button", { type: "button", class: "quiet step", click: () => change(end, by),
    "aria-label": `${by > 0 ? "Raise" : "Lower"} the ${end}` }, by > 0 ? "+" : "−");
  $("range").append(h("div", { class: "stepper", role: "group", "aria-label": end },
    h("span", { class: "muted" }, end === "floor" ? "At least" : "At most"),
    step(-1), value, step(1)));
  return { end, value };
}

async function change(end, by) {
  const asked = { ...range, [end]: Math.max(end === "floor" ? 0 : 1, range[end] + by) };
  if (end === "floor") asked.ceiling = Math.max(asked.ceiling, asked.floor);
  else asked.floor = Math.min(asked.ceiling, asked.floor);
  try {
    announce((await order("/api/scale", asked)).message);
    showRange(asked);
  } catch (error) {
    announce(error.message, true);
  }
}

function showRange({ floor, ceiling }) {
  range = { floor, ceiling };
  for (const { end, value } of steppers) say(value, String(range[end]));
}

export function showScaling(state) {
  showRange(state);
  const ready = state.replicas.filter((replica) => replica.state === "ready").length;
  say($("present"), `${ready} ready, ${state.desired} wanted`);
  const newest = [...state.scaling].sort((a, b) => b.unix - a.unix).slice(0, 12);
  $("decisions").classList.toggle("empty", newest.length === 0);
  keyed($("decisions"), newest, (each) => `${each.unix}-${each.desired}`, create, () => {});
}

function create({ unix, desired, present, reason }) {
  return h("li", {},
    h("time", { class: "num muted" }, clock(unix)),
    h("strong", { class: desired >= present ? "up" : "down" }, `${present} → ${desired}`),
    h("span", {}, reason));
}
