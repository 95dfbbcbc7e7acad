"use strict";
// Elements, and numbers as people read them.

const $ = (id) => document.getElementById(id);

/** Sets the text of an element where it differs, so that a screen reader hears changes only. */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  element.className = className;
  if (text) element.textContent = text;
  return element;
}

const bell = () => $("bell").content.firstElementChild.cloneNode(true);
const whole = (n) => (Number.isFinite(n) ? Math.round(n).toLocaleString("en") : "–");
const hertz = (rate) => `${Number(rate.toFixed(2))}\u00a0Hz`;
const times = (ratio) => (Number.isFinite(ratio) && ratio > 0 ? `${ratio.toFixed(ratio < 10 ? 2 : 1)}×` : "–");

/** A setting as it is shown. */
function setting(key, value) {
  if (typeof value !== "number") return String(value ?? "off").replaceAll("_", " ");
  if (key === "cache_threshold" && value < 0) return "off";
  return key === "uniform_rate_hz" ? hertz(value) : String(Number(value.toFixed(3)));
}

/** 75 -> "1:15" */
function clock(seconds) {
  const s = Math.max(Math.floor(seconds), 0), two = (n) => String(n % 60).padStart(2, "0");
  return s < 3600 ? `${Math.floor(s / 60)}:${two(s)}` : `${Math.floor(s / 3600)}:${two(Math.floor(s / 60))}:${two(s)}`;
}

/** 1234567 -> "1.23 M" */
function short(n) {
  const power = !(n >= 1000) ? 0 : Math.min(Math.floor(Math.log10(n) / 3), 6);
  return power ? `${(n / 1000 ** power).toPrecision(3)}\u00a0${"kMGTPE"[power - 1]}` : whole(n);
}

/** 0.0123 -> "12.3 ms" */
function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const [value, unit] = seconds < 1 ? [1000 * seconds, "ms"] : [seconds, "s"];
  return `${value < 100 ? value.toPrecision(3) : whole(Math.round(value))}\u00a0${unit}`;
}
