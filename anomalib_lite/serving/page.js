"use strict";
// The page of the server: asks for what is new once a second, shows it, and sends what people say.
const $ = (id) => document.getElementById(id);
const state = { part: null, entries: [], chosen: null, follow: true, heat: true, thumbnails: new Map(), known: "" };
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

async function image(id, width, heat) {
  try {
    const answer = await ask(`/v1/verdicts/${id}/picture?width=${width}&heat=${heat}`);
    return URL.createObjectURL(await answer.blob());
  } catch { return null; }
}

const kind = (verdict) => verdict.replace(" ", "-");
const percent = (share) => share === null ? "–" : `${(100 * share).toPrecision(2).replace(/\.0$/, "")} %`;

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
  const picture = $("picture"), before = picture.src;
  $("nopicture").hidden = url !== null;
  if (url) { picture.src = url; picture.alt = `${entry.name || "part"}: ${entry.verdict}`; picture.hidden = false; }
  else { picture.hidden = true; }
  if (before.startsWith("blob:")) URL.revokeObjectURL(before);
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
  $("version").textContent = `version ${told.version}, ${told.digest.slice(0, 8)}`;
  $("rate").textContent = told.judged
    ? `${percent(told.alarm_rate)} of ${told.judged} parts alarm with this version; of good ones ${percent(told.promised_rate)} at most are to` +
      (told.guarantee_met ? "." : ", which is not promised: too few good pictures were learnt from.")
    : "No part has been judged by this version yet.";
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

$("propose").addEventListener("click", async () => {
  const button = $("propose");
  button.disabled = true;
  $("proposal").textContent = "Learning, and judging everything confirmed again …";
  try {
    const { version, comparison } = await json(at("versions"), {});
    $("proposal").textContent = `Version ${version.number} is proposed: ${version.note}. ` +
      `${comparison.cured.length} false alarms cured, ${comparison.lost.length} defects lost.`;
    const table = element("table"), body = [
      ["", `now (${comparison.before.version})`, `then (${comparison.after.version})`],
      [`confirmed good that alarm, of ${comparison.good}`, comparison.before.good_that_alarm, comparison.after.good_that_alarm],
      [`confirmed bad that alarm, of ${comparison.bad}`, comparison.before.bad_that_alarm, comparison.after.bad_that_alarm],
      ["threshold", comparison.before.threshold.toFixed(3), comparison.after.threshold.toFixed(3)],
    ];
    for (const row of body) {
      const line = element("tr");
      row.forEach((cell, i) => line.append(element(i ? "td" : "th", String(cell))));
      table.append(line);
    }
    $("comparison").replaceChildren(table);
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
  if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = document.querySelector(`button[data-key="${CSS.escape(event.key)}"]`);
  if (button && !button.disabled) { button.click(); return; }
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || !state.entries.length) return;
  const place = state.entries.findIndex((entry) => state.chosen && entry.id === state.chosen.id);
  const next = state.entries[Math.min(state.entries.length - 1, Math.max(0, place + step))];
  event.preventDefault();
  setFollow(false);
  choose(next, false);
});
begin().catch(() => {});
keepLooking();
