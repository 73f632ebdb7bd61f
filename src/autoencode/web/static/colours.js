// Colours of the map: labels and splits by a list that colour-blind people can distinguish, scores by a scale.

import { h, number, select } from "./dom.js";
import { isDark } from "./theme.js";

// From those of Okabe & Ito 2008 and Tol 2021, moved until each had a contrast of 3 with its background and they were as
// far from each other as possible, also for eyes without red or without green cones (Machado et al. 2009).
const LISTS = {
  light: [
    "#0f88eb", "#c07c05", "#2f9341", "#c4749d", "#bb3000", "#7186c2", "#0c6e4e", "#5e0050", "#577820", "#8d43a7",
    "#6f966e", "#5f2680",
  ],
  dark: [
    "#2d92f6", "#ebbd07", "#4fa08a", "#e5afc8", "#e74d08", "#9c9ed0", "#2ecc8e", "#9f52a2", "#62972f", "#b26b96",
    "#9afdf1", "#b383dc",
  ],
};
// Contrast with the background grows with the score, so that unusual images stand out.
const SCALES = {
  light: ["#5b8fd9", "#6f78d2", "#8a5cbc", "#9c3f94", "#a21f5e", "#8f0a20"],
  dark: ["#4f78c8", "#7d7fdc", "#b488dd", "#e296c0", "#f8b48f", "#fde58a"],
};
const NONE = "#858585";
const LISTED = 24; // groups in the legend; the others are in a list

function colours() {
  const scheme = isDark() ? "dark" : "light";
  return { list: LISTS[scheme], scale: SCALES[scheme] };
}

function packed(colour) {
  const value = parseInt(colour.slice(1), 16);
  return ((255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}

/** Set the colour of every point. */
export function paint(points, mode) {
  const none = packed(NONE);
  const list = colours().list.map(packed);
  if (mode === "score") {
    const [low, high] = limits(points.score);
    const scale = Array.from({ length: 64 }, (_, step) => packed(onScale(colours().scale, step / 63)));
    for (let i = 0; i < points.count; i++) {
      const share = (points.score[i] - low) / (high - low);
      points.colour[i] = Number.isNaN(share) ? none : scale[Math.round(63 * Math.min(1, Math.max(0, share)))];
    }
    return;
  }
  if (mode === "none") {
    points.colour.fill(list[0]);
    return;
  }
  const values = points[mode];
  for (let i = 0; i < points.count; i++) points.colour[i] = values[i] < 0 ? none : list[values[i] % list.length];
}

/** The legend. Pressing a group calls `choose` with its number; `pictured` gives the picture that names a group of similar ones. */
export function legend(points, mode, about, choose, pictured) {
  if (mode === "score") {
    const [low, high] = limits(points.score);
    const { scale } = colours();
    const steps = scale.map((colour, step) => {
      const title = `Select all from ${number(low + ((high - low) * step) / scale.length, 1)} on`;
      const button = h("button", { type: "button", title, "aria-label": title, onclick: () => choose(step) });
      button.style.background = colour;
      return button;
    });
    return h("div", { class: "scale" }, h("span", { class: "steps" }, steps), h("span", {}, `normal, ${number(low, 1)}`), h("span", {}, `unusual, ${number(high, 1)}`));
  }
  if (mode === "none") return h("p", {});
  if (mode === "group") {
    const { list } = colours();
    return h("ul", { class: "similar" }, about.groups.map(({ picture, images, label }, place) => {
      const title = `Select these ${number(images)} similar pictures${label ? `, most of them ${label}` : ""}`;
      const typical = pictured(picture);
      typical.style.borderColor = list[place % list.length];
      return h("li", {}, h("button", { type: "button", class: "group", title, "aria-label": title, onclick: () => choose(place) }, typical, label, h("span", {}, number(images))));
    }));
  }
  const names = mode === "copies" ? ["one of a kind", "with copies"] : mode === "label" ? about.labels : about.splits;
  const { list } = colours();
  const shown = names.slice(0, LISTED).map((name, place) => {
    const press = { type: "button", class: "group", title: `Select all of ${name}`, onclick: () => choose(place) };
    return h("li", {}, h("button", press, swatch(list[place % list.length]), name));
  });
  if (names.length > LISTED) shown.push(h("li", {}, further(names, choose)));
  if (names.length > list.length) shown.push(h("li", {}, "colours repeat"));
  return h("ul", {}, shown);
}

/** The points that a press in the legend selects: those of a group, or those of a score and all above.
 * @param {import("./points.js").Points} points @param {string} mode @param {number} group @returns {number[]} */
export function groupOf(points, mode, group) {
  if (mode !== "score") return points.ofGroup(/** @type {"label"} */ (mode), group);
  const [low, high] = limits(points.score);
  const least = low + ((high - low) * group) / SCALES.light.length;
  return Array.from(points.score.keys()).filter((i) => points.score[i] >= least);
}

function further(names, choose) {
  const options = names.slice(LISTED).map((name, place) => [String(LISTED + place), name]);
  const made = select([["", `and ${options.length} more`], ...options], "", (place) => place && choose(Number(place)));
  made.setAttribute("aria-label", "Select all of");
  return made;
}

function swatch(colour) {
  const made = h("span", { class: "swatch" });
  made.style.background = colour;
  return made;
}

/** The range of the scale: from the lowest score to the 99th percentile, as a few scores can be far higher. */
function limits(scores) {
  const sorted = Float32Array.from(scores.filter((value) => !Number.isNaN(value))).sort();
  if (!sorted.length) return [0, 1];
  const [low, high] = [sorted[0], sorted[Math.round(0.99 * (sorted.length - 1))]];
  return high > low ? [low, high] : [low, low + 1];
}

function onScale(scale, share) {
  const at = share * (scale.length - 1);
  const first = Math.min(Math.floor(at), scale.length - 2);
  const mix = (from, to) => Math.round(from + (to - from) * (at - first));
  const parts = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const [one, other] = [parts(scale[first]), parts(scale[first + 1])];
  return `#${one.map((value, k) => mix(value, other[k]).toString(16).padStart(2, "0")).join("")}`;
}
