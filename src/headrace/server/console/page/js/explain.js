// Where a request's time went (a waterfall), and why it was sent where it was sent.

import { $, h } from "./dom.js";
import { clock, count, short, words } from "./format.js";
import { get } from "./api.js";

export async function openExplain(id) {
  const dialog = $("explain");
  $("explain-title").textContent = id;
  $("explain-body").replaceChildren(h("p", { class: "muted" }, "asking …"));
  if (!dialog.open) dialog.showModal();
  try {
    $("explain-body").replaceChildren(...draw(await get(`/api/explain/${encodeURIComponent(id)}`)));
  } catch (error) {
    $("explain-body").replaceChildren(h("p", { class: "bad" }, error.message));
  }
}

function draw(told) {
  return [
    summary(told),
    h("h3", {}, "Where the time went"),
    h("ol", { class: "plain waterfall" }, ...told.spans.map((span) => drawSpan(span, told.seconds))),
    h("h3", {}, told.placements.length > 1 ? `Why there: ${told.placements.length} placements`
      : "Why there"),
    ...(told.placements.length ? told.placements.map((placement, index) =>
      drawPlacement(placement, told, index)) : [h("p", { class: "muted" }, "It was never placed.")]),
  ];
}

function summary(told) {
  const facts = [
    ["state", words(told.state)], ["at", clock(told.unix)], ["tenant", told.tenant || "–"],
    ["prompt", `${count(told.prompt_tokens)} tokens, ${count(told.cached_tokens)} cached`],
    ["output", `${count(told.output_tokens)} tokens`],
    ["first token", short(told.ttft)], ["whole", short(told.seconds)],
  ];
  return h("dl", { class: "about" }, ...facts.map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function drawSpan(span, whole) {
  const bar = h("span", { class: `bar ${span.name.replaceAll(" ", "-")}` });
  bar.style.marginLeft = `${Math.min(99.6, (span.start / whole) * 100)}%`;
  bar.style.width = `${Math.max(0.4, (span.seconds / whole) * 100)}%`;
  return h("li", {},
    h("span", { class: "name" }, span.name,
      span.replica ? h("span", { class: "muted" }, ` ${span.replica}`) : null),
    h("span", { class: "track" }, bar),
    h("span", { class: "num" }, short(span.seconds)),
    h("span", { class: "note muted" }, span.note));
}

/** The placement that led to the first token has an actual time to set beside the predicted one. */
function actualOf(told, index) {
  const { placements, ttft } = told;
  const next = placements[index + 1];
  if (ttft == null || placements[index].at > ttft || (next && next.at <= ttft)) return null;
  return ttft - placements[index].at;
}

function drawPlacement(placement, told, index) {
  const actual = actualOf(told, index);
  const most = Math.max(1e-9, ...placement.candidates.map((each) => each.cost));
  const forecast = placement.predicted_ttft == null ? null : h("p", {},
    "First token after it: predicted ", h("strong", {}, short(placement.predicted_ttft)),
    ...(actual == null ? [] : [", actual ", h("strong", {}, short(actual))]));
  return h("div", { class: "placement" },
    h("p", {}, h("span", { class: "num muted" }, `${short(placement.at)} `),
      h("strong", {}, `→ ${placement.replica}`), ` by ${placement.policy}: `,
      placement.reason),
    forecast,
    h("ul", { class: "plain candidates" }, ...[...placement.candidates]
      .sort((a, b) => a.cost - b.cost || (a.replica === placement.replica ? -1 : 1))
      .map((each) => drawCandidate(each, each.replica === placement.replica, most))));
}

function drawCandidate({ replica, cost, cached_tokens }, chosen, most) {
  const bar = h("span", { class: "bar" });
  bar.style.width = `${Math.max(0.5, (cost / most) * 100)}%`;
  return h("li", { class: chosen ? "chosen" : "" },
    h("span", { class: "name" }, replica, chosen ? h("span", { class: "muted" }, " chosen") : null),
    h("span", { class: "track" }, bar),
    h("span", { class: "num" }, `cost ${Number(cost.toPrecision(3))}`),
    h("span", { class: "note muted" }, cached_tokens ? `${count(cached_tokens)} cached` : "none cached"));
}
