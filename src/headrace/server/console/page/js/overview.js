// The top line and the row of figures.

import { $, h, say } from "./dom.js";
import { long, number, share, short } from "./format.js";
import { Sparkline } from "./charts.js";
import { all, latest } from "./timeline.js";

const FIGURES = [
  { name: "Requests", unit: "/s", values: [(p) => p.requests], show: (p) => number(p.requests),
    under: (state) => `${number(state.gateway?.rates.failures ?? 0)} failed /s` },
  { name: "Output tokens", unit: "/s", values: [(p) => p.tokens], show: (p) => number(p.tokens),
    under: (state) => `${number(state.gateway?.rates.prompt_tokens)} prompt tokens /s` },
  { name: "Time to first token", unit: "p50", values: [(p) => p.ttft, (p) => p.ttft95],
    show: (p) => short(p.ttft), under: (state) => `p95 ${short(state.gateway?.ttft.p95)}` },
  { name: "Between tokens", unit: "p50", values: [(p) => p.itl, (p) => p.itl95],
    show: (p) => short(p.itl), under: (state) => `p95 ${short(state.gateway?.itl.p95)}` },
  { name: "Waiting", unit: "requests", values: [(p) => p.waiting],
    show: (p) => number(p.waiting, 0), under: (_, p) => `${number(p.running, 0)} running` },
  { name: "Prompt from cache", unit: "", values: [(p) => p.cached],
    show: (p) => share(p.cached), under: () => "share of prompt tokens" },
];

const tiles = FIGURES.map((figure) => {
  const value = h("span", { class: "value" });
  const under = h("p", { class: "under" });
  const spark = new Sparkline();
  $("figures").append(h("li", { class: "card figure" },
    h("h3", {}, figure.name),
    h("p", {}, value, h("span", { class: "unit" }, figure.unit && ` ${figure.unit}`)),
    under, spark.node));
  return { figure, value, under, spark };
});

const facts = {};
for (const name of ["Model", "Policy", "Up", "URL"]) {
  facts[name] = h("dd");
  $("about").append(h("div", {}, h("dt", {}, name), facts[name]));
}

/** The word and colour of the whole server. */
export function healthOf(state) {
  if (!state.gateway) return ["the gateway does not answer", "bad"];
  const ready = state.replicas.filter((replica) => replica.state === "ready").length;
  if (!ready) return ["no replica is ready", "bad"];
  const troubled = state.replicas.filter((replica) =>
    ["suspect", "ejected", "probing", "crash_loop"].includes(replica.state)).length;
  return troubled ? [`${ready} ready, ${troubled} in trouble`, "warn"] : ["healthy", "good"];
}

export function showHealth(word, kind) {
  $("health").className = `pill ${kind}`;
  say($("health").lastElementChild, word);
}

export function showOverview(state) {
  showHealth(...healthOf(state));
  if (state.gateway) {
    say(facts.Model, state.gateway.model);
    say(facts.Policy, state.gateway.policy);
  }
  say(facts.Up, long(state.uptime));
  say(facts.URL, state.url);
  say($("version"), `headrace ${state.version}`);
  const point = latest();
  for (const { figure, value, under, spark } of tiles) {
    say(value, figure.show(point));
    say(under, figure.under(state, point));
    spark.draw(all(), ...figure.values);
  }
}
