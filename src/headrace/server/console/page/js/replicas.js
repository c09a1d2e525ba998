// One row a replica: its state, its work, its KV cache, and a way to drain it.

import { $, announce, h, keyed, row, say } from "./dom.js";
import { bytes, count, long, share, words } from "./format.js";
import { order } from "./api.js";

const COLUMNS = [
  ["name", "Replica"], ["state", "State"], ["work", "Requests"], ["kv", "KV cache in use"],
  ["cached", "From cache"], ["memory", "Memory"], ["restarts", "Restarts"], ["since", "For"],
  ["order", ""],
];
const KINDS = {
  ready: "good", starting: "calm", draining: "warn", stopping: "faint",
  probing: "warn", suspect: "warn", ejected: "bad", crash_loop: "bad",
};

const head = row("tr th", COLUMNS, "columnheader");
for (const [name, label] of COLUMNS) head.parts[name].textContent = label;
const body = h("div", { role: "rowgroup", class: "body" });
$("replica-rows").append(h("div", { role: "rowgroup" }, head), body);

export function showReplicas(state) {
  const rows = state.replicas;
  const ready = rows.filter((replica) => replica.state === "ready").length;
  say($("replica-count"), `${ready} of ${rows.length} ready`);
  $("replica-rows").classList.toggle("empty", rows.length === 0);
  keyed(body, rows, (replica) => replica.replica, create, update);
}

function create(replica) {
  const node = row("tr", COLUMNS);
  const { parts } = node;
  node.role = h("span", { class: "muted" });
  parts.name.append(h("strong", {}, replica.replica), " ", node.role);
  node.word = h("span", {});
  node.pill = h("span", { class: "pill" }, h("span", { class: "dot" }), node.word);
  node.why = h("span", { class: "why" });
  parts.state.append(node.pill, node.why);
  node.fill = h("span", { class: "fill" });
  node.meter = h("div", { class: "meter", role: "meter", "aria-valuemin": 0, "aria-valuemax": 100,
    "aria-label": `KV cache of ${replica.replica}` }, node.fill);
  node.kv = h("span", { class: "num" });
  parts.kv.append(node.meter, node.kv);
  node.button = h("button", { class: "quiet", type: "button", click: () => press(node.replica) });
  parts.order.append(node.button);
  return node;
}

function update(node, replica) {
  const { parts } = node;
  node.replica = replica;
  say(node.role, replica.role === "mixed" ? "" : replica.role);
  node.pill.className = `pill ${KINDS[replica.state] ?? "warn"}`;
  say(node.word, words(replica.state));
  say(node.why, replica.state === "ready" ? "" : replica.reason);
  say(parts.work, `${count(replica.running)} running, ${count(replica.waiting)} waiting`);
  node.fill.style.width = `${Math.min(100, replica.kv_used * 100).toFixed(1)}%`;
  node.fill.classList.toggle("full", replica.kv_used > 0.9);
  node.meter.setAttribute("aria-valuenow", (replica.kv_used * 100).toFixed(0));
  say(node.kv, replica.kv_tokens
    ? `${share(replica.kv_used)} of ${count(replica.kv_tokens)}` : share(replica.kv_used));
  say(parts.cached, replica.index === "degraded"
    ? `${share(replica.cached_share)}, index degraded` : share(replica.cached_share));
  parts.cached.title = replica.index ? `its prefix cache is known as ${replica.index}` : "";
  say(parts.memory, bytes(replica.resident_bytes));
  say(parts.restarts, String(replica.restarts));
  say(parts.since, long(replica.seconds_in_state));
  const draining = replica.state === "draining";
  say(node.button, draining ? "Cancel drain" : "Drain");
  node.button.hidden = replica.state === "stopping";
  node.button.setAttribute("aria-label", `${node.button.textContent}: ${replica.replica}`);
}

async function press(replica) {
  const cancel = replica.state === "draining";
  if (!cancel && !(await confirmed(replica))) return;
  try {
    announce((await order("/api/drain", { replica: replica.replica, cancel })).message);
  } catch (error) {
    announce(error.message, true);
  }
}

/** Ask before a drain; resolves to whether it was confirmed. */
function confirmed(replica) {
  const dialog = $("confirm");
  $("confirm-title").textContent = `Drain ${replica.replica}?`;
  const work = replica.outstanding === 1 ? "Its one request finishes"
    : `Its ${replica.outstanding} requests finish`;
  $("confirm-text").textContent = "It takes nothing new. "
    + (replica.outstanding ? `${work} or go on elsewhere, then it ends. ` : "Then it ends. ")
    + "If the range needs another replica, one is started.";
  dialog.showModal();
  return new Promise((resolve) => {
    $("confirm-yes").onclick = () => { dialog.returnValue = "yes"; dialog.close(); };
    dialog.onclose = () => { resolve(dialog.returnValue === "yes"); dialog.returnValue = ""; };
  });
}
