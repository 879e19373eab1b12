"use strict";
// Tables sort, filter and copy; without a script they are plain tables.
const FEW = 2;

function say(text) {
  document.getElementById("said").textContent = text;
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function sortKey(row, index) {
  const cell = row.cells[index];
  const number = cell.dataset.v ?? cell.dataset.s;
  return number === undefined ? cell.textContent : Number(number);
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return typeof a === "number" ? -1 : 1;
}

function sort(table, index) {
  const header = table.tHead.rows[0].cells[index];
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const known = [...table.tBodies[0].rows].map((row) => [sortKey(row, index), row]);
  known.sort(([a], [b]) => (up ? compare(a, b) : compare(b, a)));
  table.tBodies[0].append(...known.map(([, row]) => row));
  say(`sorted by ${header.textContent}, ${up ? "ascending" : "descending"}`);
}

function filter(table, wanted) {
  const rows = [...table.tBodies[0].rows];
  const terms = wanted.toLowerCase().split(/\s+/);
  for (const row of rows) row.hidden = !terms.every((term) => row.textContent.toLowerCase().includes(term));
  say(`${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`);
}

function shown(table) {
  return [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => [...row.cells]);
}

function asCsv(table) {
  const field = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  // A spreadsheet takes text that starts so for a formula.
  const safe = (text) => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);
  const header = [...table.tHead.rows[0].cells].map((cell) => field(cell.dataset.key));
  const rows = shown(table).map((cells) => cells.map((cell) => cell.dataset.v ?? field(safe(cell.innerText))));
  return [header, ...rows].map((row) => row.join(",") + "\n").join("");
}

function asMarkdown(table) {
  const text = (cell) => cell.innerText.trim().replace(/[\\`*_[\]<>|~#]/g, "\\$&").replace(/\s*\n\s*/g, " ");
  const line = (cells) => `| ${cells.join(" | ")} |\n`;
  const headers = [...table.tHead.rows[0].cells];
  const rule = headers.map((cell) => (cell.classList.contains("n") ? "---:" : "---"));
  const rows = shown(table).map((cells) => line(cells.map(text)));
  return [line(headers.map(text)), line(rule), ...rows].join("");
}

async function copy(text, kind) {
  try {
    await navigator.clipboard.writeText(text);
    say(`copied as ${kind}`);
  } catch {
    const area = make("textarea", { value: text, className: "hidden" });
    document.body.append(area);
    area.select();
    say(document.execCommand("copy") ? `copied as ${kind}` : "the browser does not let this page copy");
    area.remove();
  }
}

function equip(table) {
  if (table.tBodies[0].rows.length < FEW) return;
  const caption = table.caption.textContent;
  [...table.tHead.rows[0].cells].forEach((cell, index) => {
    const button = make("button", { type: "button", onclick: () => sort(table, index) }, ...cell.childNodes);
    cell.replaceChildren(button);
    cell.setAttribute("aria-sort", "none");
  });
  const search = make("input", { type: "search", placeholder: "filter rows" });
  search.setAttribute("aria-label", `filter rows of ${caption}`);
  search.oninput = () => filter(table, search.value);
  const copies = [["CSV", asCsv], ["markdown", asMarkdown]].map(([kind, write]) => {
    const button = make("button", { type: "button", onclick: () => copy(write(table), kind) }, `copy ${kind}`);
    button.setAttribute("aria-label", `copy ${kind} of ${caption}`);
    return button;
  });
  table.closest(".scroll").before(make("div", { className: "tools" }, search, ...copies));
}

function start() {
  document.querySelectorAll("main > .table table").forEach(equip);
  // Those of charts only once they are looked at.
  document.querySelectorAll("details").forEach((details) => {
    details.addEventListener("toggle", () => equip(details.querySelector("table")), { once: true });
  });
}

// Of a page that a server sends: whenever its state is another one, the report is fetched again.
async function follow(state) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    try {
      if ((await (await fetch("state")).text()) === state) continue;
      const page = new DOMParser().parseFromString(await (await fetch("./")).text(), "text/html");
      document.querySelector("main").replaceWith(page.querySelector("main"));
      state = page.body.dataset.live;
      start();
      say("the report was updated");
    } catch {
      say("the server does not answer");
    }
  }
}

start();
if (document.body.dataset.live) follow(document.body.dataset.live);
