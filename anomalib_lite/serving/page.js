// The page of the server: asks for what is new once a second, shows it, and sends what people say.
import { chart } from "/page.charts.js";
import { zoomable } from "/zoom.js";

const $ = (id) => document.getElementById(id);
const state = { part: null, entries: [], chosen: null, follow: true, heat: true, thumbnails: new Map(), beside: null };
let token = sessionStorage.getItem("token") || "";

async function ask(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers };
  if (body !== undefined) {
    options.method = "POST";
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.status === 401) { enter(); throw new Error("a token is needed"); }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(typeof told.detail === "string" ? told.detail : `the server answered ${answer.status}`);
  }
  return answer;
}
const json = async (path, body) => (await ask(path, body)).json();
const at = (path) => `/v1/models/${encodeURIComponent(state.part)}/${path}`;

async function load(path) {
  try { return URL.createObjectURL(await (await ask(path)).blob()); } catch { return null; }
}
const image = (id, width, heat, outline = true) => load(`/v1/verdicts/${id}/picture?width=${width}&heat=${heat}&outline=${outline}`);

// Show a picture in place of another one, which is let go of.
function show(picture, url) {
  const before = picture.src;
  if (url) picture.src = url; else picture.removeAttribute("src");
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
}

const counted = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
const kind = (verdict) => verdict.replace(" ", "-");
const percent = (share) => share === null ? "–" : `${+(100 * share).toPrecision(2)} %`;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function enter() { $("login").hidden = false; $("main").hidden = true; $("token").focus(); }

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = $("token").value;
  try {
    await json("/v1/models");
    sessionStorage.setItem("token", token);
    $("login").hidden = true;
    begin();
  } catch { $("refused").textContent = "That token is not known."; }
});

// ---- the chosen part

async function choose(entry, byHand) {
  if (byHand) setFollow(entry.id === (state.entries[0] || entry).id && state.follow);
  state.chosen = entry;
  const verdict = $("verdict");
  verdict.textContent = entry.verdict;
  verdict.className = kind(entry.verdict);
  $("name").textContent = `${entry.name || `part ${entry.id}`}${entry.lot ? `, lot ${entry.lot}` : ""}, ${new Date(entry.time).toLocaleTimeString()}`;
  $("reason").textContent = entry.reason;
  const figures = $("figures");
  figures.replaceChildren();
  const rows = entry.score === null ? [] : [
    ["score", `${entry.score.toFixed(3)} (alarm above ${entry.threshold.toFixed(3)})`],
    ["p-value", entry.p_value.toFixed(4)],
    ["regions", entry.regions.length || "none"],
  ];
  rows.push(["version", entry.version], ["took", `${entry.milliseconds.toFixed(0)} ms`]);
  for (const [name, value] of rows) figures.append(element("dt", name), element("dd", String(value)));
  showSaid(entry);
  for (const button of $("strip").querySelectorAll("button")) button.setAttribute("aria-current", String(+button.dataset.id === entry.id));
  const wanted = entry.id;
  const url = await image(entry.id, 1024, state.heat);
  if (!state.chosen || state.chosen.id !== wanted) { if (url) URL.revokeObjectURL(url); return; }
  $("nopicture").hidden = url !== null;
  $("enlarge").hidden = url === null;
  $("larger").disabled = url === null;
  show($("picture"), url);
  $("picture").alt = `${entry.name || "part"}: ${entry.verdict}`;
  $("enlarge").setAttribute("aria-label", `Enlarge the picture of ${entry.name || `part ${entry.id}`}: ${entry.verdict}`);
  await drawBeside(entry, byHand || !state.follow);
}

// The nearest good patch takes the server as long as a verdict does, so not for every good part that comes by.
async function drawBeside(entry, wanted) {
  if (state.beside === entry.id) return;
  state.beside = null;
  if (entry.score === null || !(wanted || entry.verdict !== "good")) { $("beside").hidden = true; return; }
  let found;
  try { found = await json(`/v1/verdicts/${entry.id}/nearest`); } catch { $("beside").hidden = true; return; }
  const sides = await Promise.all(["part", "good"].map((side) => side === "good" && found.missing ? null : load(`/v1/verdicts/${entry.id}/nearest/${side}`)));
  if (state.chosen.id !== entry.id) { sides.forEach((url) => { if (url) URL.revokeObjectURL(url); }); return; }
  show($("beside-part"), sides[0]);
  show($("beside-good"), sides[1]);
  $("beside-shown").hidden = !sides[1];
  $("beside-told").textContent = found.missing || `Good, from ${found.train_id}; distance ${found.distance.toPrecision(3)}.`;
  $("beside").hidden = false;
  state.beside = entry.id;
}

function showSaid(entry) {
  $("said").textContent = entry.good === null || entry.good === undefined ? "Nobody has said anything of this part yet."
    : `Somebody said: it was ${entry.good ? "good" : "bad"}.`;
  $("undo").disabled = entry.good === null || entry.good === undefined;
}

async function say(good) {
  if (!state.chosen) return;
  const body = { good, kind: $("kind").value, note: $("note").value, who: $("who").value };
  try {
    const entry = await json(`/v1/verdicts/${state.chosen.id}/said`, body);
    if (good !== null) { $("kind").value = ""; $("note").value = ""; }
    const known = state.entries.find((one) => one.id === entry.id);
    if (known) known.good = entry.good;
    if (state.chosen.id === entry.id) { state.chosen.good = entry.good; showSaid(entry); }
    drawQueue();
  } catch (error) { $("said").textContent = `Not noted: ${error.message}`; }
}

function setFollow(follow) { state.follow = follow; $("follow").setAttribute("aria-pressed", String(follow)); }

// ---- the picture, large

const zoom = { entry: null, heat: true, outline: true };
const view = zoomable($("stage"), $("sheet"), (text) => { $("zoom-scale").textContent = text; });

async function enlarge() {
  if (!state.chosen || $("enlarge").hidden) return;
  setFollow(false); // what one looks at stays
  Object.assign(zoom, { entry: state.chosen, heat: state.heat, outline: true });
  $("zoom-title").textContent = `${zoom.entry.name || `part ${zoom.entry.id}`}: ${zoom.entry.verdict}`;
  $("large").alt = $("zoom-title").textContent;
  $("lines").replaceChildren();
  $("zoom").showModal();
  $("stage").focus();
  await drawLarge();
  const told = await json(`/v1/verdicts/${zoom.entry.id}/outlines`).catch(() => ({ regions: [] }));
  $("lines").setAttribute("viewBox", `0 0 ${told.width} ${told.height}`);
  for (const className of ["outer", "inner"]) {
    for (const rings of told.regions) {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", className);
      path.setAttribute("d", rings.map((ring) => `M${ring.map((corner) => corner.map((value) => value.toFixed(2)).join(",")).join("L")}Z`).join(""));
      $("lines").append(path);
    }
  }
  $("zoom-outline").disabled = !told.regions.length;
}

async function drawLarge() {
  const { entry, heat } = zoom;
  $("zoom-heat").setAttribute("aria-pressed", String(heat));
  $("zoom-outline").setAttribute("aria-pressed", String(zoom.outline));
  $("lines").style.display = zoom.outline ? "" : "none";
  const key = `${entry.id} ${heat}`;
  if ($("large").dataset.shown === key && $("large").src) return;
  const url = await image(entry.id, 4096, heat, false);
  if (zoom.entry !== entry || zoom.heat !== heat) { if (url) URL.revokeObjectURL(url); return; }
  const same = $("large").dataset.shown && $("large").dataset.shown.split(" ")[0] === String(entry.id);
  show($("large"), url);
  $("large").dataset.shown = key;
  if (!url) return;
  await $("large").decode().catch(() => {});
  if (!same) view.lay($("large").naturalWidth, $("large").naturalHeight);
}

const switchHeat = () => { zoom.heat = !zoom.heat; drawLarge(); };
const switchOutline = () => { zoom.outline = !zoom.outline; drawLarge(); };
$("enlarge").addEventListener("click", enlarge);
$("larger").addEventListener("click", enlarge);
$("zoom-heat").addEventListener("click", switchHeat);
$("zoom-outline").addEventListener("click", switchOutline);
$("zoom-close").addEventListener("click", () => $("zoom").close());
for (const button of document.querySelectorAll("[data-zoom]")) button.addEventListener("click", () => view.key(button.dataset.zoom));
$("zoom").addEventListener("close", () => { show($("large"), null); delete $("large").dataset.shown; ($("enlarge").hidden ? $("larger") : $("enlarge")).focus(); });
$("zoom").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "h") switchHeat();
  else if (event.key === "o" && !$("zoom-outline").disabled) switchOutline();
  else if (!view.key(event.key)) return;
  event.preventDefault();
});

// ---- strip, counts, drift, queue

async function drawStrip() {
  const strip = $("strip"), wanted = new Set(state.entries.map((entry) => entry.id));
  for (const item of [...strip.children]) {
    if (wanted.has(+item.dataset.id)) continue;
    item.remove();
    const url = state.thumbnails.get(+item.dataset.id);
    if (url) URL.revokeObjectURL(url);
    state.thumbnails.delete(+item.dataset.id);
  }
  const there = new Set([...strip.children].map((item) => +item.dataset.id));
  for (const entry of [...state.entries].reverse()) {
    if (there.has(entry.id)) continue;
    const item = element("li"), button = element("button", undefined, kind(entry.verdict));
    item.dataset.id = button.dataset.id = entry.id;
    button.title = entry.name;
    const picture = element("img");
    picture.alt = "";
    picture.hidden = true;
    button.append(picture, element("span", entry.verdict));
    button.addEventListener("click", () => choose(entry, true));
    item.append(button);
    strip.prepend(item);
    image(entry.id, 96, false).then((url) => {
      if (!url) return;
      state.thumbnails.set(entry.id, url);
      picture.src = url;
      picture.hidden = false;
    });
  }
}

function drawState(told) {
  state.judged = told.judged;
  $("version").textContent = `version ${told.version}, ${told.digest.slice(0, 8)}`;
  $("rate").textContent = told.judged
    ? `${percent(told.alarm_rate)} of ${told.judged} parts alarm with this version; of good ones ${percent(told.promised_rate)} at most are to` +
      (told.guarantee_met ? "." : ", which is not promised: too few good pictures were learnt from.")
    : "No part has been judged by this version yet.";
  const { good, false_alarms: wrong, bad } = told.confirmed;
  $("confirmed").textContent = good + bad ? `Confirmed so far: ${good} good, ${wrong} of them alarms; ${bad} bad.` : "Nothing has been confirmed yet: say of parts above what they were.";
  if (!$("percent").value) $("percent").value = +(100 * told.false_alarm_rate).toPrecision(3);
  const total = Object.values(told.counts).reduce((sum, count) => sum + count, 0) || 1;
  $("bars").replaceChildren(...Object.entries(told.counts).map(([verdict, count]) => {
    const bar = element("div", undefined, `bar ${kind(verdict)}`), cell = element("span"), fill = element("i");
    fill.style.width = `${100 * count / total}%`;
    cell.append(fill);
    bar.append(element("span", verdict), cell, element("span", String(count)));
    return bar;
  }));
  $("drift").textContent = told.drift.explanation;
  $("drift").className = told.drift.alarm ? "alarm" : "";
  $("queue-count").textContent = told.to_look_at ? `${told.to_look_at}${told.to_look_at >= 1000 ? " or more" : ""}` : "";
  $("connection").textContent = told.pictures_full ? "The disk is full: pictures are not kept, parts are judged on." : "";
}

const evidence = (value) => value >= 1e4 || value < 0.01 ? value.toExponential(0) : `${+value.toPrecision(2)}`;
const time = (milliseconds) => milliseconds >= 1000 ? `${(milliseconds / 1000).toPrecision(2)} s` : `${Math.round(milliseconds)} ms`;

async function drawCourse() {
  const { alarms, drift, latency } = await json(at("course"));
  const last = (values) => values[values.length - 1], none = !alarms.judged;
  for (const name of ["rate-key", "drift-key"]) $(name).hidden = none;
  $("latency-key").hidden = latency.median === null;
  if (!none) {
    const now = last(alarms.rates), low = last(alarms.low), high = last(alarms.high);
    const meaning = now > high ? "More than chance gives good parts: there are defects among them, or the line has changed."
      : now < low ? "Fewer than promised." : "As many as good parts may give by chance.";
    const lately = state.judged > alarms.judged ? ` Of the last ${alarms.judged}, ${alarms.alarms} do (${percent(now)});` : " Of so many,";
    $("rate").textContent += `${lately} chance allows ${percent(low)} to ${percent(high)}. ${meaning}`;
  }
  chart($("rate-chart"), { values: alarms.rates, band: alarms, lines: [{ value: alarms.promised }], write: percent,
    says: none ? "" : `Share of alarms among the last ${alarms.judged} parts: ${percent(last(alarms.rates))}, promised ${percent(alarms.promised)}, chance allows ${percent(last(alarms.low))} to ${percent(last(alarms.high))}.` });
  chart($("drift-chart"), { values: drift.evidence, level: { value: drift.level }, logarithmic: true, write: evidence,
    says: none ? "" : `Evidence that the line has changed: ${evidence(last(drift.evidence))}; ${drift.level} is an alarm.` });
  $("latency").textContent = latency.median === null ? "No verdict yet." : `Half of the verdicts take ${time(latency.median)} at most, 95 of 100 take ${time(latency.p95)}, from a picture's arrival on.`;
  chart($("latency-chart"), { values: latency.milliseconds, lines: latency.median === null ? [] : [{ value: latency.p95 }], write: time,
    says: latency.median === null ? "" : `Time of the last ${latency.milliseconds.length} verdicts: median ${time(latency.median)}, 95 % below ${time(latency.p95)}.` });
}

async function drawQueue() {
  const waiting = await json(at("verdicts?to_look_at=true&limit=30"));
  const queue = $("queue");
  if (!waiting.length) { queue.replaceChildren(element("li", "Nothing waits.", "soft")); return; }
  queue.replaceChildren(...waiting.map((entry) => {
    const item = element("li"), open = element("button", "Look");
    open.addEventListener("click", () => { setFollow(false); choose(entry, false); scrollTo({ top: 0 }); });
    item.append(element("span", entry.verdict, kind(entry.verdict)), element("span", entry.name || `part ${entry.id}`, "soft"), open);
    return item;
  }));
}

// ---- versions

async function drawVersions() {
  const versions = await json(at("versions"));
  $("versions").replaceChildren(...versions.reverse().map((version) => {
    const item = element("li");
    item.append(element("span", `${version.number}: ${version.note || "as given"}`));
    if (version.current) item.append(element("strong", "judges"));
    else {
      const go = element("button", version.state === "proposed" ? "Release" : "Go back to it");
      go.addEventListener("click", () => change(`versions/${version.number}/release`, `Version ${version.number} judges now.`));
      item.append(go);
      if (version.state === "proposed") {
        const drop = element("button", "Discard");
        drop.addEventListener("click", () => change(`versions/${version.number}/discard`, `Version ${version.number} is discarded.`));
        item.append(drop);
      } else if (version.state === "discarded") item.append(element("span", "discarded", "soft"));
    }
    return item;
  }));
}

async function change(path, text) {
  try { await json(at(path), {}); $("proposal").textContent = text; $("comparison").replaceChildren(); }
  catch (error) { $("proposal").textContent = error.message; }
  await drawVersions();
  await look(true);
}

function wished() {
  const how = document.querySelector("input[name=how]:checked").value;
  const wish = { learn: $("learn").checked, recalibrate: how === "good", find_confirmed: how === "bad" };
  if (how === "rate") wish.false_alarm_rate = $("percent").valueAsNumber / 100;
  return wish;
}

// Parts that a new version judges otherwise, as small pictures that lead to them.
function otherwise(title, ids) {
  const box = element("div"), row = element("div", undefined, "thumbs");
  box.append(element("h3", `${title}: ${ids.length}`), row);
  for (const id of ids.slice(0, 24)) {
    const button = element("button"), picture = element("img");
    picture.alt = `part ${id}`;
    button.append(picture);
    button.addEventListener("click", async () => { setFollow(false); choose(await json(`/v1/verdicts/${id}`), true); $("latest").scrollIntoView(); $("verdict").focus(); });
    row.append(button);
    image(id, 128, false).then((url) => { if (url) picture.src = url; });
  }
  if (ids.length > 24) row.append(element("span", `and ${ids.length - 24} more`));
  return box;
}

$("percent").addEventListener("input", () => { $("by-rate").checked = true; });
$("wish").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = $("propose");
  button.disabled = true;
  $("proposal").textContent = "Learning, and judging everything confirmed again …";
  try {
    const { version, comparison, doubts } = await json(at("versions"), wished());
    $("proposal").textContent = `Version ${version.number} is proposed: ${version.note}. ` +
      `${counted(comparison.cured.length, "false alarm")} cured, ${counted(comparison.lost.length, "defect")} lost.`;
    const table = element("table"), body = [
      ["", `now (${comparison.before.version})`, `then (${comparison.after.version})`],
      [`confirmed good that alarm, of ${comparison.good}`, comparison.before.good_that_alarm, comparison.after.good_that_alarm],
      [`confirmed bad that alarm, of ${comparison.bad}`, comparison.before.bad_that_alarm, comparison.after.bad_that_alarm],
      ["threshold", comparison.before.threshold.toFixed(3), comparison.after.threshold.toFixed(3)],
    ];
    body.forEach((row, i) => {
      const line = element("tr");
      row.forEach((cell, k) => {
        const made = element(k && i ? "td" : i || k ? "th" : "td", String(cell));
        if (made.tagName === "TH") made.scope = i ? "row" : "col";
        line.append(made);
      });
      table.append(line);
    });
    const doubted = element("ul", undefined, "doubts");
    doubted.append(...doubts.map((doubt) => element("li", doubt)));
    const lists = [["False alarms cured", comparison.cured], ["Defects lost", comparison.lost],
      ["Good ones that alarm now", comparison.newly_alarming], ["Defects found now", comparison.newly_found]];
    $("comparison").replaceChildren(table, ...(doubts.length ? [doubted] : []), ...lists.filter(([, ids]) => ids.length).map((list) => otherwise(...list)));
  } catch (error) { $("proposal").textContent = error.message; $("comparison").replaceChildren(); }
  button.disabled = false;
  await drawVersions();
});

// ---- what is asked for again and again

async function look(all) {
  const [told, entries] = await Promise.all([json(at("state")), json(at("verdicts?limit=50"))]);
  drawState(told);
  const newest = entries.length ? entries[0].id : 0, changed = all || !state.entries.length || newest !== state.entries[0].id;
  state.entries = entries;
  await drawCourse();
  if (changed) {
    await drawStrip();
    if (state.follow && entries.length) await choose(entries[0], false);
    await drawQueue();
  }
}

async function keepLooking() {
  while (true) {
    if (!$("main").hidden && state.part) {
      try { await look(false); $("connection").classList.remove("alarm"); }
      catch (error) { $("connection").textContent = `Not connected: ${error.message}`; $("connection").classList.add("alarm"); }
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function begin() {
  const models = await json("/v1/models");
  const chosen = $("part");
  chosen.replaceChildren(...models.map((model) => element("option", model.part)));
  if (!models.length) return;
  state.part = models[0].part;
  $("main").hidden = false;
  await drawVersions();
  await look(true);
}

$("part").addEventListener("change", async () => {
  state.part = $("part").value;
  state.entries = [];
  $("strip").replaceChildren();
  setFollow(true);
  await drawVersions();
  await look(true);
});
$("good").addEventListener("click", () => say(true));
$("bad").addEventListener("click", () => say(false));
$("undo").addEventListener("click", () => say(null));
$("heat").addEventListener("click", () => {
  state.heat = !state.heat;
  $("heat").setAttribute("aria-pressed", String(state.heat));
  if (state.chosen) choose(state.chosen, false);
});
$("follow").addEventListener("click", () => {
  setFollow(!state.follow);
  if (state.follow && state.entries.length) choose(state.entries[0], false);
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=checkbox], [type=radio]), select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("zoom").open) return;
  const button = document.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
  if (button && !button.disabled && !button.hidden) { event.preventDefault(); button.click(); return; }
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !state.entries.length || event.target.type === "radio") return; // arrows choose among those
  const place = state.entries.findIndex((entry) => state.chosen && entry.id === state.chosen.id);
  const next = state.entries[Math.min(state.entries.length - 1, Math.max(0, place + step))];
  event.preventDefault();
  setFollow(false);
  choose(next, false);
});
begin().catch(() => {});
keepLooking();
