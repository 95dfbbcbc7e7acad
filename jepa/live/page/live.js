"use strict";
// The page of a live session. One event stream and a polled picture fill it; its controls send PATCH requests.
// The server's events are the only state: a control shows what the server says. Times are seconds of the stream.

const WATCH = 2000, LOOK = 200, DRAW = 50; // milliseconds: to ask for sessions, for a picture; to draw what moves
const RANG = 15000; // milliseconds that a bell stays beside the text
const SETTINGS = { policy: "policy", threshold: "threshold", cache_threshold: "cache", uniform_rate_hz: "uniform" };
const COUNTERS = {
  decoder_calls: ["decoder calls", whole], decoder_flops: ["decoder FLOPs", short],
  decoder_seconds: ["decoder time", duration], flops: ["FLOPs of all parts", short],
};

let policies = null; // what the server offers
let session = null; // the one on show
let stream = null; // its events
let last = 0; // the id of the newest event
let opened = 0; // when the stream was opened, in milliseconds of the page
let silence = 0; // the timer of the bell beside the text
let state = blank();
const COUNTED = ["decoder_calls", "decoder_flops", "decoder_seconds", "flops", "encoder_calls", "predictor_calls"];
const NOTHING = {
  selective: Object.fromEntries(COUNTED.map((name) => [name, 0])), uniform: { decoder_calls: 0, rate_hz: 1 },
  latency: {}, compute: {}, steps: 0, frames: { taken: 0, dropped: 0 },
};
const EMPTY = $("picture").src;

/** What the page knows of a session. */
function blank() {
  return { counters: null, emission: null, since: 0, earlier: [], fresh: false, rung: new Map(), source: {}, picture: 0 };
}

// --- Requests.

const token = new URLSearchParams(location.search).get("token");
const controls = $("controls").elements;

function address(path, query = {}) {
  const given = new URLSearchParams(token ? { ...query, token } : query);
  return given.size ? `${path}?${given}` : path;
}

async function request(method, path, { query, body, timeout = 5000 } = {}) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (token) headers.Authorization = `Bearer ${token}`;
  const signal = AbortSignal.timeout(timeout);
  const answer = await fetch(address(path, query), { method, headers, signal, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const text = await answer.text();
  try {
    const { error, detail } = JSON.parse(text);
    throw Error(error ?? detail ?? text);
  } catch (error) {
    throw error instanceof SyntaxError ? Error(text || `${method} ${path} failed: ${answer.status}`) : error;
  }
}

const json = async (...given) => (await request(...given)).json();
const here = (rest = "") => `/sessions/${encodeURIComponent(session.id)}${rest}`;
const change = (body) => attempt(() => request("PATCH", here(), { body }));

/** Runs what a control asks for. The page tells a refusal, and the controls go back. */
async function attempt(action) {
  try {
    await action();
    alarm("refused", "");
  } catch (error) {
    alarm("refused", error.message);
    setTimeout(() => alarm("refused", ""), 8000);
    showSettings();
  }
}

const alarms = { gone: "", refused: "" };

function alarm(kind, text) {
  alarms[kind] = text;
  write($("alert"), alarms.gone || alarms.refused);
  $("alert").hidden = !$("alert").textContent;
}

// --- Sessions. Their list is asked for again and again, and so tells whether the server is there.

async function watch() {
  try {
    if (!policies) offer((await json("GET", "/options")).policies);
    const sessions = await json("GET", "/sessions");
    alarm("gone", sessions.length ? "" : "No session is open.");
    list(sessions);
    const same = sessions.find((each) => each.id === session?.id && each.started_at === session.started_at);
    if (!same && sessions.length) choose(sessions.find((each) => `#${each.id}` === location.hash) ?? sessions[0]);
    else if (same && !stream && same.status !== "ended") listen();
  } catch (error) {
    const silent = error.name === "TypeError" || error.name === "TimeoutError";
    alarm("gone", silent ? "The server does not answer. This page goes on by itself as soon as it does." : error.message);
  }
  setTimeout(watch, WATCH);
}

function offer(given) {
  policies = given;
  controls.policy.replaceChildren(...given.map(({ name, label }) => new Option(label, name)));
}

function list(sessions) {
  const names = sessions.map((each) => `${each.source} · ${each.query}${each.status === "running" ? "" : ` (${each.status})`}`);
  const select = $("sessions");
  select.onchange = () => choose(sessions.find((each) => String(each.id) === select.value));
  if (names.join("\n") === [...select.options].map((each) => each.text).join("\n")) return;
  select.replaceChildren(...sessions.map((each, index) => new Option(names[index], each.id)));
  if (session) select.value = session.id;
}

function choose(given) {
  [session, state, last] = [given, blank(), 0];
  history.replaceState(null, "", `#${given.id}`);
  $("sessions").value = given.id;
  $("earlier").replaceChildren();
  $("saved").hidden = true;
  $("rang").replaceChildren();
  $("picture").src = EMPTY;
  timeline.empty();
  showCounters({ ...NOTHING, uniform: { ...NOTHING.uniform, rate_hz: given.settings.uniform_rate_hz } });
  showSession();
  listen();
}

/** Opens the event stream after the newest event that the page has seen. When it breaks off, `watch` opens it again. */
function listen() {
  stream?.close();
  const events = new EventSource(address(here("/events"), { after: last }));
  stream = events;
  events.onopen = () => { opened = performance.now(); };
  events.onerror = () => {
    events.close();
    if (stream === events) stream = null;
  };
  for (const [name, take] of Object.entries(on)) {
    events.addEventListener(name, (event) => {
      if (stream !== events) return;
      last = event.lastEventId || last;
      take(JSON.parse(event.data));
    });
  }
}

const on = {
  session(given) {
    const changed = Object.keys(SETTINGS).filter((key) => session.settings[key] !== given.settings[key]);
    const words = changed.map((key) => `${SETTINGS[key]} ${setting(key, given.settings[key])}`);
    if (session.query !== given.query) words.push(`“${given.query}”`);
    if (words.length && timeline.now !== null) timeline.addLine(timeline.shown, "", words.join(", "));
    session = given;
    showSession();
  },
  step(given) { timeline.addStep(given); },
  emission(given) {
    timeline.addEmission(given);
    if (given.text !== state.emission?.text) {
      if (state.emission) state.earlier = [[state.since, state.emission.text], ...state.earlier].slice(0, 3);
      Object.assign(state, { since: given.start, fresh: true });
    }
    state.emission = given;
  },
  trigger({ sentence, time, score, threshold }) {
    timeline.addLine(time, "rung", sentence, `score ${score.toFixed(3)}, threshold ${threshold.toFixed(3)}`);
    state.rung.set(sentence, { count: (state.rung.get(sentence)?.count ?? 0) + 1, time });
    showTriggers();
    if (performance.now() - opened < 1500) return; // told again after a break: what rang before rings no more
    $("rang").replaceChildren(bell(), `${clock(time)} ${sentence}`);
    $("rang").firstChild.animate({ rotate: ["0deg", "18deg", "-15deg", "9deg", "0deg"] }, { duration: calm.matches ? 0 : 800, iterations: 2 });
    document.title = `🔔 ${sentence}`;
    clearTimeout(silence);
    silence = setTimeout(() => $("rang").replaceChildren(), RANG);
  },
  counters(given) { state.counters = given; },
  source(given) {
    state.source = { ...given, lost: given.status === "lost", next: performance.now() + 1000 * (given.retry_seconds ?? 0) };
  },
};

// --- What is on show.

/** All that moves by itself. */
function draw() {
  if (!session) return;
  timeline.draw(session.status === "running" && !alarms.gone);
  showText();
  showStatus();
  if (state.counters) showCounters(state.counters);
}

function showText() {
  const { emission, since, earlier, fresh } = state, text = $("text");
  write(text, emission ? emission.text || "(no text)" : "Listening…");
  if (!emission) return write($("since"), "the first text comes when the first segment ends");
  const from = emission.source === "decoder" ? "written" : `from the ${emission.source}`;
  const [start, end] = [clock(since), clock(emission.end)];
  const seen = start === end ? `seen at ${start}` : `since ${start}, seen to ${end}`;
  const open = timeline.shown - emission.end > 2 * timeline.step ? "; what follows is not decoded yet" : "";
  write($("since"), `${seen} · ${from} at ${clock(emission.emitted_at)}${open}`);
  if (!fresh) return;
  state.fresh = false;
  text.classList.toggle("long", emission.text.length > 70);
  document.title = `${emission.text} · jepa live`;
  if (!calm.matches) text.animate({ opacity: [0, 1], translate: ["0 0.25em", "0 0"] }, { duration: 600, easing: "ease-out" });
  $("earlier").replaceChildren(...earlier.map(([time, before]) => {
    const item = make("li", "");
    item.append(make("span", "", clock(time)), make("span", "", before));
    return item;
  }));
}

function showStatus() {
  const { source, counters } = state, lost = source.lost && session.status !== "ended";
  const status = alarms.gone ? "gone" : lost ? "lost" : session.status, left = Math.ceil((source.next - performance.now()) / 1000);
  if ($("status").className !== status) $("status").className = status;
  write($("status"), { gone: "no server", lost: `source lost, attempt ${source.attempt}` }[status] ?? status);
  if (!counters) write($("frames"), "");
  const words = lost ? [source.message, left > 0 ? `next try in ${left} s` : "trying again"] : [session.message];
  write($("message"), words.filter(Boolean).join("; "));
  if (counters) write($("frames"), `${whole(counters.frames.taken)} frames, ${whole(counters.frames.dropped)} dropped`);
}

function showCounters({ selective, uniform, latency, compute, steps }) {
  const ratio = uniform.decoder_calls / selective.decoder_calls;
  write($("ratio"), times(Math.max(ratio, 1 / ratio)));
  write($("claim"), selective.decoder_calls ? `${ratio < 1 ? "more" : "fewer"} decoder calls than uniform decoding at` : "no decode yet, against uniform decoding at");
  for (const element of document.querySelectorAll(".rate")) write(element, hertz(uniform.rate_hz));
  const most = Math.max(selective.decoder_calls, uniform.decoder_calls, 1);
  for (const [side, { decoder_calls: calls }] of Object.entries({ selective, uniform })) {
    $(`bar-${side}`).style.setProperty("--share", calls / most);
    write($(`bar-${side}`), whole(calls));
  }
  const known = selective.decoder_calls ? uniform : { decoder_calls: uniform.decoder_calls };
  for (const [name, [, format]] of Object.entries(COUNTERS)) {
    const pair = { selective: selective[name], uniform: known[name] ?? NaN }; // no decode yet: no mean of a call
    for (const [side, value] of Object.entries(pair)) {
      const data = $(`${side}-${name}`);
      data.value = value;
      write(data.firstChild, format(value));
      write(data.lastChild, format === short && value >= 1000 ? whole(value) : ""); // to the last digit
    }
    write($(`ratio-${name}`), times(pair.uniform / pair.selective));
  }
  const cache = selective.cache_lookups ? `; cache: ${whole(selective.cache_hits)} hits in ${whole(selective.cache_lookups)} look-ups` : "";
  write($("parts"), `${whole(steps)} steps, ${whole(selective.encoder_calls)} encoder calls, ${whole(selective.predictor_calls)} predictor calls${cache}`);
  for (const [name, found] of Object.entries({ latency, compute })) {
    for (const key of ["p50", "p95", "p99"]) write($(`${name}-${key}`), duration(found[key]));
  }
}

function showSession() {
  timeline.step = 1 / session.step_rate_hz;
  timeline.behind = session.window_seconds / 2;
  write($("asked"), session.query);
  write($("pause"), session.status === "paused" ? "Resume" : "Pause");
  $("pause").disabled = session.status === "ended";
  showSettings();
  showTriggers();
}

const touched = {}; // name of a control -> when a hand last moved it: it is left alone for a second

function showSettings() {
  const { settings, query, step_rate_hz: rate } = session;
  const { parameters, range: [low, high] } = policies.find((each) => each.name === settings.policy);
  const isRate = "rate_hz" in parameters;
  write($("parameter"), isRate ? "Rate" : "Threshold");
  write($("effect"), isRate ? "higher: more decodes" : "higher: fewer, longer segments");
  Object.assign(controls.threshold, { min: low, max: high, step: Number(((high - low) / 100).toPrecision(1)) });
  controls.uniform_rate_hz.max = rate;
  for (const name of Object.keys(SETTINGS).filter((each) => performance.now() - (touched[each] ?? -Infinity) > 1000)) {
    controls[name].value = settings[name] ?? 0;
    if ($(`${name}-value`)) write($(`${name}-value`), setting(name, settings[name]));
  }
  if (document.activeElement !== controls.query) controls.query.value = query;
}

function showTriggers() {
  const known = JSON.stringify(session.triggers), sentences = session.triggers.map((each) => each.sentence);
  if ($("triggers").dataset.known !== known) {
    $("triggers").dataset.known = known;
    $("triggers").replaceChildren(...sentences.map((sentence) => {
      const item = make("li", ""), remove = make("button", "", "×");
      item.dataset.sentence = sentence;
      remove.setAttribute("aria-label", `Remove: ${sentence}`);
      remove.onclick = () => change({ triggers: sentences.filter((each) => each !== sentence) });
      item.append(bell(), make("span", "", sentence), remove, make("small", ""));
      return item;
    }));
  }
  session.triggers.forEach(({ sentence, threshold, note }, index) => {
    const item = $("triggers").children[index], { count, time } = state.rung.get(sentence) ?? {};
    const rang = count ? `rang ${count === 1 ? "once" : `${count} times`}, last at ${clock(time)}` : "has not rung yet";
    item.className = count ? "rung" : "";
    item.title = `threshold ${threshold}`;
    write(item.lastChild, [rang, note].filter(Boolean).join(" · "));
  });
}

// --- The picture.

async function look() {
  const asked = state;
  try {
    if (session && !document.hidden && !alarms.gone) {
      const answer = await request("GET", here("/picture"), { query: { after: asked.picture } });
      if (answer.status === 200 && asked === state) {
        state.picture = answer.headers.get("X-Picture");
        await show(await answer.blob());
      }
    }
  } catch { /* `watch` tells when the server is gone */ }
  setTimeout(look, LOOK);
}

async function show(blob) {
  const image = $("picture"), before = image.src;
  image.src = URL.createObjectURL(blob);
  await image.decode();
  URL.revokeObjectURL(before);
  const tiny = image.naturalWidth < 160; // whole screen pixels for each of its own
  image.classList.toggle("tiny", tiny);
  image.style.maxWidth = tiny ? `${Math.floor(320 / image.naturalWidth) * image.naturalWidth}px` : "";
  timeline.addPicture(image);
}

// --- Controls.

for (const name of Object.keys(SETTINGS)) {
  let waiting;
  controls[name].oninput = () => {
    const value = name === "policy" ? controls.policy.value : Number(controls[name].value);
    touched[name] = performance.now();
    if ($(`${name}-value`)) write($(`${name}-value`), setting(name, value));
    clearTimeout(waiting);
    waiting = setTimeout(() => change({ [name]: value }), 150);
  };
}
controls.query.onchange = () => change({ query: controls.query.value.trim() });
$("controls").onsubmit = (event) => { event.preventDefault(); controls.query.blur(); };
$("pause").onclick = () => change({ paused: session.status !== "paused" });
$("save").onclick = async () => {
  $("save").disabled = true;
  write($("save"), "Saving…");
  await attempt(async () => {
    const { folder } = await json("POST", here("/save"), { timeout: 60000 });
    $("saved").replaceChildren("Saved. To see its report:", make("code", "", `jepa report evaluation=${folder}`));
    $("saved").hidden = false;
  });
  $("save").disabled = false;
  write($("save"), "Save session");
};
$("tell").onsubmit = (event) => {
  event.preventDefault();
  const sentence = $("sentence").value.trim(), sentences = session.triggers.map((each) => each.sentence);
  if (sentence && !sentences.includes(sentence)) change({ triggers: [...sentences, sentence] });
  $("sentence").value = "";
};

for (const [name, [label]] of Object.entries(COUNTERS)) {
  const row = make("tr", ""), head = make("th", "", label);
  head.scope = "row";
  row.append(head, ...["selective", "uniform"].map((side) => {
    const cell = make("td", ""), data = make("data", side === "uniform" && name !== "decoder_calls" ? "estimated" : "");
    data.id = `${side}-${name}`;
    data.append(make("span", ""), make("small", ""));
    cell.append(data);
    return cell;
  }), make("td", "gain"));
  row.lastChild.id = `ratio-${name}`;
  $("counters").append(row);
}

const calm = matchMedia("(prefers-reduced-motion: reduce)");
function loop() {
  requestAnimationFrame(draw);
  setTimeout(loop, calm.matches ? 500 : DRAW);
}
watch();
look();
loop();
