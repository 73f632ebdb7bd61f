// A histogram of scores with a threshold to drag: arithmetic and drawing, without a request.

import { h, number, svg } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 120;
const FOOT = 20;

/** The score at a share of the width of a histogram.
 * @param {{low: number, high: number}} histogram @param {number} share @returns {number} */
export function scoreAt({ low, high }, share) {
  return share >= 1 ? high : low + Math.max(0, share) * (high - low); // the sum may come out above the highest score
}

/** The share of the width at which a score is.
 * @param {{low: number, high: number}} histogram @param {number} score @returns {number} */
export function shareOf({ low, high }, score) {
  return Math.min(1, Math.max(0, (score - low) / (high - low)));
}

/** Heights of the bars, 0 to 1: by the logarithm, or one outlier among thousands would be no bar at all.
 * @param {number[]} counts @returns {number[]} */
export function heights(counts) {
  const most = Math.log1p(Math.max(...counts, 1));
  return counts.map((count) => Math.log1p(count) / most);
}

/**
 * Draw a histogram; `moved` gets the score that its threshold is dragged to.
 * @param {{low: number, high: number, counts: number[]}} histogram @param {number} threshold
 * @param {(score: number) => void} moved
 */
export function histogramOf(histogram, threshold, moved) {
  const bar = WIDTH / histogram.counts.length;
  const bars = heights(histogram.counts).map((height, place) =>
    svg("rect", { x: place * bar + 1, width: Math.max(1, bar - 2), y: (1 - height) * (HEIGHT - FOOT), height: height * (HEIGHT - FOOT) }),
  );
  const line = svg("line", { y1: 0, y2: HEIGHT - FOOT, class: "threshold-line" });
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    bars,
    line,
  );
  const slider = h("input", { type: "range", min: 0, max: 1, step: 0.002, "aria-label": "Threshold of the score" });
  const show = (score) => {
    const share = shareOf(histogram, score);
    line.setAttribute("x1", share * WIDTH);
    line.setAttribute("x2", share * WIDTH);
    for (const [place, one] of bars.entries()) one.classList.toggle("beyond", (place + 0.5) * bar >= share * WIDTH);
    slider.value = String(share);
    slider.setAttribute("aria-valuetext", `score ${number(score, 2)}`);
  };
  slider.addEventListener("input", () => {
    const score = scoreAt(histogram, Number(slider.value));
    show(score);
    moved(score);
  });
  show(threshold);
  const element = h(
    "div",
    { class: "histogram" },
    h("div", { class: "bars" }, drawing, slider),
    h("div", { class: "row between hint" }, h("span", {}, `ordinary, ${number(histogram.low, 1)}`), h("span", {}, "drag the line"), h("span", {}, `unusual, ${number(histogram.high, 1)}`)),
  );
  return Object.assign(element, { show });
}
