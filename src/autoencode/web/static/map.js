// Map: every image as a point. Drag to move, wheel or pinch to zoom, draw around some to list them.

import { get, getBuffer, post, postBytesForBlob, restarting, sheetUrl, waitFor } from "./api.js";
import { field, h, isTyping, notice, number, progressBar, save, select, showFailure, announce } from "./dom.js";
import { describe, openPicture, pictureButton } from "./pictures.js";
import { Points, drawPoints } from "./points.js";
import { legend, paint } from "./colours.js";
import { lacks } from "./shared.js";

const TILE = 48; // pixels of a thumbnail
const SHEET = 128; // thumbnails asked for at once
const KEPT_TILES = 6000;
const NEAR_ZOOM = 2.2; // thumbnails are drawn from this zoom on
const FEW = 400; // or while so few points are visible
const LISTED = 60;
const STEP = 20; // pixels by which a key resizes the rectangle

export function mount(root) {
  root.append(h("p", { class: "lead" }, "Every image is a point; images that the model finds similar lie close together."));
  const lacking = lacks("map");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  let view = null;
  const start = async () => {
    const bar = progressBar("encoding images");
    const place = h("div", {}, bar);
    root.append(place);
    try {
      const { about, points } = await load(bar);
      view = new MapView(root, about, points);
      place.remove();
    } catch (err) {
      showFailure(err, place, () => {
        place.remove();
        start();
      });
    }
  };
  start();
  return {
    show: () => view?.resize(),
    key: (event) => view?.key(event),
  };
}

async function load(bar, layout = "pca", signal = undefined) {
  const about = await waitFor(`/api/map?layout=${layout}`, bar.update, signal);
  return { about, points: new Points(await getBuffer(`/api/map/points?layout=${layout}`, signal), about.images) };
}

function said(about) {
  if (about.explained === null) return "Similar images lie together; distances between groups mean little.";
  return `The map shows ${Math.round(100 * about.explained)} % of the variance of the codes.`;
}

class MapView {
  constructor(root, about, points) {
    Object.assign(this, { about, points, mode: about.labels.length ? "label" : about.scored ? "score" : "split", isLasso: false, path: null });
    this.tiles = new Map();
    this.pointers = new Map();
    this.canvas = h("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label": `Map of ${number(about.images)} images`,
      "aria-describedby": "map-keys",
    });
    this.tip = h("div", { class: "tip", hidden: true });
    this.stage = h("div", { class: "map-stage" }, this.canvas, this.tip);
    this.key_ = h("div", { class: "legend" });
    this.list = h("div", { class: "chosen" });
    // Progress appears beside its control: below the map it would be out of sight.
    this.laying = h("div", { class: "waits" });
    this.scoring = h("div", { class: "waits" });
    this.rectangle = null; // [width, height] in pixels of the screen, about the middle
    root.append(this.#toolbar(), this.laying, this.scoring, this.stage, this.key_, keysHelp(), this.list);
    this.context = this.canvas.getContext("2d");
    this.#listen();
    this.recolour();
    new ResizeObserver(() => this.resize()).observe(this.stage);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
  }

  #toolbar() {
    const modes = [["split", "split"]];
    if (!lacks("outliers")) modes.push(["score", "outlier score"]);
    if (this.about.labels.length) modes.unshift(["label", "label"]);
    const button = (text, onclick, more = {}) => h("button", { type: "button", onclick, ...more }, text);
    this.lassoButton = button("Draw around some", () => this.setLasso(!this.isLasso), { "aria-pressed": "false" });
    this.colouring = select(modes, this.mode, (mode) => this.setMode(mode));
    this.layout = "pca";
    this.layouts = select([["pca", "distance (PCA)"], ["umap", "neighbours (UMAP)"]], this.layout, (layout) => this.setLayout(layout));
    this.hint = h("span", { class: "hint" }, said(this.about));
    return h(
      "div",
      { class: "toolbar" },
      field("Lay out by", this.layouts),
      field("Colour by", this.colouring),
      this.lassoButton,
      button("Select what is visible", () => this.chooseSeen()),
      button("+", () => this.zoom(1.6), { "aria-label": "Zoom in" }),
      button("−", () => this.zoom(1 / 1.6), { "aria-label": "Zoom out" }),
      button("Show all", () => this.reset(true)),
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
      const { about, points } = await load(bar, layout, signal);
      if (signal.aborted) return;
      points.choose(this.points.places());
      Object.assign(this, { layout, about, points });
    } catch (err) {
      if (signal.aborted) return;
      this.layouts.value = this.layout;
      showFailure(err, this.laying);
      return;
    }
    this.laying.replaceChildren();
    this.hint.textContent = said(this.about);
    this.showChosen();
    this.recolour();
    this.reset();
  });

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
        await waitFor("/api/outliers?limit=1", bar.update, signal);
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
    this.fit = 0.92 * Math.min(this.canvas.width / width, this.canvas.height / height);
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
    const base = this.points.count > 20000 ? 1.5 : this.points.count > 3000 ? 2.5 : 4;
    const side = Math.max(1, Math.round(base * this.ratio * Math.min(3, Math.sqrt(zoom))));
    drawPoints(this.points, this.image, this.scale, this.x, this.y, side);
    this.context.putImageData(this.image, 0, 0);
    this.#drawTiles(zoom);
    this.#drawLasso();
    if (this.rectangle) this.#drawRectangle();
    else if (this.canvas.matches(":focus-visible")) this.#drawMiddle();
  }

  #drawTiles(zoom) {
    const seen = this.#seen();
    if (zoom < NEAR_ZOOM && seen.length > FEW) return;
    const size = TILE * this.ratio;
    const columns = Math.ceil(this.canvas.width / size) + 1;
    const taken = new Set();
    const missing = [];
    for (const i of seen) {
      if (this.points.chosenCount && !this.points.chosen[i]) continue;
      const [left, top] = this.#toScreen(this.points.x[i], this.points.y[i]);
      // One thumbnail per cell: where they overlap, only one would be visible.
      const cell = Math.floor(left / size) + columns * Math.floor(top / size);
      if (taken.has(cell)) continue;
      taken.add(cell);
      const tile = this.tiles.get(i);
      if (tile) this.#drawTile(tile, i, left, top, size);
      else missing.push(i);
    }
    if (missing.length) this.#wantTiles(missing);
  }

  #drawTile([sheet, sx, sy], i, left, top, size) {
    const side = size - 6 * this.ratio;
    this.context.fillStyle = cssColour(this.points.colour[i]);
    this.context.fillRect(left - side / 2 - 2, top - side / 2 - 2, side + 4, side + 4);
    this.context.drawImage(sheet, sx, sy, TILE, TILE, left - side / 2, top - side / 2, side, side);
  }

  /** Request thumbnails once the map has stopped moving; they are cached. */
  #wantTiles(missing) {
    clearTimeout(this.wanting);
    this.wanting = setTimeout(async () => {
      const wanted = missing.slice(0, SHEET).sort((a, b) => a - b);
      const sheet = new Image();
      sheet.src = sheetUrl(this.about.letter, wanted, TILE);
      try {
        await sheet.decode();
      } catch {
        return; // requested again when the map moves
      }
      if (this.tiles.size > KEPT_TILES) this.tiles.clear();
      wanted.forEach((i, place) => this.tiles.set(i, [sheet, (place % 16) * TILE, Math.floor(place / 16) * TILE]));
      this.draw();
    }, 80);
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

  #toScreen(x, y) {
    return [(x - this.x) * this.scale + this.canvas.width / 2, (y - this.y) * this.scale + this.canvas.height / 2];
  }

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
      if (this.path.length > 2) this.points.lasso(this.path);
      this.path = null;
      this.setLasso(false);
      this.showChosen();
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
      this.tip.replaceChildren(pictureButton(picture, { size: 160 }), h("span", {}, picture.label ?? picture.split));
      const [left, top] = this.#toScreen(this.points.x[near], this.points.y[near]).map((at) => at / this.ratio);
      this.tip.style.left = `${Math.min(left + 12, this.stage.clientWidth - 120)}px`;
      this.tip.style.top = `${Math.min(top + 12, this.stage.clientHeight - 140)}px`;
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
    this.points.choose(places);
    this.showChosen();
    announce(`${number(places.length)} images selected.`);
  }

  clear() {
    // The pressed button is about to be removed.
    if (this.list.contains(document.activeElement)) this.canvas.focus();
    this.#choose([]);
  }

  async showChosen() {
    this.draw();
    const places = this.points.places();
    if (!places.length) {
      this.list.replaceChildren();
      return;
    }
    const pictures = await post("/api/map/chosen", { positions: places.slice(0, LISTED) });
    const bits = this.points.bits();
    const files = async () => save(await postBytesForBlob("/api/map/chosen.txt", bits), "chosen.txt");
    const more = places.length > pictures.length ? `; the first ${pictures.length} are shown here` : "";
    this.list.replaceChildren(
      h("div", { class: "row between" }, h("h2", {}, `${number(places.length)} images selected`), h(
        "div",
        { class: "actions" },
        h("button", { type: "button", onclick: () => files().catch((err) => showFailure(err)) }, "Save the list of files"),
        h("button", { type: "button", onclick: () => this.clear() }, "Clear"),
      )),
      more ? h("p", { class: "hint" }, `The list of files has all of them${more}.`) : "",
      h("div", { class: "grid small" }, pictures.map((picture) => pictureButton(picture, { list: pictures, size: 80 }))),
    );
  }
}

function keysHelp() {
  return h(
    "p",
    { class: "hint", id: "map-keys" },
    "Keys on the map: arrows move it, + and − zoom, 0 shows all, Enter opens the image in the middle. Shift and arrows " +
      "open and resize a rectangle, Enter selects the images in it, Escape closes it or deselects all. Pressing a " +
      "group of the legend selects it.",
  );
}

function cssColour(value) {
  return `rgb(${value & 255} ${(value >> 8) & 255} ${(value >> 16) & 255})`;
}
