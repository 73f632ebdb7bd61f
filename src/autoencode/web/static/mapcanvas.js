// What the map looks like: density, points, thumbnails, names and outlines on a canvas, as its camera sees them.

import { between, Camera } from "./camera.js";
import { drawDensity, drawPoints, liesApart } from "./points.js";
import { Tiles, apart, levelOf, picked, priorities, readable, sideAt } from "./thumbnails.js";

const DENSE = 3000; // points from which density is drawn beneath them
const CELL = 7; // pixels of the screen to one of the density
const MOVE_MS = 700; // that points take to their place in another layout
const NAMED = 24; // labels whose names are written on the map
const LANDMARK = 1.7; // side of the picture that names a group, in sides of a thumbnail
const LARGEST = 0.14; // of the smaller side of the map

export class MapCanvas {
  hasPictures = true;
  isNamed = false; // whether the labels are written where most of their images are
  hasLandmarks = false; // whether each group of similar images is named by a typical one
  path = null; // of the outline that is being drawn, in units of the map
  rectangle = null; // [width, height] in CSS pixels, about the middle
  ratio = 1; // pixels of the canvas per CSS pixel
  camera = new Camera();
  #names = null;
  #picks = null; // the points that have thumbnails

  /** @param {HTMLCanvasElement} canvas in its stage @param {{letter: string, labels: string[], groups: {position: number, label: string | null}[]}} about @param {import("./points.js").Points} points */
  constructor(canvas, about, points) {
    this.canvas = canvas;
    this.labels = about.labels;
    this.groups = about.groups;
    this.points = points;
    this.context = canvas.getContext("2d");
    this.dense = document.createElement("canvas");
    this.tiles = new Tiles(about.letter, () => this.draw());
    this.priority = priorities(points.count);
  }

  resize() {
    const box = this.canvas.parentElement.getBoundingClientRect();
    if (!box.width) return;
    this.ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [Math.round(box.width * this.ratio), Math.round(box.height * this.ratio)];
    if (this.image && width === this.canvas.width && height === this.canvas.height) return;
    Object.assign(this.canvas, { width, height });
    this.camera.resize(width, height);
    this.#picks = null; // the cells of the grid have another size
    this.image = this.context.createImageData(width, height);
    if (this.camera.scale) this.draw();
    else this.reset();
  }

  /** Show 99 % of the points or, with `every`, all of them. */
  reset(every = false) {
    this.camera.show(every ? this.points.whole : this.points.view);
    this.draw();
  }

  /** Draw other thumbnails, once others are selected. */
  pickAnew() {
    this.#picks = null;
    this.draw();
  }

  /** Show the points of another layout, and let them move there from their places in the one before. */
  glideTo(points) {
    const before = this.points;
    this.points = points;
    this.#names = this.#picks = null;
    const { camera } = this;
    const from = { x: camera.x, y: camera.y, scale: camera.scale };
    this.reset();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches || !from.scale) return;
    const [x, y] = [points.x.slice(), points.y.slice()];
    const now = { x: camera.x, y: camera.y, scale: camera.scale };
    const began = performance.now();
    const step = (time) => {
      const share = Math.min(1, (time - began) / MOVE_MS);
      for (let i = 0; i < points.count; i++) {
        const place = between({ x: before.x[i], y: before.y[i] }, { x: x[i], y: y[i] }, from, now, share);
        points.x[i] = place.x;
        points.y[i] = place.y;
      }
      this.isGliding = share < 1;
      this.draw();
      if (this.isGliding && this.points === points) requestAnimationFrame(step);
      else {
        points.x.set(x);
        points.y.set(y);
      }
    };
    this.isGliding = true;
    requestAnimationFrame(step);
  }

  /** Where an event is. @param {{clientX: number, clientY: number}} event @returns {[number, number]} in units of the map */
  placeOf(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.camera.toMap((event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio);
  }

  /** The point nearest to a place, at most so many CSS pixels away; -1 if there is none. */
  nearest(x, y, reach) {
    return this.points.nearest(x, y, (reach * this.ratio) / this.camera.scale);
  }

  /** The points that are visible. */
  seen() {
    return [...this.points.within(...this.camera.middle())];
  }

  /** The points in the rectangle about the middle. */
  inRectangle() {
    const [width, height] = this.rectangle.map((side) => side * this.ratio);
    return [...this.points.within(...this.camera.middle(width, height))];
  }

  /** Draw in the next frame; calls made before it are one drawing. */
  draw() {
    if (!this.camera.scale || this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.#drawNow();
    });
  }

  #drawNow() {
    const zoom = this.camera.zoom;
    this.canvas.style.touchAction = zoom > 1.01 ? "none" : "pan-y"; // a finger scrolls the page until one has zoomed in
    const base = this.points.count > 20000 ? 2 : this.points.count > 3000 ? 4 : 6;
    const side = Math.max(2, Math.round(base * this.ratio * Math.min(2.5, Math.sqrt(zoom))));
    drawPoints(this.points, this.image, this.camera.scale, this.camera.x, this.camera.y, side);
    this.context.putImageData(this.image, 0, 0);
    if (this.points.count >= DENSE) this.#drawDensity();
    if (this.hasPictures && !this.isGliding) this.#drawTiles(zoom);
    if (this.hasLandmarks && this.hasPictures && !this.isGliding) this.#drawLandmarks(zoom);
    if (this.isNamed) this.#drawNames(zoom);
    this.#drawLasso();
    if (this.rectangle) this.#drawRectangle();
    else if (this.canvas.matches(":focus-visible")) this.#drawMiddle();
  }

  #drawDensity() {
    const { width, height } = this.canvas;
    const cell = CELL * this.ratio;
    const [columns, rows] = [Math.ceil(width / cell), Math.ceil(height / cell)];
    if (this.dense.width !== columns || this.dense.height !== rows) {
      Object.assign(this.dense, { width: columns, height: rows });
      this.denseContext = this.dense.getContext("2d");
      this.denseImage = this.denseContext.createImageData(columns, rows);
    }
    drawDensity(this.points, this.denseImage, this.camera.scale / cell, this.camera.x, this.camera.y, 0x00998877);
    this.denseContext.putImageData(this.denseImage, 0, 0);
    this.context.globalCompositeOperation = "destination-over";
    this.context.drawImage(this.dense, 0, 0, columns * cell, rows * cell);
    this.context.globalCompositeOperation = "source-over";
  }

  #drawTiles(zoom) {
    const level = levelOf(zoom);
    const side = sideAt(2 ** (level / 2)) * this.ratio;
    // Once a level: it goes through all points.
    if (this.#picks?.level !== level || this.#picks.of !== this.points) {
      const cell = (1.25 * side) / (this.camera.fit * 2 ** (level / 2));
      this.#picks = { level, of: this.points, points: picked(this.points, cell, this.priority) };
    }
    const missing = [];
    for (const i of this.#picks.points) {
      const [left, top] = this.camera.toWindow(this.points.x[i], this.points.y[i]);
      if (left < -side || top < -side || left > this.canvas.width + side || top > this.canvas.height + side) continue;
      const found = this.tiles.get(i, side);
      if (found) this.#drawTile(found.tile, i, left, top, side);
      if (!found?.isEnough) missing.push(i);
    }
    if (missing.length) this.tiles.want(missing, side);
  }

  #drawTile([sheet, sx, sy, size], i, left, top, side, border = 1.5) {
    const { context } = this;
    const edge = Math.max(2, border * this.ratio);
    context.fillStyle = cssColour(this.points.colour[i]);
    context.beginPath();
    context.roundRect(left - side / 2 - edge, top - side / 2 - edge, side + 2 * edge, side + 2 * edge, 4 * this.ratio);
    context.fill();
    context.drawImage(sheet, sx, sy, size, size, left - side / 2, top - side / 2, side, side);
  }

  /** Draw a typical image of each group of similar ones large, with the label that most of them have. */
  #drawLandmarks(zoom) {
    if (zoom > 4 || this.points.chosenCount) return;
    const side = Math.min(LANDMARK * sideAt(zoom) * this.ratio, LARGEST * Math.min(this.canvas.width, this.canvas.height));
    const places = this.groups.map(({ position }) => this.camera.toWindow(this.points.x[position], this.points.y[position]));
    const shown = apart(places, 1.1 * side); // the largest groups first
    const missing = [];
    for (const group of shown) {
      const { position } = this.groups[group];
      const found = this.tiles.get(position, side);
      if (found) this.#drawTile(found.tile, position, ...places[group], side, 3);
      if (!found?.isEnough) missing.push(position);
    }
    this.#beginNames();
    for (const group of shown) {
      const [left, top] = places[group];
      const { label } = this.groups[group];
      if (label) this.#drawName(label, left, top + side / 2 + 16 * this.ratio);
    }
    if (missing.length) this.tiles.want(missing, side);
  }

  /** Write the labels where most of their images are. */
  #drawNames(zoom) {
    const { labels } = this;
    if (labels.length < 2 || labels.length > NAMED || zoom > 4) return;
    // Of labels that say nothing of what is seen, such as years, all lie in the middle.
    this.#names ??= liesApart(this.points, this.points.label) ? this.points.middles(labels) : [];
    this.#beginNames();
    const texts = this.#names.map(({ x, y, count }, group) => {
      const [left, top] = this.camera.toWindow(x, y);
      return { name: labels[group], left, top, count, width: this.context.measureText(labels[group]).width };
    });
    texts.sort((one, other) => other.count - one.count);
    for (const k of readable(texts, 18 * this.ratio)) this.#drawName(texts[k].name, texts[k].left, texts[k].top);
  }

  #beginNames() {
    const { context } = this;
    context.font = `600 ${15 * this.ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.lineWidth = 4 * this.ratio;
    context.lineJoin = "round";
    const style = getComputedStyle(this.canvas.parentElement);
    context.strokeStyle = style.backgroundColor;
    context.fillStyle = style.color;
  }

  #drawName(name, left, top) {
    this.context.strokeText(name, left, top);
    this.context.fillText(name, left, top);
  }

  #drawLasso() {
    if (!this.path) return;
    this.context.beginPath();
    for (const [x, y] of this.path) this.context.lineTo(...this.camera.toWindow(x, y));
    this.context.closePath();
    this.#dash();
  }

  #drawRectangle() {
    const [width, height] = this.rectangle.map((side) => side * this.ratio);
    this.context.beginPath();
    this.context.rect((this.canvas.width - width) / 2, (this.canvas.height - height) / 2, width, height);
    this.#dash();
  }

  #dash() {
    this.context.lineWidth = 2 * this.ratio;
    this.context.strokeStyle = getComputedStyle(this.canvas).color;
    this.context.setLineDash([6 * this.ratio, 4 * this.ratio]);
    this.context.stroke();
    this.context.setLineDash([]);
  }

  #drawMiddle() {
    const [x, y, arm] = [this.canvas.width / 2, this.canvas.height / 2, 8 * this.ratio];
    this.context.strokeStyle = getComputedStyle(this.canvas).color;
    this.context.lineWidth = 2;
    this.context.beginPath();
    this.context.moveTo(x - arm, y);
    this.context.lineTo(x + arm, y);
    this.context.moveTo(x, y - arm);
    this.context.lineTo(x, y + arm);
    this.context.stroke();
  }
}

function cssColour(value) {
  return `rgb(${value & 255} ${(value >> 8) & 255} ${(value >> 16) & 255})`;
}
