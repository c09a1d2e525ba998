// Elements from words, and lists that change in place so that focus and clicks survive.

export const $ = (id) => document.getElementById(id);

/** Make an element: h("p", {class: "muted"}, "text", child, ...). A function is a listener. */
export function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "g", "text", "circle", "rect", "title"].includes(tag);
  const element = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

/** Set an element's text only if it differs: nothing is laid out again for nothing. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make the children of `parent` those of `items`, by key: create(item) once, update(node, item). */
export function keyed(parent, items, keyOf, create, update) {
  const before = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let place = null;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = before.get(key);
    before.delete(key);
    if (!node) {
      node = create(item);
      node.dataset.key = key;
    }
    update(node, item);
    const next = place ? place.nextSibling : parent.firstChild;
    if (next !== node) parent.insertBefore(node, next);
    place = node;
  }
  for (const node of before.values()) node.remove();
}

/** A cell that knows how to change: its parts by name in `cell.parts`. */
export function row(className, names, role = "cell") {
  const node = h("div", { class: className, role: "row" });
  node.parts = {};
  for (const [name, label] of names) {
    const part = h("div", { class: `c-${name}`, role, "data-label": label });
    node.parts[name] = part;
    node.append(part);
  }
  return node;
}

/** One line that stays a few seconds: what an order led to. */
export function announce(text, bad = false) {
  const line = $("said");
  line.textContent = text;
  line.className = bad ? "said shown bad-line" : "said shown";
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => { line.className = "said"; }, 6000);
}

for (const button of document.querySelectorAll("[data-close]"))
  button.addEventListener("click", () => button.closest("dialog").close());
for (const dialog of document.querySelectorAll("dialog"))
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
