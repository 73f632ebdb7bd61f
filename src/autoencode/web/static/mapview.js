// The map itself: a canvas with density, points and thumbnails, its controls, and its side panel.

import { remember } from "./address.js";
import { get, getBuffer, post, query, restarting, waitFor } from "./api.js";
import { legend, paint } from "./colours.js";
import { announce, field, h, isTyping, notice, number, progressBar, select, showFailure } from "./dom.js";
import { describe, openPicture, original, pictureButton, shortName } from "./pictures.js";
import { Points, drawDensity, drawPoints } from "./points.js";
import { selection } from "./selection.js";
import { lacks, workspace } from "./shared.js";
import { Tiles, levelOf, picked, priorities, sideAt } from "./thumbnails.js";

const LISTED = 48;
const STEP = 20; // pixels by which a key resizes the rectangle
const DENSE = 3000; // points from which density is drawn beneath them
const CELL = 7; // pixels of the screen to one of the density
const MOVE_MS = 700; // that points take to their place in another layout
// Up to here UMAP takes less than a minute; below, its libraries take longer to load than a look at all pictures.
const [FEWEST_BY_NEIGHBOURS, MOST_BY_NEIGHBOURS] = [500, 12000];
const NAMED = 24; // labels whose names are written on the map

export class MapView {
  constructor(root, about, points, load) {
    const mode = about.labels.length ? "label" : about.scored ? "score" : workspace.kind ? "split" : "none";
    this.about = about;
    this.points = points;
    this.load = load;
    this.mode = mode;
    this.layout = "pca";
    this.isLasso = false;
    this.hasPictures = true;
    this.path = null; // of the outline that is being drawn
    this.names = null; // of the labels, and where they are written
    this.picks = null; // the points that have thumbnails
    this.tiles = new Tiles(about.letter, () => this.draw());
    this.priority = priorities(points.count);
    this.pointers = new Map();
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label": `Map of ${number(about.images)} images`,
      "aria-describedby": "map-keys",
    });
    this.tip = h("div", { class: "tip", hidden: true });
    // Progress appears beside its control: below the map it would be out of sight.
    this.laying = h("div", { class: "waits" });
    this.scoring = h("div", { class: "waits" });
    this.stage = h("div", { class: "map-stage" }, this.canvas, this.#zoomButtons(), this.tip);
    this.key_ = h("div", { class: "legend" });
    this.list = h("div", { class: "chosen" });
    this.rectangle = null; // [width, height] in pixels of the screen, about the middle
    const panel = h("aside", { class: "map-panel", "aria-label": "Map" }, this.#toolbar(), this.laying, this.scoring, this.key_, this.list, keysHelp());
    root.append(h("div", { class: "map" }, this.stage, panel));
    this.context = this.canvas.getContext("2d");
    this.dense = document.createElement("canvas");
    this.#listen();
    this.#takeSelection();
    this.recolour();
    new ResizeObserver(() => this.resize()).observe(this.stage);
    selection.addEventListener("change", () => this.#takeSelection());
    addEventListener("theme", () => this.recolour());
    const isFit = about.images >= FEWEST_BY_NEIGHBOURS && about.images <= MOST_BY_NEIGHBOURS;
    if (isFit && !lacks("umap")) this.isByItself = true;
  }

  /** Take the state of the address, or begin by oneself with the layout that shows most. */
  open(params) {
    const layout = params?.get("layout");
    const mode = params?.get("colour");
    if (mode && mode !== this.mode && [...this.colouring.options].some(({ value }) => value === mode)) {
      this.colouring.value = mode;
      this.setMode(mode);
    }
    if (layout || this.isByItself) {
      this.isByItself = false;
      const wanted = layout ?? "umap";
      this.layouts.value = wanted;
      this.setLayout(wanted).catch((err) => showFailure(err, this.laying));
    }
    this.#remember();
  }

  #remember() {
    const { layout, mode } = this;
    if (location.hash.startsWith("#map")) remember("map", { layout: layout === "pca" ? "" : layout, colour: mode === this.firstMode ? "" : mode });
  }

  #zoomButtons() {
    const button = (text, label, onclick) => h("button", { type: "button", "aria-label": label, title: label, onclick }, text);
    return h(
      "div",
      { class: "map-zoom" },
      button("+", "Zoom in", () => this.zoom(1.6)),
      button("−", "Zoom out", () => this.zoom(1 / 1.6)),
      button("⤢", "Show all", () => this.reset(true)),
    );
  }

  #toolbar() {
    const modes = [workspace.kind ? ["split", "part"] : ["none", "nothing"]];
    if (workspace.bases.length) modes.push(["score", "outlier score"]);
    if (this.about.labels.length) modes.unshift(["label", "label"]);
    this.firstMode = this.mode;
    const button = (text, onclick, more = {}) => h("button", { type: "button", class: "small", onclick, ...more }, text);
    this.lassoButton = button("Draw around some", () => this.setLasso(!this.isLasso), { "aria-pressed": "false" });
    this.colouring = select(modes, this.mode, (mode) => this.setMode(mode));
    this.layouts = select([["pca", "distance (PCA)"], ["umap", "neighbours (UMAP)"]], this.layout, (layout) => this.setLayout(layout));
    this.hint = h("p", { class: "hint" }, said(this.about));
    const pictures = button("Pictures", () => {
      this.hasPictures = !this.hasPictures;
      pictures.setAttribute("aria-pressed", String(this.hasPictures));
      this.draw();
    }, { "aria-pressed": "true" });
    return h(
      "div",
      { class: "map-tools" },
      field("Lay out by", this.layouts),
      field("Colour by", this.colouring),
      h("div", { class: "actions" }, pictures, this.lassoButton, button("Select what is visible", () => this.chooseSeen())),
      this.hint,
    );
  }

  setLayout = restarting(async (signal, layout) => {
    const lacking = layout === "umap" && lacks("umap");
    if (lacking) {
      this.layouts.value = this.layout;
      this.laying.replaceChildren(notice(lacking));
      return;
    }
    this.laying.replaceChildren();
    if (layout === this.layout) return;
    const bar = progressBar("laying out images", () => this.#keepLayout(layout));
    this.laying.replaceChildren(bar);
    try {
      const { about, points } = await this.load(bar, layout, signal);
      if (signal.aborted) return;
      points.choose(selection.positions());
      const before = this.points;
      // Scores that were asked for meanwhile came with the one or the other.
      if (this.about.scored) points.score.set(before.score);
      about.scored ||= this.about.scored;
      this.layout = layout;
      this.about = about;
      this.points = points;
      this.names = this.picks = null;
      this.layouts.value = layout;
      this.#glide(before);
    } catch (err) {
      if (signal.aborted) return;
      this.layouts.value = this.layout;
      showFailure(err, this.laying);
      return;
    }
    this.laying.replaceChildren();
    this.hint.textContent = said(this.about);
    this.recolour();
    this.#remember();
  });

  /** Let the points move from their places in the layout before to those of the new one. */
  #glide(before) {
    const { points } = this;
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isStill || !this.scale) return this.reset();
    // In units of the screen: the layouts have scales of their own.
    const from = { x: this.x, y: this.y, scale: this.scale };
    const [x, y] = [points.x.slice(), points.y.slice()];
    this.reset();
    const began = performance.now();
    const step = (now) => {
      const share = Math.min(1, (now - began) / MOVE_MS);
      const eased = share * share * (3 - 2 * share);
      for (let i = 0; i < points.count; i++) {
        points.x[i] = x[i] * eased + (1 - eased) * (((before.x[i] - from.x) * from.scale) / this.scale + this.x);
        points.y[i] = y[i] * eased + (1 - eased) * (((before.y[i] - from.y) * from.scale) / this.scale + this.y);
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
    return requestAnimationFrame(step);
  }

  /** Cancel the layout that is being computed. */
  async #keepLayout(layout) {
    this.layouts.value = this.layout;
    this.layouts.focus();
    await this.setLayout(this.layout);
    await post(`/api/map/cancel?layout=${layout}`).catch((err) => showFailure(err));
  }

  setMode = restarting(async (signal, mode) => {
    this.scoring.replaceChildren();
    if (mode === "score" && !this.about.scored) {
      const bar = progressBar("scoring images");
      this.scoring.replaceChildren(bar);
      try {
        await waitFor(`/api/outliers?${query({ by: workspace.bases[0][0], limit: 1 })}`, bar.update, signal);
        const points = new Points(await getBuffer(`/api/map/points?layout=${this.layout}`, signal), this.about.images);
        if (signal.aborted) return;
        this.points.score.set(points.score);
        this.about.scored = true;
      } catch (err) {
        if (signal.aborted) return;
        showFailure(err, this.scoring);
        this.colouring.value = this.mode;
        return;
      }
    }
    this.scoring.replaceChildren();
    this.mode = mode;
    this.recolour();
    this.#remember();
  });

  recolour() {
    paint(this.points, this.mode);
    this.key_.replaceChildren(legend(this.points, this.mode, this.about, (group) => this.chooseGroup(group)));
    this.draw();
  }

  resize() {
    const box = this.stage.getBoundingClientRect();
    if (!box.width) return;
    this.ratio = Math.min(2, devicePixelRatio || 1);
    const [width, height] = [Math.round(box.width * this.ratio), Math.round(box.height * this.ratio)];
    if (this.image && width === this.canvas.width && height === this.canvas.height) return;
    Object.assign(this.canvas, { width, height });
    this.image = this.context.createImageData(width, height);
    if (this.scale) this.draw();
    else this.reset();
  }

  /** Show 99 % of the points or, with `every`, all of them. */
  reset(every = false) {
    const { x, y, width, height } = every ? this.points.whole : this.points.view;
    this.fit = 0.86 * Math.min(this.canvas.width / width, this.canvas.height / height);
    Object.assign(this, { x, y, scale: this.fit });
    this.draw();
  }

  /** Draw in the next frame; calls made before it are one drawing. */
  draw() {
    if (!this.scale || this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this.#drawNow();
    });
  }

  #drawNow() {
    const zoom = this.scale / this.fit;
    this.canvas.style.touchAction = zoom > 1.01 ? "none" : "pan-y"; // a finger scrolls the page until one has zoomed in
    const base = this.points.count > 20000 ? 2 : this.points.count > 3000 ? 4 : 6;
    const side = Math.max(2, Math.round(base * this.ratio * Math.min(2.5, Math.sqrt(zoom))));
    drawPoints(this.points, this.image, this.scale, this.x, this.y, side);
    this.context.putImageData(this.image, 0, 0);
    if (this.points.count >= DENSE) this.#drawDensity();
    if (this.hasPictures && !this.isGliding) this.#drawTiles(zoom);
    if (this.mode === "label") this.#drawNames(zoom);
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
    drawDensity(this.points, this.denseImage, this.scale / cell, this.x, this.y, 0x00998877);
    this.denseContext.putImageData(this.denseImage, 0, 0);
    this.context.globalCompositeOperation = "destination-over";
    this.context.drawImage(this.dense, 0, 0, columns * cell, rows * cell);
    this.context.globalCompositeOperation = "source-over";
  }

  #drawTiles(zoom) {
    const level = levelOf(zoom);
    const side = sideAt(2 ** (level / 2)) * this.ratio;
    // Once a level: it goes through all points.
    if (this.picks?.level !== level || this.picks.of !== this.points) {
      const cell = (1.25 * side) / (this.fit * 2 ** (level / 2));
      this.picks = { level, of: this.points, points: picked(this.points, cell, this.priority) };
    }
    const missing = [];
    for (const i of this.picks.points) {
      const [left, top] = this.#toScreen(this.points.x[i], this.points.y[i]);
      if (left < -side || top < -side || left > this.canvas.width + side || top > this.canvas.height + side) continue;
      const found = this.tiles.get(i, side);
      if (found) this.#drawTile(found.tile, i, left, top, side);
      if (!found?.isEnough) missing.push(i);
    }
    if (missing.length) this.tiles.want(missing, side);
  }

  #drawTile([sheet, sx, sy, size], i, left, top, side) {
    const { context } = this;
    const edge = Math.max(2, 1.5 * this.ratio);
    context.fillStyle = cssColour(this.points.colour[i]);
    context.beginPath();
    context.roundRect(left - side / 2 - edge, top - side / 2 - edge, side + 2 * edge, side + 2 * edge, 4 * this.ratio);
    context.fill();
    context.drawImage(sheet, sx, sy, size, size, left - side / 2, top - side / 2, side, side);
  }

  /** Write the labels where most of their images are. */
  #drawNames(zoom) {
    const { labels } = this.about;
    if (labels.length < 2 || labels.length > NAMED || zoom > 4) return;
    this.names ??= this.points.middles(labels);
    const { context } = this;
    context.font = `600 ${15 * this.ratio}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.lineWidth = 4 * this.ratio;
    context.lineJoin = "round";
    const style = getComputedStyle(this.stage);
    context.strokeStyle = style.backgroundColor;
    context.fillStyle = style.color;
    for (const [group, { x, y }] of this.names.entries()) {
      const [left, top] = this.#toScreen(x, y);
      context.strokeText(labels[group], left, top);
      context.fillText(labels[group], left, top);
    }
  }

  #drawLasso() {
    if (!this.path) return;
    this.context.beginPath();
    for (const [x, y] of this.path) this.context.lineTo(...this.#toScreen(x, y));
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

  /** @param {number} x @param {number} y @returns {[number, number]} in pixels of the canvas */
  #toScreen(x, y) {
    return [(x - this.x) * this.scale + this.canvas.width / 2, (y - this.y) * this.scale + this.canvas.height / 2];
  }

  /** @param {{clientX: number, clientY: number}} event @returns {[number, number]} in units of the map */
  #toMap(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * this.ratio - this.canvas.width / 2) / this.scale + this.x,
      ((event.clientY - box.top) * this.ratio - this.canvas.height / 2) / this.scale + this.y,
    ];
  }

  #seen() {
    const [width, height] = [this.canvas.width / this.scale / 2, this.canvas.height / this.scale / 2];
    return [...this.points.within(this.x - width, this.y - height, this.x + width, this.y + height)];
  }

  zoom(factor, [x, y] = [this.x, this.y]) {
    this.#hideTip();
    const scale = Math.min(400 * this.fit, Math.max(0.5 * this.fit, this.scale * factor));
    const kept = this.scale / scale;
    this.x = x + (this.x - x) * kept;
    this.y = y + (this.y - y) * kept;
    this.scale = scale;
    this.draw();
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), this.#toMap(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => this.#hideTip());
    canvas.addEventListener("dblclick", (event) => this.zoom(2, this.#toMap(event)));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.draw());
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.moved = 0;
    this.#hideTip();
    if (this.isLasso || event.shiftKey) this.path = [this.#toMap(event)];
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.#hover(event);
    const [dx, dy] = [event.clientX - before[0], event.clientY - before[1]];
    this.moved += Math.abs(dx) + Math.abs(dy);
    if (this.pointers.size === 2) this.#pinch(event, before);
    else if (this.path) this.path.push(this.#toMap(event));
    else {
      this.x -= (dx * this.ratio) / this.scale;
      this.y -= (dy * this.ratio) / this.scale;
    }
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    return this.draw();
  }

  #pinch(event, before) {
    this.path = null;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
    const middle = { clientX: (event.clientX + other[0]) / 2, clientY: (event.clientY + other[1]) / 2 };
    this.zoom(apart([event.clientX, event.clientY]) / apart(before), this.#toMap(middle));
  }

  #up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.path) {
      const around = this.path.length > 2 ? this.points.inside(this.path) : [];
      this.path = null;
      this.setLasso(false);
      this.#choose(around);
    } else if (this.moved < 5 && event.type === "pointerup") this.#open(...this.#toMap(event));
  }

  #open(x, y) {
    const near = this.points.nearest(x, y, (24 * this.ratio) / this.scale);
    if (near >= 0) describe(`${this.about.letter}${near}`).then(openPicture).catch((err) => showFailure(err));
  }

  /** Show the image under the pointer, once the pointer rests. */
  #hover(event) {
    const [x, y] = this.#toMap(event);
    const near = this.points.nearest(x, y, (14 * this.ratio) / this.scale);
    this.canvas.classList.toggle("over", near >= 0);
    if (near < 0) {
      this.#hideTip();
      return;
    }
    clearTimeout(this.hovering);
    const mine = (this.hovering = setTimeout(async () => {
      const picture = await get(`/api/pictures/${this.about.letter}${near}`);
      if (this.hovering !== mine) return;
      this.tip.replaceChildren(original(picture, 160), h("span", {}, shortName(picture)));
      const [left, top] = this.#toScreen(this.points.x[near], this.points.y[near]).map((at) => at / this.ratio);
      this.tip.style.left = `${Math.min(left + 12, this.stage.clientWidth - 190)}px`;
      this.tip.style.top = `${Math.min(top + 12, this.stage.clientHeight - 210)}px`;
      this.tip.hidden = false;
    }, 60));
  }

  #hideTip() {
    clearTimeout(this.hovering);
    this.hovering = null;
    this.tip.hidden = true;
  }

  key(event) {
    if (isTyping(event) || document.activeElement !== this.canvas) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [across, down] = moves[event.key];
      if (event.shiftKey) this.#stretch(STEP * across, STEP * down);
      else {
        this.x += (60 / this.scale) * across;
        this.y += (60 / this.scale) * down;
        this.draw();
      }
    } else if (event.key === "+" || event.key === "=") this.zoom(1.3);
    else if (event.key === "-") this.zoom(1 / 1.3);
    else if (event.key === "0") this.reset(true);
    else if (event.key === "Enter" && this.rectangle) this.#choose(this.#inRectangle());
    else if (event.key === "Enter") this.#open(this.x, this.y);
    else if (event.key === "Escape" && this.rectangle) this.rectangle = null;
    else if (event.key === "Escape") this.clear();
    else return;
    event.preventDefault();
    this.draw();
    if (this.rectangle) this.#announceRectangle();
  }

  /** Open a rectangle in the middle of the map, or resize it. */
  #stretch(across, down) {
    const most = [this.canvas.width / this.ratio, this.canvas.height / this.ratio];
    const [width, height] = this.rectangle ?? most.map((side) => Math.round(side / 4));
    const within = (side, limit) => Math.min(limit, Math.max(STEP, side));
    this.rectangle = [within(width + across, most[0]), within(height + down, most[1])];
  }

  #inRectangle() {
    const [width, height] = this.rectangle.map((side) => (side * this.ratio) / this.scale / 2);
    return [...this.points.within(this.x - width, this.y - height, this.x + width, this.y + height)];
  }

  /** Announce how many images are in the rectangle, once no key has been pressed for 0.2 s. */
  #announceRectangle() {
    clearTimeout(this.announcing);
    this.announcing = setTimeout(() => this.rectangle && announce(`${number(this.#inRectangle().length)} images in the rectangle.`), 200);
  }

  setLasso(isLasso) {
    this.isLasso = isLasso;
    this.lassoButton.setAttribute("aria-pressed", String(isLasso));
    this.canvas.classList.toggle("lasso", isLasso);
  }

  chooseSeen() {
    this.#choose(this.#seen());
  }

  /** Select all images of a label or a split, by its number. */
  chooseGroup(group) {
    this.#choose(this.points.ofGroup(this.mode, group));
  }

  #choose(places) {
    this.rectangle = null;
    selection.replace(places);
  }

  clear() {
    // The pressed button is about to be removed.
    if (this.list.contains(document.activeElement)) this.canvas.focus();
    this.#choose([]);
  }

  #takeSelection() {
    this.points.choose(selection.positions());
    this.picks = null;
    this.draw();
    this.showChosen().catch((err) => showFailure(err, this.list));
  }

  showChosen = restarting(async (signal) => {
    const places = this.points.places();
    if (!places.length) {
      this.list.replaceChildren();
      return;
    }
    const pictures = await post("/api/map/chosen", { positions: places.slice(0, LISTED) }, signal);
    this.list.replaceChildren(
      h(
        "div",
        { class: "row between" },
        h("h2", {}, `${number(places.length)} images selected`),
        h("button", { type: "button", class: "small", onclick: () => this.clear() }, "Clear"),
      ),
      h("div", { class: "grid tiny" }, pictures.map((picture) => pictureButton(picture, { list: pictures, size: 80 }))),
      places.length > pictures.length ? h("p", { class: "hint" }, `The first ${pictures.length} are shown; “Show” below has all.`) : "",
    );
  });
}

function said({ explained, by }) {
  if (explained === null) return `Compared by ${by}. Similar pictures lie together; distances between groups mean little.`;
  return `Compared by ${by}, along the two directions in which the pictures differ most: ${Math.round(100 * explained)} % of all differences.`;
}

function keysHelp() {
  return h(
    "p",
    { class: "hint", id: "map-keys" },
    "Shift and drag draws around some; a press on a group of the legend selects it. Keys: arrows move the map, + and − " +
      "zoom, 0 shows all, Enter opens the image in the middle. Shift and arrows open and resize a rectangle, Enter selects " +
      "the images in it, Escape closes it or deselects all.",
  );
}

function cssColour(value) {
  return `rgb(${value & 255} ${(value >> 8) & 255} ${(value >> 16) & 255})`;
}
