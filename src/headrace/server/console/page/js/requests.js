// The last requests, newest first. A row opens the explanation.

import { $, h, keyed, row, say } from "./dom.js";
import { brief, count, short, words } from "./format.js";
import { openExplain } from "./explain.js";

const COLUMNS = [
  ["id", "Request"], ["state", "State"], ["replica", "Replica"], ["tokens", "Tokens in → out"],
  ["cached", "Cached"], ["ttft", "TTFT"], ["seconds", "Time"],
];
const GOOD = ["stop", "length", "tool_calls"];

const head = row("tr th", COLUMNS, "columnheader");
for (const [name, label] of COLUMNS) head.parts[name].textContent = label;
const body = h("div", { role: "rowgroup", class: "body" });
$("request-rows").append(h("div", { role: "rowgroup" }, head), body);

export function showRequests(state) {
  if (!state.gateway) return; // what it said last stands
  const rows = state.gateway.requests;
  $("request-rows").classList.toggle("empty", rows.length === 0);
  keyed(body, rows.slice(0, 50), (request) => request.id, create, update);
}

function create(request) {
  const node = row("tr", COLUMNS);
  node.parts.id.append(h("button", { type: "button", class: "link", title: request.id,
    click: () => openExplain(request.id) }, brief(request.id)));
  node.addEventListener("click", (event) => {
    if (!event.target.closest("button")) openExplain(request.id);
  });
  node.pill = h("span", { class: "pill" });
  node.moved = h("span", { class: "moved" });
  node.parts.state.append(node.pill, node.moved);
  return node;
}

function update(node, request) {
  const { parts } = node;
  const kind = request.state === "running" || request.state === "waiting" ? "calm"
    : GOOD.includes(request.state) ? "good" : request.state === "abort" ? "faint" : "bad";
  node.pill.className = `pill ${kind}`;
  say(node.pill, words(request.state));
  say(node.moved, request.migrations ? `moved ${request.migrations}×` : "");
  say(parts.replica, request.replica || "–");
  say(parts.tokens, `${count(request.prompt_tokens)} → ${count(request.output_tokens)}`);
  say(parts.cached, request.cached_tokens ? count(request.cached_tokens) : "–");
  say(parts.ttft, short(request.ttft));
  say(parts.seconds, short(request.seconds));
}
