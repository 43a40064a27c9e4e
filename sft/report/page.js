"use strict";

const page = JSON.parse(document.getElementById("for-script").textContent);
const PAGE_ROWS = page.kind === "spans" ? 50 : 25;
const EXCERPT_CHARACTERS = 300; // of an article in the list; as much of it is shown as fits into two lines
const SHORT_CHARACTERS = 12; // a shorter span and its tag stay on one line where they fit
const HUES = [210, 30, 130, 280, 0, 175, 55, 330]; // label number n has hue n modulo 8
let language = 0; // 0: Chinese, 1: English

// ---- words ----

// A key that is not in the table is the name of a task's own metric. A value that is itself a key is put into words.
function words(key, values = {}) {
  if (!(key in page.strings)) return key.replace(/^eval_/, "");
  const value = (name) => page.strings[values[name]]?.[language] ?? values[name];
  return page.strings[key][language].replace(/\{(\w+)\}/g, (whole, name) => value(name) ?? whole);
}

function translate() {
  document.documentElement.lang = language ? "en" : "zh-CN";
  for (const element of document.querySelectorAll("[data-t]")) {
    element.textContent = words(element.dataset.t, JSON.parse(element.dataset.a ?? "{}"));
  }
  for (const element of document.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", words(element.dataset.tLabel));
  }
  const button = document.getElementById("language");
  button.textContent = words("language");
  button.lang = language ? "zh-CN" : "en";
}

// Create an element with a class and children. Strings become text, never HTML.
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function labelName(number) {
  return number === -1 ? words("no_label") : page.labels[number];
}

// ---- curves: show the values at the pointer, or at the step chosen with the arrow keys ----

function nearest(places, x) {
  return places.reduce((best, place, index) => (Math.abs(place - x) < Math.abs(places[best] - x) ? index : best), 0);
}

function shown(value) {
  return value === null ? "NaN" : Number(value.toPrecision(4)).toString();
}

function followCurve(svg) {
  const chart = page.charts[svg.dataset.chart];
  const cursor = svg.querySelector(".cursor");
  const reading = svg.closest("figure").querySelector(".reading");
  let at = null;

  function show(index) {
    at = index;
    cursor.setAttribute("x1", chart.step_x[index]);
    cursor.setAttribute("x2", chart.step_x[index]);
    cursor.removeAttribute("hidden");
    const step = chart.steps[index];
    const values = chart.series
      .filter((series) => step in series.values)
      .map((series) => `${words(series.name)} ${shown(series.values[step])}`);
    reading.textContent = [`${words(chart.over)} ${step}`, ...values].join(" · ");
  }

  function leave() {
    if (svg === document.activeElement) return;
    cursor.setAttribute("hidden", "");
    reading.textContent = "";
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    show(nearest(chart.step_x, ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width));
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("focus", () => show(at ?? chart.steps.length - 1));
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const last = chart.steps.length - 1;
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(Math.min(last, Math.max(0, moves[event.key])));
  });
}

// ---- rows ----

// A row of either kind of page as an object: the page stores each row as an array to save space.
function read(row) {
  if (page.kind === "spans") {
    const [number, text, length, gold, predicted, errors, judged] = row;
    return { number, text, length, gold, predicted, errors, judged, wrong: errors.length > 0 };
  }
  const [number, text, length, gold, predicted, score, likely, judged] = row;
  return { number, text, length, gold, predicted, score, likely, judged, wrong: judged && gold !== predicted };
}

function hasKind(row, kind) {
  if (kind === "all") return true;
  if (kind === "wrong") return row.wrong;
  if (kind === "right") return row.judged && !row.wrong;
  return row.errors.some(([number]) => page.kinds[number] === kind);
}

// Whether the row has a span with this label: among the errors that `kind` selects, or for "all" and "right" among all
// gold and predicted spans.
function hasLabel(row, kind, label) {
  const spans = ["all", "right"].includes(kind)
    ? [...row.gold, ...row.predicted]
    : row.errors.filter(([number]) => kind === "wrong" || page.kinds[number] === kind).flatMap((error) => error.slice(1));
  return spans.some((span) => span && span[2] === label);
}

function choose(rows, form) {
  const value = (name) => form.elements[name]?.value ?? "";
  const kind = value("kind");
  const searched = value("search").trim();
  const chosen = rows.filter(
    (row) =>
      hasKind(row, kind) &&
      (value("label") === "" || hasLabel(row, kind, Number(value("label")))) &&
      (value("gold_label") === "" || (row.judged && row.gold === Number(value("gold_label")))) &&
      (value("predicted_label") === "" || row.predicted === Number(value("predicted_label"))) &&
      row.text.includes(searched),
  );
  const orders = { by_confidence: (a, b) => b.score - a.score, by_unsureness: (a, b) => a.score - b.score };
  return value("order") in orders ? chosen.sort(orders[value("order")]) : chosen;
}

function rest(row, characters) {
  return row.length > characters.length ? [words("clipped", { length: row.length.toLocaleString("en") })] : [];
}

function showArticle(row) {
  const verdict = make("span", "verdict");
  const predicted = make("b", row.wrong ? "bad" : "", labelName(row.predicted));
  if (row.judged) verdict.append(`${words("gold_is")} `, make("b", "", labelName(row.gold)), " → ");
  verdict.append(`${words("predicted_is")} `, predicted);
  if (row.score !== null) verdict.append(make("span", "sure", `${words("confidence")} ${row.score.toFixed(3)}`));
  const chances = row.likely.map(([label, chance]) => `${labelName(label)} ${chance.toFixed(3)}`).join(" · ");
  return make(
    "li",
    "",
    make(
      "details",
      "",
      make(
        "summary",
        "",
        make("span", "number", words("row", { row: row.number })),
        verdict,
        make("span", "excerpt", row.text.slice(0, EXCERPT_CHARACTERS)),
      ),
      make("p", "text", row.text, ...rest(row, Array.from(row.text))),
      make("p", "chances", chances),
    ),
  );
}

// The text with its spans highlighted. Offsets count code points, as in Python, so a surrogate pair counts as one.
function marked(row, spans, kindOf) {
  const characters = Array.from(row.text);
  const line = make("span", "text");
  let at = 0;
  for (const span of [...spans].sort((a, b) => a[0] - b[0])) {
    const [start, end, label, score] = span;
    const kind = kindOf.get(span.slice(0, 3).join());
    line.append(characters.slice(at, Math.max(at, start)).join(""));
    const surface = characters.slice(Math.max(at, start), end).join("");
    const mark = make("mark", kind === undefined ? "" : "bad", surface);
    if (end - start <= SHORT_CHARACTERS && !surface.includes("\n")) mark.classList.add("short");
    mark.style.setProperty("--hue", HUES[label % HUES.length]);
    mark.append(make("small", "", labelName(label) + (kind === undefined ? "" : ` · ${words(page.kinds[kind])}`)));
    if (score !== undefined && score !== null) mark.title = `${words("confidence")} ${score.toFixed(3)}`;
    line.append(mark);
    at = Math.max(at, end);
  }
  line.append(characters.slice(at).join(""), ...rest(row, characters));
  return line;
}

function showSentence(row) {
  const kinds = [...new Set(row.errors.map(([kind]) => kind))];
  const head = make("div", "", make("span", "number", words("row", { row: row.number })));
  head.append(...kinds.map((kind) => make("span", "badge", words(page.kinds[kind]))));
  const kindOf = (place) =>
    new Map(row.errors.filter((error) => error[place]).map((error) => [error[place].join(), error[0]]));
  const lines = [];
  const add = (name, spans, place) =>
    lines.push(make("div", "sentence", make("span", "", words(name)), marked(row, spans, kindOf(place))));
  if (!row.judged) add("predicted_line", row.predicted, 2);
  else if (!row.wrong) add("both_line", row.predicted, 2);
  else {
    add("gold_line", row.gold, 1);
    add("predicted_line", row.predicted, 2);
  }
  return make("li", "", head, ...lines);
}

function browseRows() {
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const previous = document.getElementById("previous");
  const next = document.getElementById("next");
  const rows = page.rows.map(read);
  const show = page.kind === "spans" ? showSentence : showArticle;
  let chosen = [];
  let first = 0;

  function draw() {
    const last = Math.min(first + PAGE_ROWS, chosen.length);
    list.replaceChildren(...chosen.slice(first, last).map(show));
    document.getElementById("position").textContent = chosen.length
      ? words("page_of", { first: first + 1, last, total: chosen.length.toLocaleString("en") })
      : words("none_match");
    previous.disabled = first === 0;
    next.disabled = last >= chosen.length;
  }

  function filter() {
    first = 0;
    chosen = choose(rows, form);
    draw();
  }

  function turn(by, button) {
    first += by * PAGE_ROWS;
    draw();
    form.scrollIntoView({ block: "start" });
    (button.disabled ? (by > 0 ? previous : next) : button).focus({ preventScroll: true });
  }

  for (const count of form.querySelectorAll("[data-count]")) {
    const found = rows.filter((row) => hasKind(row, count.dataset.count)).length;
    count.textContent = found.toLocaleString("en");
    count.closest("label").hidden = found === 0 && count.dataset.count !== "all";
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  previous.addEventListener("click", () => turn(-1, previous));
  next.addEventListener("click", () => turn(1, next));
  document.getElementById("confusion")?.addEventListener("click", (event) => {
    const cell = event.target.closest("button");
    if (!cell) return;
    form.elements.kind.value = "all";
    form.elements.search.value = "";
    form.elements.gold_label.value = cell.dataset.gold;
    form.elements.predicted_label.value = cell.dataset.predicted;
    filter();
    document.getElementById("rows").scrollIntoView();
    form.elements.gold_label.focus({ preventScroll: true });
  });
  filter();
  return draw;
}

// Keyboard access to the confusion matrix: Tab reaches one cell, and the arrow keys move to the next cell with rows.
function moveInMatrix(table) {
  const cells = [...table.querySelectorAll("button")];
  const place = (cell) => [cell.closest("tr").rowIndex, cell.closest("td").cellIndex];
  const enter = (cell) => cells.forEach((other) => (other.tabIndex = other === cell ? 0 : -1));
  enter(cells[0]);
  table.addEventListener("focusin", (event) => cells.includes(event.target) && enter(event.target));
  table.addEventListener("keydown", (event) => {
    const [along, sign] = { ArrowLeft: [1, -1], ArrowRight: [1, 1], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (along === undefined || !cells.includes(event.target)) return;
    event.preventDefault();
    const from = place(event.target);
    const ahead = cells
      .filter((cell) => place(cell)[1 - along] === from[1 - along] && sign * (place(cell)[along] - from[along]) > 0)
      .sort((a, b) => sign * (place(a)[along] - place(b)[along]));
    ahead[0]?.focus();
  });
}

// ---- start ----

document.querySelectorAll("[data-chart]").forEach(followCurve);
const redraw = document.getElementById("filters") ? browseRows() : () => {};
const matrix = document.getElementById("confusion");
if (matrix?.querySelector("button")) moveInMatrix(matrix);
document.getElementById("language").addEventListener("click", () => {
  language = 1 - language;
  translate();
  redraw();
});
