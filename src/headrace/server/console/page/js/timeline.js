// The last five minutes: one point a state. A reload keeps them, a pause is a gap.

const WINDOW = 300; // seconds
const KEY = "headrace-points";
export const GAP = 3; // seconds between two points that are not joined

const points = [];

export function pointOf(unix, state) {
  const gateway = state.gateway;
  return {
    at: unix,
    requests: gateway?.rates.requests,
    tokens: gateway?.rates.output_tokens,
    cached: gateway && gateway.rates.prompt_tokens > 0 ? gateway.rates.cached_share : null,
    ttft: gateway?.ttft.p50,
    ttft95: gateway?.ttft.p95,
    itl: gateway?.itl.p50,
    itl95: gateway?.itl.p95,
    waiting: gateway && gateway.waiting + sum(state.replicas, "waiting"),
    running: gateway && sum(state.replicas, "running"),
    replicas: state.replicas.filter((replica) => replica.state === "ready").length,
  };
}

const sum = (rows, name) => rows.reduce((total, each) => total + each[name], 0);

export function add(point) {
  if (points.length && point.at < points.at(-1).at) points.length = 0; // another server, or its clock
  points.push(point);
  while (points[0].at < point.at - WINDOW) points.shift();
}

export const all = () => points;
export const latest = () => points.at(-1);
export const span = () => { const end = latest()?.at ?? 0; return [end - WINDOW, end]; };

export function restore() {
  try {
    points.push(...JSON.parse(sessionStorage.getItem(KEY) ?? "[]"));
  } catch {
    sessionStorage.removeItem(KEY);
  }
  addEventListener("pagehide", () => sessionStorage.setItem(KEY, JSON.stringify(points)));
}
