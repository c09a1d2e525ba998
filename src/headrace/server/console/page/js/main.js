// Starts the page: token, then states for ever, each shown by the modules of its parts.

import { $, h, say } from "./dom.js";
import { long, number } from "./format.js";
import { events, hasToken, setToken, takeToken } from "./api.js";
import { add, all, latest, pointOf, restore } from "./timeline.js";
import { LoadChart } from "./charts.js";
import { showHealth, showOverview } from "./overview.js";
import { showReplicas } from "./replicas.js";
import { showScaling } from "./scaling.js";
import { showRequests } from "./requests.js";
import { followJournal, forgetJournal } from "./journal.js";
import { setModel } from "./playground.js";

const RETRY = 1000; // ms
const QUIET = 3; // seconds without a state until the page says so

let heard = performance.now(); // when the last state came
let uptime = 0;
let following = false;
const chart = new LoadChart($("chart"), showLegend);

function showLegend(point) {
  const chosen = point ?? latest();
  if (!chosen) return;
  const parts = [["tokens", `${number(chosen.tokens)} tokens/s`],
    ["running", `${number(chosen.running, 0)} running`],
    ["waiting", `${number(chosen.waiting, 0)} waiting`]];
  const when = point ? `${long(latest().at - point.at)} ago` : "now";
  $("legend").replaceChildren(h("span", { class: "muted" }, when),
    ...parts.map(([name, text]) => h("span", { class: `key ${name}` }, text)));
}

function show(unix, state) {
  heard = performance.now();
  $("lost").hidden = true;
  document.body.classList.remove("stale");
  $("main").hidden = false;
  if (state.uptime < uptime) forgetJournal();
  uptime = state.uptime;
  add(pointOf(unix, state));
  if (document.hidden) return;
  if (state.gateway) setModel(state.gateway.model);
  showOverview(state);
  chart.draw(all(), state.scaling);
  showReplicas(state);
  showScaling(state);
  showRequests(state);
}

/** Say that nothing came for a while; what is shown is then old. */
function checkSilence() {
  const seconds = (performance.now() - heard) / 1000;
  if (seconds < QUIET || !hasToken() || !$("locked").hidden) return;
  $("lost").hidden = false;
  say($("lost"), `No answer from the server for ${long(seconds)}; trying again.`);
  document.body.classList.add("stale");
  showHealth("no answer", "bad");
}

function lock(why = "") {
  $("locked").hidden = false;
  $("main").hidden = true;
  $("lost").hidden = true;
  $("wrong").textContent = why;
  showHealth("locked", "faint");
  $("token").focus();
}

async function follow() {
  for (;;) {
    try {
      for await (const data of events("/api/events")) {
        const { unix, state, lost } = JSON.parse(data);
        if (!lost) show(unix, state);
        if (!following) { following = true; followJournal(); }
      }
    } catch (error) {
      if (error.status === 401) return lock(error.message);
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY));
  }
}

function begin() {
  heard = performance.now();
  $("locked").hidden = true;
  showHealth("connecting", "calm");
  follow();
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken($("token").value);
  $("token").value = "";
  begin();
});

takeToken();
addEventListener("hashchange", () => location.reload()); // a new token in an open tab
restore();
setInterval(checkSilence, 500);
if (hasToken()) begin();
else lock();
