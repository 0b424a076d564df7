"use strict";
// The page of sslpl.oracle.browser. An answer is sent, saved by the run, and only then the next image is shown. Every text that
// comes from the run is set as textContent: a class named <script> is text.

const KEYS = [..."123456789abcdefghijklmnopqrstuvwxyz"];
const POLL_MS = 1000, AHEAD = 8, GRID = 48, STRIP = 4, SEARCH_FROM = 12;
const $ = (id) => document.getElementById(id);
const store = (area, key, value) => (value === undefined ? area.getItem(key) : area.setItem(key, value));
const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");

const tab = store(sessionStorage, "sslpl-tab") ?? newId();
store(sessionStorage, "sslpl-tab", tab);
const page = {
  run: null, overview: null, queue: [], given: [], // answers given here, newest last
  shown: null, // the image that is shown: a record of the server
  revisited: false, // it has an answer already
  view: "single", busy: false, guesses: null, since: 0, hiddenMs: 0, hiddenAt: null, excluded: new Set(), images: new Map(), lost: 0,
};

const person = () => store(localStorage, "sslpl-name") ?? "";
const guessesShown = () => page.guesses ?? page.run?.guesses ?? true;
const pictureOf = (kind, index) => `${kind}/${index}?run=${encodeURIComponent(page.run.name)}&side=${side()}`;
const side = () => 400 * Math.ceil((Math.min(innerWidth, 0.93 * innerHeight) * devicePixelRatio) / 400); // of the stage, at most
const say = (text) => { $("said").textContent = text; };

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function picture(kind, record) {
  const image = element("img", { alt: "", decoding: "async", src: pictureOf(kind, record.index) });
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth < 160 && image.naturalHeight < 160));
  return image;
}

function ahead(record) { // a large picture, loaded and decoded before it is needed
  if (!page.images.has(record.index)) {
    const image = picture("image", record);
    page.images.set(record.index, image);
    image.decode().catch(() => {});
  }
  return page.images.get(record.index);
}

function prepare() {
  for (const record of page.queue.slice(0, 5)) if (page.view === "single") ahead(record);
  const needed = new Set([page.shown, ...page.queue, ...page.given.slice(-STRIP)].filter(Boolean).map((record) => record.index));
  for (const index of page.images.keys()) if (!needed.has(index)) page.images.delete(index);
}

// Sending

const outboxKey = () => `sslpl-outbox-${page.run?.name ?? ""}`;
const outbox = () => JSON.parse(store(localStorage, outboxKey()) ?? "[]");

function keep(items) { // until the run has confirmed them, also over a reload
  store(localStorage, outboxKey(), JSON.stringify([...outbox(), ...items.map((item) => ({ person: person(), item }))]));
}

function forget(ids) {
  store(localStorage, outboxKey(), JSON.stringify(outbox().filter(({ item }) => !ids.includes(item.id))));
}

async function send(items = [], sender = person()) {
  const want = page.view === "grid" ? GRID : AHEAD;
  const answered = items.some((item) => item.index === page.shown?.index);
  const showing = page.shown && !page.revisited && !answered ? page.shown.index : -1;
  const body = JSON.stringify({ tab, person: sender, items, want, grid: page.view === "grid", showing });
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body, signal: AbortSignal.timeout(8000) };
  const response = await fetch("api/answers", options);
  const data = response.headers.get("content-type")?.includes("json") ? await response.json() : { error: await response.text() };
  if (response.status === 422 || response.status === 413) forget(items.map((item) => item.id)); // would never be accepted
  if (!response.ok) throw Object.assign(new Error(data.error), { refused: true });
  return data;
}

async function submit(items) {
  keep(items);
  page.busy = true;
  try {
    return receive(await send(items));
  } catch (error) {
    unreachable(error);
    return null;
  } finally {
    page.busy = outbox().length > 0;
  }
}

async function resend() {
  const waiting = outbox();
  for (const sender of new Set(waiting.map((each) => each.person))) {
    const items = waiting.filter((each) => each.person === sender).map((each) => each.item).slice(0, 200);
    const data = receive(await send(items, sender));
    for (const result of data.results) if (result.ok) noteGiven(result);
  }
  page.busy = false;
}

function noteGiven(result) {
  if (!result.image) return;
  page.given = page.given.filter((record) => record.index !== result.image.index);
  if (result.image.answer) page.given.push(result.image);
}

function receive(data) {
  forget(data.results.map((result) => result.id));
  page.lost = 0;
  banner("");
  const refused = data.results.filter((result) => !result.ok);
  if (refused.length) banner(refused.map((result) => result.reason).join(" "), 6000);
  update(data);
  return data;
}

function unreachable(error) {
  page.lost += 1;
  const kept = outbox().length ? " Your answer is kept here and sent as soon as the run is back." : "";
  if (page.run?.end) return;
  if (error.refused) banner(`The run has not accepted this: ${error.message}`);
  else if (page.lost > 1 || kept) banner(`The run cannot be reached: it was stopped, or the connection is lost.${kept}`);
}

let bannerTimer = 0;
function banner(text, ms = 0) {
  clearTimeout(bannerTimer);
  if (!text && bannerTimer > 0 && $("banner").dataset.until > Date.now()) return;
  $("banner").textContent = text;
  $("banner").hidden = !text;
  $("banner").dataset.until = ms ? Date.now() + ms : 0;
  if (ms) bannerTimer = setTimeout(() => { $("banner").dataset.until = 0; banner(""); }, ms);
}

async function poll() {
  try {
    if (person() && !page.run?.end) {
      if (page.run && outbox().length) await resend();
      else if (!page.busy) {
        const data = await send();
        if (!page.busy) receive({ ...data, results: [] });
      }
    }
  } catch (error) {
    unreachable(error);
  }
  setTimeout(poll, POLL_MS);
}

// Showing

function update({ queue, overview, run }) {
  const before = page.overview;
  Object.assign(page, { queue, overview, run });
  if (JSON.stringify(before?.classes) !== JSON.stringify(overview.classes)) drawClasses();
  if (before && before.labeling !== overview.labeling) {
    say(overview.labeling ? `${overview.open} images to label` : "The batch is complete. The run goes on.");
    page.view = page.view === "grid" ? "single" : page.view;
    if (overview.labeling) Object.assign(page, { shown: null, view: "single", revisited: false });
  }
  drawProgress();
  if (page.view === "grid") drawGrid();
  const gone = page.shown && !page.revisited && !queue.some((record) => record.index === page.shown.index);
  if (!page.shown || gone) next();
  else drawStrip();
  drawView();
  requestAnimationFrame(() => setTimeout(prepare, 100)); // after this picture is shown
}

function next() {
  page.revisited = false;
  show(page.queue[0] ?? null);
}

function show(record, revisited = false) {
  page.shown = record;
  page.revisited = revisited;
  $("unsure").checked = revisited && Boolean(record?.answer?.unsure);
  $("note").value = (revisited && record?.answer?.note) || "";
  $("search").value = "";
  if (record) {
    const image = ahead(record);
    image.alt = `Image ${record.path}`;
    for (const old of $("stage").querySelectorAll("img")) old.remove();
    $("stage").prepend(image);
    $("path").textContent = record.path;
    Object.assign(page, { since: performance.now(), hiddenMs: 0, hiddenAt: null });
  }
  drawStrip();
  drawGuess();
  drawClasses();
  drawView();
}

function drawView() {
  const { overview, run, shown, view } = page;
  const single = view === "single" && Boolean(shown);
  $("single").hidden = !single;
  $("grid").hidden = !(view === "grid" && overview.labeling);
  $("review").hidden = !(view === "review" || (!overview.labeling && !single));
  $("waiting").hidden = Boolean(run.end ? false : overview.labeling && (shown || view !== "single"));
  for (const [id, name] of [["to-single", "single"], ["to-grid", "grid"], ["to-review", "review"]]) {
    $(id).setAttribute("aria-pressed", String(view === name));
  }
  $("to-grid").disabled = !overview.labeling || !page.queue.some((record) => record.guess) && view !== "grid";
  $("guess-toggle").setAttribute("aria-pressed", String(guessesShown()));
  $("undo").disabled = !overview.labeling || !page.given.length;
  $("skip").disabled = page.revisited;
  $("add").hidden = !overview.new_classes;
  const skipped = overview.labeling && overview.open > 0 && overview.open === overview.skipped && !overview.needs_label;
  $("finish").hidden = !skipped;
  $("finish").textContent = `Go on without the ${overview.skipped} skipped`;
  drawWaiting();
  if (!$("review").hidden && !$("review-cards").childElementCount) drawReview();
}

function drawWaiting() {
  const { overview, run } = page;
  const [title, text] = run.end ? ending(run) : overview.labeling ? held(overview) : training(run);
  $("waiting-title").textContent = title;
  $("waiting-text").textContent = text;
}

function ending(run) {
  if (run.end === "finished") return ["The run has finished", "Thank you. All answers are saved; this page can be closed."];
  return ["The run was stopped", "All answers are saved. Start the run again with the same command, and this page goes on."];
}

function held(overview) {
  if (overview.needs_label) return ["At least one image needs a class", "Nothing can be learned from a first batch without a class: take a second look."];
  const who = Object.entries(overview.held).map(([name, count]) => `${name} (${count})`).join(", ");
  return ["Nothing left for you in this batch", who ? `The last images are with ${who}.` : overview.open && overview.annotators > 1 ? "Images are left for other people: every image is answered by several." : "The run goes on in a moment."];
}

function training(run) {
  const names = { start: "starts", train: "is training", finetune: "is training", evaluate: "is measuring its accuracy", query: "is choosing images", label: "takes the labels" };
  const title = `The run ${names[run.phase] ?? "is working"}: cycle ${run.cycle + 1} of ${run.cycles}`;
  if (run.cycle + 1 >= run.cycles && run.phase !== "label") {
    return [title, `${leftText(run.seconds_left, "until the end")} No further images are asked; a changed answer is saved, and not learned any more.`];
  }
  return [title, `${leftText(run.seconds_left, "until the next images")} Meanwhile you can change answers that you were unsure of; the next training learns the change.`];
}

const leftText = (seconds, until) => (seconds === null ? "" : `About ${duration(seconds)} ${until}.`);

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function drawProgress() {
  const { overview, run } = page, done = overview.size - overview.open;
  $("progress").max = overview.size || 1;
  $("progress").value = done;
  $("count").textContent = overview.size ? `${done} of ${overview.size}` + (overview.skipped ? `, ${overview.skipped} skipped` : "") : "";
  const last = run.curve.at(-1);
  $("accuracy").textContent = last ? `${(100 * last[1]).toFixed(1)}% with ${last[0].toLocaleString("en")} labels` : "not measured yet";
  $("forecast-row").hidden = !run.forecast;
  $("forecast").textContent = run.forecast.replace(/^forecast /, "").replaceAll("with ", "at ");
  $("pace").textContent = overview.seconds === null ? "–" : `${overview.seconds.toFixed(1)} s`;
  const people = Math.max(1, Object.keys(overview.held).length);
  $("left").textContent = overview.labeling && overview.seconds !== null ? duration((overview.seconds * overview.open) / people) : "–";
  $("rejected").textContent = String(overview.rejected);
  $("people").textContent = Object.entries(overview.people).map(([name, count]) => `${name}: ${count}`).join(", ") || person();
  document.title = run.end ? `Label images: ${run.end}` : overview.labeling ? `${overview.open} to label` : "The run is training";
  drawCurve(run.curve);
}

let curveDrawn = "";
function drawCurve(curve) {
  if (curveDrawn === JSON.stringify(curve)) return;
  curveDrawn = JSON.stringify(curve);
  const svg = $("curve"), box = { left: 34, right: 290, top: 10, bottom: 90 };
  $("curve-figure").hidden = !curve.length;
  if (!curve.length) return;
  const labels = curve.map(([n]) => n), accuracies = curve.map(([, a]) => a);
  const [n0, n1] = [Math.min(...labels), Math.max(...labels)], [a0, a1] = [Math.min(...accuracies), Math.max(...accuracies)];
  const x = (n) => (n1 > n0 ? box.left + ((n - n0) / (n1 - n0)) * (box.right - box.left) : (box.left + box.right) / 2);
  const y = (a) => (a1 > a0 ? box.bottom - ((a - a0) / (a1 - a0)) * (box.bottom - box.top) : (box.top + box.bottom) / 2);
  const part = (name, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const percent = (a) => `${(100 * a).toFixed(0)}%`;
  svg.setAttribute("aria-label", curve.map(([n, a]) => `${percent(a)} with ${n} labels`).join(", "));
  svg.replaceChildren(
    part("line", { x1: box.left, x2: box.right, y1: box.bottom + 6, y2: box.bottom + 6 }),
    part("path", { d: "M" + curve.map(([n, a]) => `${x(n)},${y(a)}`).join("L") }),
    ...curve.map(([n, a]) => part("circle", { cx: x(n), cy: y(a), r: 3 })),
    ...[...new Set([a0, a1])].map((a) => part("text", { x: 30, y: y(a) + 3, "text-anchor": "end" }, percent(a))),
    ...[...new Set([n0, n1])].map((n) => part("text", { x: x(n), y: 108, "text-anchor": n === n1 && n1 > n0 ? "end" : "start" }, String(n))),
  );
}

function drawGuess() {
  const { shown } = page, answer = page.revisited ? shown?.answer : null;
  $("guess").hidden = !(shown?.guess && guessesShown());
  $("guess").replaceChildren(`The model: ${shown?.guess ?? ""}, ${(100 * (shown?.confidence ?? 0)).toFixed(0)}% sure `, element("kbd", { textContent: "enter" }));
  $("note-line").hidden = !(answer || shown?.skipped);
  $("note-line").textContent = answer ? `Answered: ${answerText(answer)} (${answer.person})` : shown?.skipped ? "Skipped before" : "";
}

const answerText = (answer) => (answer.action === "label" ? answer.label : answer.action === "reject" ? "no class" : "skipped");

function drawClasses() {
  if (!page.overview) return;
  const wanted = $("search").value.trim().toLowerCase();
  const buttons = page.overview.classes.map((name, position) => {
    const button = element("button", { type: "button" }, element("span", { textContent: name }));
    if (position < KEYS.length) button.prepend(element("kbd", { textContent: KEYS[position] }));
    button.dataset.name = name;
    button.hidden = wanted !== "" && !name.toLowerCase().includes(wanted);
    button.setAttribute("aria-pressed", String(page.revisited && page.shown?.answer?.label === name));
    return button;
  });
  const first = wanted ? matches()[0] : null;
  for (const button of buttons) button.classList.toggle("match", button.dataset.name === first);
  $("classes").replaceChildren(...buttons);
  $("search").parentElement.hidden = page.overview.classes.length < SEARCH_FROM;
}

function matches() { // classes that begin with the searched text first
  const wanted = $("search").value.trim().toLowerCase();
  const found = page.overview.classes.filter((name) => name.toLowerCase().includes(wanted));
  return found.sort((a, b) => b.toLowerCase().startsWith(wanted) - a.toLowerCase().startsWith(wanted));
}

function drawStrip() {
  if (!page.shown) return;
  const before = page.given.filter((record) => record.index !== page.shown.index).slice(-STRIP);
  const passed = new Set([page.shown, ...before].map((record) => record.index));
  const after = page.queue.filter((record) => !passed.has(record.index)).slice(0, STRIP);
  const cards = [...before, page.shown, ...after].map((record) => {
    const answer = before.includes(record) || (record === page.shown && page.revisited) ? record.answer : null;
    const button = element("button", { type: "button" }, picture("small", record), element("span", { textContent: answer ? answerText(answer) : "" }));
    button.setAttribute("aria-label", answer ? `Look again at ${record.path}: ${answerText(answer)}` : record.path);
    button.setAttribute("aria-current", String(record === page.shown));
    button.addEventListener("click", () => show(record, before.includes(record)));
    return button;
  });
  $("strip").replaceChildren(...cards);
}

let gridDrawn = "";
function drawGrid() {
  const cards = page.queue.filter((record) => record.guess);
  const drawn = JSON.stringify(cards.map((record) => record.index));
  if (cards.length && drawn !== gridDrawn) {
    page.excluded = new Set();
    $("grid-cards").replaceChildren(...cards.map((record) => {
      const card = element("button", { type: "button", className: "card" }, picture("small", record), element("span", { textContent: `${(100 * record.confidence).toFixed(0)}%` }));
      card.dataset.index = record.index;
      card.setAttribute("aria-label", record.path);
      card.addEventListener("click", () => exclude(record.index));
      return card;
    }));
    $("grid-cards").firstElementChild.focus();
    page.since = performance.now();
  }
  gridDrawn = drawn;
  for (const card of $("grid-cards").children) card.setAttribute("aria-pressed", String(!page.excluded.has(Number(card.dataset.index))));
  const rest = cards.length - page.excluded.size;
  $("grid-title").textContent = cards.length ? `Are all of these ${cards[0].guess}?` : "No guesses are left to confirm";
  $("grid-cards").hidden = !cards.length;
  $("confirm").disabled = !rest;
  $("confirm").replaceChildren(cards.length ? `Confirm ${rest} as ${cards[0].guess} ` : "Confirm ", element("kbd", { textContent: "enter" }));
}

function exclude(index) {
  if (!page.excluded.delete(index)) page.excluded.add(index);
  drawGrid();
}

async function drawReview() {
  const response = await fetch(`api/review?person=${encodeURIComponent(person())}`).catch(() => null);
  if (!response?.ok) return;
  const cards = (await response.json()).map((record) => {
    const doubt = record.answer.unsure ? "unsure" : record.guess && record.guess !== record.answer.label && guessesShown() ? `guess: ${record.guess}` : "";
    const card = element("button", { type: "button", className: "card" }, picture("small", record), element("span", { textContent: answerText(record.answer) }), element("span", { textContent: doubt, className: "doubt" }));
    card.setAttribute("aria-label", `${record.path}: ${answerText(record.answer)} ${doubt}`);
    card.addEventListener("click", () => { page.view = "single"; show(record, true); });
    return card;
  });
  $("review-cards").replaceChildren(...(cards.length ? cards : [element("p", { textContent: "No answers yet." })]));
}

// Acting

function item(action, record, more = {}) {
  return { id: newId(), action, index: record?.index ?? -1, replaces: record?.replaces ?? "", ...more };
}

function secondsSeen() {
  const hidden = page.hiddenMs + (page.hiddenAt === null ? 0 : performance.now() - page.hiddenAt);
  return Math.max(0, Math.round(performance.now() - page.since - hidden) / 1000);
}

async function answer(action, label = "") {
  const record = page.shown;
  if (page.busy || !record || $("single").hidden) return;
  const more = { label, unsure: $("unsure").checked, note: $("note").value, seconds: secondsSeen(), guess_shown: Boolean(record.guess) && guessesShown() };
  const wasRevisited = page.revisited;
  const data = await submit([item(action, record, more)]);
  const result = data?.results[0];
  if (!result) return;
  if (result.ok) noteGiven(result);
  $("review-cards").replaceChildren();
  if (result.ok) say(`${action === "label" ? label : action === "reject" ? "No class" : "Skipped"}. ${page.overview.size - page.overview.open} of ${page.overview.size}`);
  if (wasRevisited && !page.overview.labeling) { page.view = "review"; page.shown = null; }
  next();
}

async function undo() {
  const record = page.given.at(-1);
  if (page.busy || !record || !page.overview.labeling) return;
  const data = await submit([item("undo", record)]);
  const result = data?.results[0];
  if (!result) return;
  page.given = page.given.filter((each) => each.index !== record.index);
  $("review-cards").replaceChildren();
  if (!result.ok) return;
  say("Undone");
  page.view = "single";
  show(result.image, Boolean(result.image.answer));
}

async function confirmGrid() {
  const cards = page.queue.filter((record) => record.guess && !page.excluded.has(record.index));
  if (page.busy || !cards.length) return;
  const excluded = page.queue.filter((record) => page.excluded.has(record.index));
  const seconds = secondsSeen() / cards.length;
  const items = cards.map((record) => item("label", record, { label: record.guess, seconds, guess_shown: true }));
  if (excluded.length) page.view = "single"; // which would be guessed again
  const data = await submit(items);
  if (!data) return;
  for (const result of data.results) if (result.ok) noteGiven(result);
  say(`${cards.length} confirmed`);
  $("review-cards").replaceChildren();
  if (excluded.length) { page.shown = null; next(); }
}

async function addClass() {
  if (!page.overview.new_classes || $("single").hidden) return;
  $("class-name").value = $("search").value;
  $("class-dialog").returnValue = "";
  $("class-dialog").showModal();
}

async function classAdded() {
  const name = $("class-name").value.trim();
  if ($("class-dialog").returnValue !== "add" || !name) return;
  const data = await submit([item("class", null, { label: name })]);
  if (data?.results[0].ok) answer("label", name);
}

function setView(view) {
  if (view === "grid" && $("to-grid").disabled) return;
  page.view = view === page.view ? "single" : view;
  gridDrawn = "";
  if (page.view === "review") $("review-cards").replaceChildren();
  if (page.view === "single" && page.revisited) next();
  drawView();
  send().then((data) => receive({ ...data, results: [] })).catch(unreachable);
}

function toggleGuesses() {
  page.guesses = !guessesShown();
  drawGuess();
  drawView();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

// Keys

function gridKey(event) {
  const cards = [...$("grid-cards").children], at = cards.indexOf(document.activeElement);
  const columns = Math.max(1, cards.filter((card) => card.offsetTop === cards[0].offsetTop).length);
  const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (event.key === "Enter") confirmGrid();
  else if (event.key === " " && at >= 0) exclude(Number(cards[at].dataset.index));
  else if (move) cards[Math.min(cards.length - 1, Math.max(0, at + move))]?.focus();
  else return false;
  return true;
}

function singleKey(event) {
  const position = KEYS.indexOf(event.key.toLowerCase()), name = page.overview.classes[position];
  const onButton = document.activeElement?.tagName === "BUTTON";
  const actions = {
    Backspace: undo, "-": () => answer("reject"), Delete: () => answer("reject"), "+": addClass,
    "/": () => { $("search").parentElement.hidden = false; $("search").focus(); },
    ".": () => { $("unsure").checked = !$("unsure").checked; say($("unsure").checked ? "Unsure" : "Sure"); },
    ",": () => $("note").focus(),
    Escape: () => { page.shown = null; next(); },
  };
  if (event.key === "Enter" && !onButton) { if (page.shown?.guess && guessesShown()) answer("label", page.shown.guess); }
  else if (event.key === " " && !onButton) { if (!page.revisited) answer("skip"); }
  else if (actions[event.key]) actions[event.key]();
  else if (position >= 0 && name !== undefined) answer("label", name);
  else return false;
  return true;
}

function onKey(event) {
  if (!page.overview || event.ctrlKey || event.metaKey || event.altKey || event.repeat || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input[type=text], input[type=search]")) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.id === "note")) { event.target.blur(); event.preventDefault(); }
    return;
  }
  const everywhere = { "=": () => setView("grid"), ";": () => setView("review"), 0: toggleGuesses, "?": () => $("help").showModal() };
  let done = true;
  if (everywhere[event.key]) everywhere[event.key]();
  else if (event.key === "Escape" && page.view !== "single") setView("single");
  else if (!$("grid").hidden) done = gridKey(event);
  else if (!$("single").hidden) done = singleKey(event);
  else done = false;
  if (done) event.preventDefault();
}

// Start

function onSearchKey(event) {
  if (event.key !== "Enter") return;
  event.preventDefault();
  const [found] = matches();
  if (!$("search").value.trim() || !found) return;
  $("search").blur();
  answer("label", found);
}

function askName() {
  $("name").value = person();
  $("name-dialog").showModal();
}

function start() {
  const clicks = {
    "to-single": () => setView("single"), "to-grid": () => setView("grid"), "to-review": () => setView("review"),
    "guess-toggle": toggleGuesses, undo, skip: () => answer("skip"), reject: () => answer("reject"), add: addClass,
    guess: () => answer("label", page.shown.guess), confirm: confirmGrid, finish: () => submit([item("finish", null)]),
    "help-open": () => $("help").showModal(), rename: askName,
    theme: () => { const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; store(localStorage, "sslpl-theme", theme); setTheme(theme); },
  };
  for (const [id, act] of Object.entries(clicks)) $(id).addEventListener("click", act);
  $("classes").addEventListener("click", (event) => { const button = event.target.closest("button"); if (button) answer("label", button.dataset.name); });
  // After a click with a pointer the keys are for the image again.
  document.addEventListener("click", (event) => { if (event.detail > 0 && $("grid").hidden) event.target.closest("button")?.blur(); });
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) page.hiddenAt = performance.now();
    else if (page.hiddenAt !== null) { page.hiddenMs += performance.now() - page.hiddenAt; page.hiddenAt = null; }
  });
  addEventListener("pagehide", () => navigator.sendBeacon(`api/leave?tab=${tab}`));
  $("search").addEventListener("input", drawClasses);
  $("search").addEventListener("keydown", onSearchKey);
  $("class-dialog").addEventListener("close", classAdded);
  $("name-dialog").addEventListener("cancel", (event) => { if (!person()) event.preventDefault(); });
  $("name-dialog").addEventListener("close", () => { const name = $("name").value.trim(); if (name) store(localStorage, "sslpl-name", name); else askName(); });
  setTheme(store(localStorage, "sslpl-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  history.replaceState(null, "", location.pathname); // the token is in a cookie now
  if (!person()) askName();
  poll();
}

start();
