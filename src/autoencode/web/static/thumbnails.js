// The thumbnails of the map: which points get one, and the sheets that they are cut from.

import { sheetUrl } from "./api.js";

const SHEET = 128; // thumbnails asked for at once
const COLUMNS = 16; // of a sheet, as the server lays them out
const KEPT = 6000;
const SIDES = [48, 96, 128]; // pixels of a thumbnail in a sheet

/** The side of a thumbnail in CSS pixels at a zoom: it grows as one comes closer.
 * @param {number} zoom @returns {number} */
export function sideAt(zoom) {
  return Math.round(Math.min(148, Math.max(34, 38 * zoom ** 0.45)));
}

/** Zoom in steps between which the same points have thumbnails, so that they stay while the map moves.
 * @param {number} zoom @returns {number} */
export function levelOf(zoom) {
  return Math.round(2 * Math.log2(Math.max(zoom, 0.25)));
}

/**
 * The points that get a thumbnail: one of each cell of a grid over the map, that of the least priority, so that a point
 * that has one keeps it as one comes closer.
 * @param {{x: Float32Array, y: Float32Array, count: number, chosen: Uint8Array, chosenCount: number}} points
 * @param {number} cell side of a cell in units of the map @param {Uint32Array} priority one number each
 * @returns {Int32Array}
 */
export function picked(points, cell, priority) {
  const { x, y, count, chosen, chosenCount } = points;
  const best = new Map();
  for (let i = 0; i < count; i++) {
    if (chosenCount && !chosen[i]) continue;
    const key = Math.floor(x[i] / cell) * 0x100000 + Math.floor(y[i] / cell);
    const other = best.get(key);
    if (other === undefined || priority[i] < priority[other]) best.set(key, i);
  }
  return Int32Array.from(best.values());
}

/** The squares of a side that cover no other: of two that would, the first stays.
 * @param {[number, number][]} places their middles @param {number} side @returns {number[]} */
export function apart(places, side) {
  const kept = [];
  for (const [i, [x, y]] of places.entries()) {
    if (kept.every((k) => Math.abs(places[k][0] - x) >= side || Math.abs(places[k][1] - y) >= side)) kept.push(i);
  }
  return kept;
}

/** Which of texts about places do not lie over one before them.
 * @param {{left: number, top: number, width: number}[]} texts middles, and widths, in pixels @param {number} height @returns {number[]} */
export function readable(texts, height) {
  const kept = [];
  for (const [i, { left, top, width }] of texts.entries()) {
    const isFree = kept.every((k) => Math.abs(texts[k].top - top) >= height || Math.abs(texts[k].left - left) >= (texts[k].width + width) / 2);
    if (isFree) kept.push(i);
  }
  return kept;
}

/** A random but repeatable number for each of `count` points. @param {number} count @returns {Uint32Array} */
export function priorities(count) {
  const made = new Uint32Array(count);
  for (let i = 0; i < count; i++) made[i] = Math.imul(i + 1, 2654435761) >>> 0;
  return made;
}

/** Thumbnails at hand; those that are missing are asked for once the map rests. */
export class Tiles {
  #kept = new Map();
  #waiting = null;

  /** @param {string} letter of the collection @param {() => void} arrived called when there are more */
  constructor(letter, arrived) {
    this.letter = letter;
    this.arrived = arrived;
  }

  /** The sheet of a thumbnail with its place there, or undefined; a smaller one until the right one comes.
   * @param {number} i @param {number} side
   * @returns {{tile: [HTMLImageElement, number, number, number], isEnough: boolean} | undefined} */
  get(i, side) {
    const wanted = SIDES.find((one) => one >= side) ?? SIDES.at(-1);
    const tile = this.#kept.get(i);
    return tile && { tile, isEnough: tile[3] >= wanted };
  }

  /** @param {number[]} missing @param {number} side */
  want(missing, side) {
    clearTimeout(this.#waiting);
    this.#waiting = setTimeout(() => this.#load(missing.slice(0, SHEET), SIDES.find((one) => one >= side) ?? SIDES.at(-1)), 60);
  }

  async #load(wanted, side) {
    const sheet = new Image();
    sheet.src = sheetUrl(this.letter, wanted, side);
    try {
      await sheet.decode();
    } catch {
      return; // asked for again when the map moves
    }
    if (this.#kept.size > KEPT) this.#kept.clear();
    wanted.forEach((i, place) => this.#kept.set(i, [sheet, (place % COLUMNS) * side, Math.floor(place / COLUMNS) * side, side]));
    this.arrived();
  }
}
