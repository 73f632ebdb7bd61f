// Where one looks at the map: arithmetic alone, so that it can be tested without a page.

const [FARTHEST, NEAREST] = [0.5, 400]; // zoom, relative to that at which everything fits
const MARGIN = 0.86; // share of the window that the points fill when all are shown

/** @typedef {{x: number, y: number, width: number, height: number}} Area its middle and its size, in units of the map */

/** The middle of the window in units of the map, and the pixels of the window per unit. */
export class Camera {
  x = 0;
  y = 0;
  scale = 0; // 0 before anything was shown
  fit = 1; // scale at which everything fits
  width = 0; // of the window, in its pixels
  height = 0;
  /** @type {Area} */
  #area = { x: 0, y: 0, width: 1, height: 1 }; // what is shown at a zoom of 1

  /** How much larger things are than when all of them fit. */
  get zoom() {
    return this.scale / this.fit;
  }

  /** Show an area whole. @param {Area} area */
  show(area) {
    this.#area = area;
    this.resize(this.width, this.height);
    Object.assign(this, { x: area.x, y: area.y, scale: this.fit });
  }

  /** Look through a window of another size, with the same zoom. @param {number} width @param {number} height */
  resize(width, height) {
    const { zoom } = this;
    Object.assign(this, { width, height });
    this.fit = MARGIN * Math.min(width / this.#area.width, height / this.#area.height);
    this.scale = zoom * this.fit;
  }

  /** @param {number} x @param {number} y @returns {[number, number]} in pixels of the window */
  toWindow(x, y) {
    return [(x - this.x) * this.scale + this.width / 2, (y - this.y) * this.scale + this.height / 2];
  }

  /** @param {number} left @param {number} top @returns {[number, number]} in units of the map */
  toMap(left, top) {
    return [(left - this.width / 2) / this.scale + this.x, (top - this.height / 2) / this.scale + this.y];
  }

  /** Move by so many pixels of the window. @param {number} across @param {number} down */
  pan(across, down) {
    this.x += across / this.scale;
    this.y += down / this.scale;
  }

  /** Zoom about a point of the map, which stays where it is. @param {number} factor @param {[number, number]} point */
  zoomBy(factor, [x, y] = [this.x, this.y]) {
    const scale = Math.min(NEAREST * this.fit, Math.max(FARTHEST * this.fit, this.scale * factor));
    const kept = this.scale / scale;
    this.x = x + (this.x - x) * kept;
    this.y = y + (this.y - y) * kept;
    this.scale = scale;
  }

  /** Left, top, right and bottom of an area about the middle, by default of the whole window.
   * @param {number} width @param {number} height in pixels of the window @returns {[number, number, number, number]} */
  middle(width = this.width, height = this.height) {
    const [across, down] = [width / this.scale / 2, height / this.scale / 2];
    return [this.x - across, this.y - down, this.x + across, this.y + down];
  }
}

/**
 * Places on the way from one layout to another, each a straight line on the screen, slow at both ends.
 * @param {{x: number, y: number}} from place in the layout before, as `before` showed it
 * @param {{x: number, y: number}} to place in the new one @param {{x: number, y: number, scale: number}} before
 * @param {{x: number, y: number, scale: number}} now @param {number} share of the time, from 0 to 1
 */
export function between(from, to, before, now, share) {
  const eased = share * share * (3 - 2 * share);
  const start = (axis) => ((from[axis] - before[axis]) * before.scale) / now.scale + now[axis];
  return { x: to.x * eased + (1 - eased) * start("x"), y: to.y * eased + (1 - eased) * start("y") };
}
