// The tail of the decision journal, newest first.

import { $, h, keyed } from "./dom.js";
import { brief, clock, words } from "./format.js";
import { get } from "./api.js";
import { openExplain } from "./explain.js";

const KEPT = 200;
const PERIOD = 2000; // ms
const ABOUT_REQUESTS = ["dispatch", "go_on", "hedge", "fail"];

let entries = [];
let seen = 0;

$("source").addEventListener("change", show);

/** Follow the journal for ever; a server that does not answer is asked again. */
export async function followJournal() {
  for (;;) {
    if (!document.hidden) await more().catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, PERIOD));
  }
}

async function more() {
  const fresh = await get(`/api/journal?after=${seen}`);
  if (!fresh.length && seen) return;
  for (const entry of fresh) seen = Math.max(seen, entry.number);
  entries = [...fresh.reverse(), ...entries].slice(0, KEPT);
  show();
}

/** Another server counts from 1 again. */
export function forgetJournal() {
  entries = [];
  seen = 0;
}

function show() {
  const source = $("source").value;
  const rows = entries.filter((entry) => !source || entry.source === source);
  $("entries").classList.toggle("empty", rows.length === 0);
  keyed($("entries"), rows, (entry) => `${entry.source}-${entry.number}`, create, () => {});
}

function create({ unix, source, kind, subject, reason }) {
  const isRequest = ABOUT_REQUESTS.includes(kind);
  return h("li", {},
    h("time", { class: "num muted" }, clock(unix)),
    h("span", { class: "source muted" }, source),
    h("strong", {}, words(kind)),
    isRequest ? h("button", { class: "link", type: "button", title: subject,
      click: () => openExplain(subject) }, brief(subject)) : h("span", {}, subject),
    h("span", { class: "reason" }, reason));
}
