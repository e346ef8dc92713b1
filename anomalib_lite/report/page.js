// Sorts and filters the lines of the table, and shows their pictures large: one after the other, as near as one likes.
const $ = (id) => document.getElementById(id);
const body = document.querySelector("#table tbody"), rows = [...body.rows], heads = document.querySelectorAll("th[data-key]");
const names = new Map(rows.map((row) => [row, (row.querySelector(".name") || row.cells[1]).textContent]));
const openers = document.querySelectorAll("button.open");
let key = "score", direction = -1;

function compare(a, b) {
  if (key === "name") return direction * names.get(a).localeCompare(names.get(b), undefined, { numeric: true });
  const [x, y] = [a, b].map((row) => row.dataset[key]);
  if (key === "verdict") return direction * x.localeCompare(y);
  if (x === undefined || y === undefined) return (x === undefined) - (y === undefined); // without a score they come last
  return direction * (x - y);
}

function wanted(row) {
  const { kind, verdict, score } = row.dataset, [from, to] = ["from", "to"].map((id) => $(id).valueAsNumber);
  const chosen = (id, value) => !$(id) || !$(id).value || $(id).value === value;
  return names.get(row).toLowerCase().includes($("find").value.toLowerCase()) && chosen("verdict", verdict) && chosen("kind", kind) &&
    (Number.isNaN(from) || score >= from) && (Number.isNaN(to) || score <= to);
}

function show() {
  let count = 0;
  for (const row of rows) { row.hidden = !wanted(row); count += !row.hidden; }
  document.body.classList.toggle("without-heat", !$("heat").checked);
  $("shown").textContent = count ? `${count} of ${rows.length} images shown` : "No image is like that.";
}

function sort() {
  rows.sort(compare);
  body.append(...rows);
}

for (const head of heads) head.firstElementChild.addEventListener("click", () => {
  // The worst first: high scores, small p-values, and "alarm" by the alphabet.
  direction = key === head.dataset.key ? -direction : head.dataset.key === "score" ? -1 : 1;
  key = head.dataset.key;
  for (const other of heads) other.setAttribute("aria-sort", other !== head ? "none" : direction > 0 ? "ascending" : "descending");
  sort();
});
$("filter").addEventListener("input", show);
$("filter").addEventListener("reset", () => setTimeout(show)); // after the fields are empty
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("filter").hidden = false;
show();

// ---- a picture, large

const view = zoomable($("stage"), $("sheet"), (text) => { $("zoom-scale").textContent = text; });
let current = null;

// What next and previous go through: the lines that are shown, in their order; all of them from a picture that is not.
function series() {
  const withPicture = rows.filter((row) => row.querySelector(".open")), shown = withPicture.filter((row) => !row.hidden);
  return shown.includes(current) ? shown : withPicture;
}

async function choose(row) {
  current = row;
  const [picture, heat] = row.querySelectorAll(".picture img"), all = series();
  $("zoom-title").textContent = `${shortened(names.get(row))}: ${row.dataset.verdict} (${all.indexOf(row) + 1} of ${all.length})`;
  $("zoom-title").title = names.get(row);
  $("large").src = picture.src;
  $("large").alt = picture.alt;
  $("hot").hidden = !heat;
  if (heat) $("hot").src = heat.src;
  const lines = row.querySelector(".lines");
  $("drawn").replaceChildren(...lines ? [lines.cloneNode(true)] : []);
  $("zoom-outline").disabled = !lines;
  $("about").replaceChildren(...row.querySelector(".about").cloneNode(true).children);
  await $("large").decode().catch(() => {});
  if (current === row) view.lay($("large").naturalWidth, $("large").naturalHeight);
}

const shortened = (name) => name.length > 90 ? `…${name.slice(-89)}` : name; // ends differ

function step(by) {
  const all = series();
  choose(all[(all.indexOf(current) + by + all.length) % all.length]);
}

function drawHeat() {
  const on = $("zoom-heat").getAttribute("aria-pressed") === "true", from = $("compare").value;
  $("hot").style.clipPath = on ? `inset(0 0 0 ${from}%)` : "inset(0 0 0 100%)";
  $("edge").style.left = `${from}%`;
  $("edge").hidden = !on || from === "0" || from === "100" || $("hot").hidden;
}

function switchHeat() {
  $("zoom-heat").setAttribute("aria-pressed", String($("zoom-heat").getAttribute("aria-pressed") !== "true"));
  drawHeat();
}

function switchOutline() {
  const on = $("zoom-outline").getAttribute("aria-pressed") !== "true";
  $("zoom-outline").setAttribute("aria-pressed", String(on));
  $("drawn").hidden = !on;
}

function open(row) {
  $("zoom").showModal();
  $("stage").focus();
  drawHeat();
  choose(row);
}

const inOrder = [...rows]; // as written: the worst picture names its line by its place
for (const opener of openers) {
  opener.setAttribute("aria-haspopup", "dialog");
  opener.addEventListener("click", () => open(opener.closest("tr") || inOrder[opener.dataset.row]));
}
body.addEventListener("click", (event) => {
  if (!event.target.closest("button") && !String(getSelection())) event.target.closest("tr").querySelector(".open")?.click();
});
$("before").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("zoom-heat").addEventListener("click", switchHeat);
$("zoom-outline").addEventListener("click", switchOutline);
$("compare").addEventListener("input", drawHeat);
$("zoom-close").addEventListener("click", () => $("zoom").close());
for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => view.key(button.dataset.zoom));
$("zoom").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (event.target === $("compare") && (event.key.startsWith("Arrow") || event.key.startsWith("Page"))) return; // they move the slider
  if (event.key === "n" || event.key === "PageDown") step(1);
  else if (event.key === "p" || event.key === "PageUp") step(-1);
  else if (event.key === "h" && !document.body.classList.contains("no-maps")) switchHeat();
  else if (event.key === "o" && !$("zoom-outline").disabled) switchOutline();
  else if (sideways && !view.enlarged()) step(sideways);
  else if (!view.key(event.key)) return;
  event.preventDefault();
});
