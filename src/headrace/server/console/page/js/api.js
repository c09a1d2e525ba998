// Everything that is asked of the console process. The token never leaves this module but as a header.

const KEY = "headrace-token";
const PATIENCE = 15000; // ms without an event: states come twice a second

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Take the token from the address (#token=...), and the address bar clean of it. */
export function takeToken() {
  const match = /[#&]token=([^&]+)/.exec(location.hash);
  if (!match) return;
  sessionStorage.setItem(KEY, decodeURIComponent(match[1]));
  history.replaceState(null, "", location.pathname);
}

export function setToken(text) {
  const match = /token=([^&\s]+)/.exec(text);
  sessionStorage.setItem(KEY, match ? decodeURIComponent(match[1]) : text.trim());
}

export const hasToken = () => Boolean(sessionStorage.getItem(KEY));

async function ask(path, { body, headers, signal } = {}) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET",
    headers: {
      Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}`,
      ...(body && { "Content-Type": "application/json" }),
      ...headers,
    },
    body: body && JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new Refused(response.status, await reason(response));
  return response;
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

export const get = async (path) => (await ask(path, { signal: AbortSignal.timeout(8000) })).json();
export const order = async (path, body) =>
  (await ask(path, { body, signal: AbortSignal.timeout(8000) })).json();

/** Yield the data of each server-sent event. EventSource cannot send the token. */
export async function* events(path, { patience = PATIENCE, signal, ...options } = {}) {
  const stop = new AbortController();
  let timer = setTimeout(() => stop.abort(), patience);
  const any = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
  try {
    const response = await ask(path, { ...options, signal: any });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(), patience);
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    clearTimeout(timer);
    stop.abort();
  }
}
