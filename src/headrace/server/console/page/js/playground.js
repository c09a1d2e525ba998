// A chat with the served model, streamed.

import { $, h } from "./dom.js";
import { number, short } from "./format.js";
import { events } from "./api.js";
import { openExplain } from "./explain.js";

const SILENCE = 130000; // ms; the server says something every 15 s
let model = "";
let talk = []; // messages, as the API has them
let running = null; // AbortController of the answer under way

export function setModel(name) {
  model = name;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else send($("words").value.trim());
});
$("words").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("ask").requestSubmit();
  }
});
$("fresh").addEventListener("click", () => {
  running?.abort();
  talk = [];
  $("talk").replaceChildren();
  $("words").focus();
});

function bubble(role) {
  const text = h("p", { class: "text" });
  const under = h("p", { class: "under" });
  $("talk").append(h("div", { class: `bubble ${role}` }, text, under));
  return { text, under };
}

function scrollDown() {
  $("talk").scrollTop = $("talk").scrollHeight;
}

async function send(words) {
  if (!words) return $("words").focus();
  const mine = talk;
  mine.push({ role: "user", content: words });
  bubble("user").text.textContent = words;
  $("words").value = "";
  const place = bubble("assistant");
  place.text.classList.add("writing");
  scrollDown();
  running = new AbortController();
  $("send").textContent = "Stop";
  $("talk").setAttribute("aria-busy", "true");
  const answer = new Answer(place);
  try {
    await answer.read(mine, running.signal);
  } catch (error) {
    answer.failed(error);
  }
  place.text.classList.remove("writing");
  if (answer.text) mine.push({ role: "assistant", content: answer.text });
  else mine.pop();
  running = null;
  $("send").textContent = "Send";
  $("talk").removeAttribute("aria-busy");
}

/** One answer: its text so far, and when its tokens came. Times are ms of performance.now(). */
class Answer {
  constructor(place) {
    this.place = place;
    this.text = "";
    this.id = "";
    this.finish = "";
    this.begun = performance.now();
    this.first = null;
    this.last = null;
    this.tokens = 0;
  }

  async read(messages, signal) {
    const body = {
      model, messages, stream: true, stream_options: { include_usage: true },
      temperature: Number($("temperature").value), max_tokens: Number($("max-tokens").value),
    };
    const key = $("key").value;
    const headers = key ? { "x-headrace-key": key } : {};
    for await (const data of events("/api/chat", { body, headers, signal, patience: SILENCE })) {
      if (data === "[DONE]") return this.done();
      this.take(JSON.parse(data));
    }
    throw new Error("the answer broke off");
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    this.id = chunk.id ?? this.id;
    const choice = chunk.choices?.[0];
    const piece = choice?.delta?.content ?? "";
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    if (piece) {
      this.last = performance.now();
      this.first ??= this.last;
      this.tokens += 1;
      this.text += piece;
      this.place.text.append(piece);
      this.show();
      scrollDown();
    }
    if (chunk.usage) this.tokens = chunk.usage.completion_tokens;
  }

  show() {
    const parts = [];
    if (this.first != null) parts.push(`first token ${short((this.first - this.begun) / 1000)}`);
    parts.push(`${this.tokens} tokens`);
    if (this.last > this.first)
      parts.push(`${number(((this.tokens - 1) / (this.last - this.first)) * 1000)} tokens/s`);
    if (this.finish === "length") parts.push("cut at max tokens");
    this.place.under.textContent = parts.join(" · ");
  }

  done(note = "") {
    this.show();
    if (note) this.place.under.append(` · ${note}`);
    if (this.id) this.place.under.append(" · ", h("button", { class: "link", type: "button",
      click: () => openExplain(this.id) }, "explain"));
    scrollDown();
  }

  failed(error) {
    if (running?.signal.aborted) return this.done("stopped");
    this.place.under.textContent = error.status === 401
      ? "the server wants an API key: write it into the field below" : error.message;
    this.place.under.classList.add("bad");
    return undefined;
  }
}
