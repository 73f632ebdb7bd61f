// Curves of a run, drawn from its log of metrics.

import { h, svg } from "./dom.js";

const WIDTH = 520;
const HEIGHT = 220;
const LEFT = 72;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 34;
const PSNR_HINT =
  "Computed from the mean squared error over all validation images. The PSNR above is the mean over images, measured on " +
  "others; a few poor reconstructions lower it less.";

const OF_SHARP = "train_perceptual_loss"; // measured in the epochs of the sharp decoder, after all others

/** How far a run is, in its phase: the epochs with a code, which can end early, or those of the sharp decoder.
 * @param {any[]} records @param {number} epochs at most, with a code @param {number} all those of the sharp decoder included
 * @returns {{stage: string, done: number, total: number}} */
export function phaseOf(records, epochs, all) {
  const sharp = records.filter((record) => OF_SHARP in record).length;
  if (sharp) return { stage: "epochs of the sharp decoder", done: sharp, total: Math.max(all - epochs, sharp) };
  return { stage: "epochs", done: records.length, total: epochs };
}

/** Charts of the terms of the loss, each with a table of its values for people who cannot see it. */
export function curves(records, epochs) {
  // Where those of the sharp decoder have begun, no more of these will come.
  const most = records.some((record) => OF_SHARP in record) ? 0 : epochs;
  const charts = [chart("Loss", records, most, [["train_loss", "training"], ["val_loss", "validation"]])];
  const measured = records.filter((record) => record.val_mse > 0);
  if (measured.length) {
    const psnr = measured.map(({ epoch, val_mse }) => ({ epoch, psnr: -10 * Math.log10(val_mse) }));
    const drawn = chart("PSNR, dB", psnr, most, [["psnr", "validation"]]);
    drawn.append(h("p", { class: "hint" }, PSNR_HINT));
    charts.push(drawn);
  }
  if (records.some((record) => record.val_kl !== undefined)) {
    charts.push(chart("KL, nats per image", records, most, [["train_kl", "training"], ["val_kl", "validation"]]));
  }
  return charts;
}

function chart(title, records, epochs, series) {
  const lines = series
    .map(([key, name]) => [name, records.filter((r) => Number.isFinite(r[key])).map((r) => [r.epoch, r[key]])])
    .filter(([, points]) => points.length);
  const values = lines.flatMap(([, points]) => points.map(([, value]) => value));
  const last = Math.max(epochs || 0, ...lines.flatMap(([, points]) => points.map(([epoch]) => epoch)), 1);
  const across = (epoch) => LEFT + ((epoch - 1) / Math.max(last - 1, 1)) * (WIDTH - LEFT - RIGHT);
  const ticks = niceTicks(Math.min(...values), Math.max(...values));
  const [low, high] = [ticks[0], ticks[ticks.length - 1]];
  const down = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title} by epoch: ${summary(lines)}` },
    ticks.map((tick) => gridLine(tickText(tick, ticks[1] - ticks[0]), down(tick))),
    epochTicks(last).map((epoch) =>
      svg("text", { x: across(epoch), y: HEIGHT - 14, "text-anchor": "middle", class: "tick" }, String(epoch)),
    ),
    lines.map(([name, points]) => line(name, points.map(([epoch, value]) => [across(epoch), down(value)]))),
  );
  const legend = lines.map(([name]) => h("li", { class: `key ${name}` }, name));
  return h(
    "figure",
    { class: "chart" },
    h("figcaption", {}, h("span", {}, title), h("ul", { class: "keys" }, legend)),
    drawing,
    table(title, lines),
  );
}

function line(name, points) {
  const path = points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const dots = points.length < 40 ? points.map(([cx, cy]) => svg("circle", { cx, cy, r: 3 })) : [];
  return svg("g", { class: `line ${name}` }, svg("path", { d: path }), dots);
}

function gridLine(text, y) {
  return svg(
    "g",
    { class: "grid-line" },
    svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
    svg("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end", class: "tick" }, text),
  );
}

/** A tick as text, with as many digits as tell it from the next. @param {number} value @param {number} step */
export function tickText(value, step) {
  const place = Math.floor(Math.log10(step) + 1e-9);
  const rounded = Math.round(value / step) * step; // 0, not 3e-17
  if (rounded && (Math.abs(rounded) >= 1e5 || step < 1e-5)) return rounded.toExponential(Math.max(0, Math.floor(Math.log10(Math.abs(rounded)) + 1e-9) - place));
  return rounded.toFixed(Math.max(0, -place));
}

function table(title, lines) {
  const epochs = [...new Set(lines.flatMap(([, points]) => points.map(([epoch]) => epoch)))];
  const at = (points, epoch) => points.find(([other]) => other === epoch)?.[1];
  const head = h("tr", {}, h("th", { scope: "col" }, "epoch"), lines.map(([name]) => h("th", { scope: "col" }, name)));
  const rows = epochs.map((epoch) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, String(epoch)),
      lines.map(([, points]) => h("td", {}, at(points, epoch) === undefined ? "" : short(at(points, epoch)))),
    ),
  );
  return h(
    "details",
    {},
    h("summary", {}, "As numbers"),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, numbers` }, h("table", {}, head, rows)),
  );
}

function summary(lines) {
  return lines.map(([name, points]) => `${name} from ${short(points[0][1])} to ${short(points.at(-1)[1])}`).join(", ");
}

function short(value) {
  return Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 1e-4)
    ? value.toExponential(2)
    : String(Number(value.toPrecision(4)));
}

/** About four round numbers that cover a range. */
export function niceTicks(low, high) {
  const span = high - low || 0.1 * Math.abs(high) || 1; // of one value: close about it
  const rough = span / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const first = Math.floor(low / step);
  const last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

function epochTicks(last) {
  const step = Math.max(1, Math.ceil(last / 8));
  return Array.from({ length: Math.floor((last - 1) / step) + 1 }, (_, index) => 1 + index * step);
}
