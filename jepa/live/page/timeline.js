"use strict";
// The timeline: marks that the style sheet places by their seconds, in a region that scrolls. Its right end is now.

const KEEP = 300; // seconds that it holds
const ROWS = ["marks", "pictures", "steps", "texts", "decodes", "uniform", "axis"];

const timeline = {
  scroll: $("scroll"),
  track: $("track"),
  rows: Object.fromEntries(ROWS.map((name) => [name, $("track").querySelector(`.${name}`)])),
  following: true, // the newest moment, unless somebody has scrolled back
  now: null, // seconds: of the newest frame that a step has seen
  shown: 0, // a little later: what the clock says since then
  step: 0.5, // seconds between two steps
  behind: 0.5, // seconds from a step to the newest frame of its window

  /** Nothing is known of a session yet. */
  empty() {
    for (const row of Object.values(this.rows)) row.replaceChildren();
    [this.now, this.covered, this.following, this.lined] = [null, undefined, true, -Infinity];
  },

  clear(time) {
    this.empty();
    this.now = this.shown = this.covered = time;
    this.pictured = -Infinity;
    this.label = Math.ceil(time / 10) * 10;
    this.open = this.put("texts", time, "open", { length: 0 });
    this.begin(Math.max(0, time - 2 * this.behind)); // the first segment began in the first window
  },

  /** Places the left end. */
  begin(time) {
    this.origin = time;
    this.track.style.setProperty("--origin", time);
  },

  /** A mark of `row` at `time`; with a length it covers a stretch. */
  put(row, time, className, { length, height, text, tip } = {}) {
    const mark = make("span", `mark ${className}`);
    mark.style.setProperty("--t", time);
    if (length !== undefined) mark.style.setProperty("--d", length);
    if (height !== undefined) mark.style.setProperty("--h", height);
    if (text) mark.append(make("span", "", text));
    if (tip) mark.title = tip;
    this.rows[row].append(mark);
    return mark;
  },

  /** The stream has come to `time`. A clock that jumps starts the timeline over. */
  advance(time) {
    if (this.now === null || time < this.now - 1 || time > this.now + KEEP) this.clear(time);
    this.now = Math.max(this.now, time);
    this.arrived = performance.now();
    for (; this.label <= this.now; this.label += 10) this.put("axis", this.label, "", { text: clock(this.label) });
    if (this.now - this.origin > KEEP + 60) this.forget(Math.floor((this.now - KEEP) / 10) * 10);
  },

  forget(before) {
    for (const mark of this.track.querySelectorAll(".mark")) {
      const end = Number(mark.style.getPropertyValue("--t")) + Number(mark.style.getPropertyValue("--d"));
      if (mark !== this.open && end < before) mark.remove();
    }
    this.scroll.scrollLeft -= (before - this.origin) * this.scale();
    this.begin(before);
  },

  /** Pixels for a second. */
  scale() {
    return parseFloat(getComputedStyle(this.track).getPropertyValue("--scale"));
  },

  addStep({ time, signal, decoded, uniform }) {
    this.advance(time + this.behind);
    const tip = `${time.toFixed(1)} s` + (signal === null ? "" : `: ${signal.toFixed(2)} × the threshold`);
    this.put("steps", time - this.step / 2, decoded ? "decoded" : "", { length: this.step, height: signal ?? 0.1, tip });
    if (uniform) this.put("uniform", time, "", { tip: `uniform decoding at ${time.toFixed(1)} s` });
  },

  addEmission({ text, start, end, emitted_at, source }) {
    const kind = source === "decoder" ? "" : "cached", length = Math.max(end - start, this.step);
    const tip = `${start.toFixed(1)}–${end.toFixed(1)} s, from the ${source} at ${emitted_at.toFixed(1)} s: ${text}`;
    this.put("texts", start, `span ${kind}`, { length, tip, text: length * this.scale() > 34 ? text : "" });
    this.put("decodes", emitted_at, kind, { tip });
    this.covered = Math.max(this.covered ?? end, end);
  },

  /** A line through all rows, labelled above them: a bell that rang, a setting that changed. */
  addLine(time, className, text, tip = "") {
    const mark = this.put("marks", time, `line ${className}`, { text, tip: [text, tip].filter(Boolean).join(", ") });
    if (className === "rung") mark.firstChild.prepend(bell());
    const room = (time - Math.max(this.lined, this.origin)) * this.scale();
    if (mark.firstChild.offsetWidth + 4 > room) mark.classList.add("short"); // the words are in its tip
    this.lined = time;
  },

  /** A small picture wherever there is room for one. */
  addPicture(image) {
    if (this.now === null || this.shown - this.pictured < 49 / this.scale()) return;
    const canvas = make("canvas", ""), side = Math.min(image.naturalWidth, image.naturalHeight);
    canvas.width = canvas.height = Math.min(side, 92);
    const left = (image.naturalWidth - side) / 2, top = (image.naturalHeight - side) / 2;
    canvas.getContext("2d").drawImage(image, left, top, side, side, 0, 0, canvas.width, canvas.height);
    this.put("pictures", this.shown, "").append(canvas);
    this.pictured = this.shown;
  },

  /** Moves on smoothly between two steps. */
  draw(running) {
    if (this.now === null) return;
    const since = running ? (performance.now() - this.arrived) / 1000 : 0;
    this.shown = Math.max(this.shown, this.now + Math.min(since, this.step));
    this.track.style.width = `${(this.shown - this.origin) * this.scale() + 20}px`;
    this.open.style.setProperty("--t", this.covered);
    this.open.style.setProperty("--d", Math.max(this.shown - this.covered, 0));
    if (this.following) this.scroll.scrollLeft = this.scroll.scrollWidth;
    $("follow").hidden = this.following;
  },

  /** Whoever scrolls by hand is left alone until the right end is reached again. */
  listen() {
    const stop = () => { this.following = this.scroll.scrollWidth <= this.scroll.clientWidth; };
    this.scroll.addEventListener("touchmove", stop, { passive: true });
    this.scroll.addEventListener("wheel", (event) => { if (event.deltaX || event.shiftKey) stop(); }, { passive: true });
    this.scroll.addEventListener("keydown", (event) => { if (["ArrowLeft", "Home", "PageUp"].includes(event.key)) stop(); });
    this.scroll.addEventListener("pointerdown", (event) => { if (event.target === this.scroll) stop(); });
    this.scroll.addEventListener("scroll", () => {
      if (this.scroll.scrollWidth - this.scroll.clientWidth - this.scroll.scrollLeft < 2) this.following = true;
    });
    $("follow").addEventListener("click", () => { this.following = true; });
  },
};
timeline.listen();
