// Colours of the map: by label and split from a list that the colour-blind can tell apart, by score from a scale.

import { h, number } from "/static/dom.js";

// After Okabe & Ito 2008 and Tol 2021, in an order in which neighbours differ.
const LIST = [
  "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#117733", "#882255", "#999933", "#aa4499",
  "#44aa99", "#6a3d9a",
];
const SCALE = ["#3b4cc0", "#6f92f3", "#aac7fd", "#f7b89c", "#e7745b", "#b40426"];
const NONE = "#8a8a8a";

function packed(colour) {
  const value = parseInt(colour.slice(1), 16);
  return ((255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

/** Set the colour of every point. */
export function paint(points, mode) {
  const none = packed(NONE);
  const list = LIST.map(packed);
  if (mode === "score") {
    const [low, high] = limits(points.score);
    const scale = Array.from({ length: 64 }, (_, step) => packed(onScale(step / 63)));
    for (let i = 0; i < points.count; i++) {
      const share = (points.score[i] - low) / (high - low);
      points.colour[i] = Number.isNaN(share) ? none : scale[Math.round(63 * Math.min(1, Math.max(0, share)))];
    }
    return;
  }
  const values = mode === "label" ? points.label : points.split;
  for (let i = 0; i < points.count; i++) points.colour[i] = values[i] < 0 ? none : list[values[i] % list.length];
}

/** What the colours mean. */
export function legend(points, mode, about) {
  if (mode === "score") {
    const [low, high] = limits(points.score);
    const steps = SCALE.map((colour) => swatch(colour));
    return h("p", { class: "scale" }, `ordinary, ${number(low, 1)}`, h("span", { class: "steps" }, steps), `strange, ${number(high, 1)}`);
  }
  const names = mode === "label" ? about.labels : about.splits;
  const shown = names.slice(0, 24).map((name, place) => h("li", {}, swatch(LIST[place % LIST.length]), name));
  if (names.length > 24) shown.push(h("li", {}, `and ${names.length - 24} more`));
  if (names.length > LIST.length) shown.push(h("li", {}, "colours repeat"));
  return h("ul", {}, shown);
}

function swatch(colour) {
  const made = h("span", { class: "swatch" });
  made.style.background = colour;
  return made;
}

/** Scores from the least to where the strangest hundredth begins. */
function limits(scores) {
  const sorted = Float32Array.from(scores.filter((value) => !Number.isNaN(value))).sort();
  if (!sorted.length) return [0, 1];
  const [low, high] = [sorted[0], sorted[Math.round(0.99 * (sorted.length - 1))]];
  return high > low ? [low, high] : [low, low + 1];
}

function onScale(share) {
  const at = share * (SCALE.length - 1);
  const first = Math.min(Math.floor(at), SCALE.length - 2);
  const mix = (from, to) => Math.round(from + (to - from) * (at - first));
  const parts = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const [one, other] = [parts(SCALE[first]), parts(SCALE[first + 1])];
  return `#${one.map((value, k) => mix(value, other[k]).toString(16).padStart(2, "0")).join("")}`;
}
