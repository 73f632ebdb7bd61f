// The map by hand: dragged, zoomed, drawn around and walked through, with mouse, fingers and keys.

import { get } from "./api.js";
import { announce, h, isTyping, number } from "./dom.js";
import { original, shortName } from "./pictures.js";

const STEP = 20; // pixels by which a key resizes the rectangle

export class MapGestures {
  isLasso = false; // whether the next drag draws an outline
  tip = h("div", { class: "tip", hidden: true }); // the picture under the pointer
  pointers = new Map();

  /**
   * @param {import("./mapcanvas.js").MapCanvas} map
   * @param {{letter: string, choose: (places: number[]) => void, clear: () => void, open: (place: number) => void, lassoed: (isLasso: boolean) => void}} page
   *   the letter of the pictures, and what is done with those that are pressed or drawn around
   */
  constructor(map, { letter, choose, clear, open, lassoed }) {
    this.map = map;
    this.letter = letter;
    this.choose = choose;
    this.clear = clear;
    this.open = open;
    this.lassoed = lassoed;
    map.canvas.parentElement.append(this.tip);
    this.#listen();
  }

  zoom(factor, point = undefined) {
    this.#hideTip();
    this.map.camera.zoomBy(factor, point);
    this.map.draw();
  }

  #open(x, y) {
    const near = this.map.nearest(x, y, 24);
    if (near >= 0) this.open(near);
  }

  #chooseRectangle() {
    const places = this.map.inRectangle();
    this.map.rectangle = null;
    this.choose(places);
  }

  #listen() {
    const { canvas } = this.map;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), this.map.placeOf(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.#up(event));
    canvas.addEventListener("pointerleave", () => this.#hideTip());
    canvas.addEventListener("dblclick", (event) => this.zoom(2, this.map.placeOf(event)));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.map.draw());
  }

  #down(event) {
    this.map.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    this.moved = 0;
    this.#hideTip();
    if (this.isLasso || event.shiftKey) this.map.path = [this.map.placeOf(event)];
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return this.#hover(event);
    const [dx, dy] = [event.clientX - before[0], event.clientY - before[1]];
    this.moved += Math.abs(dx) + Math.abs(dy);
    if (this.pointers.size === 2) this.#pinch(event, before);
    else if (this.map.path) this.map.path.push(this.map.placeOf(event));
    else {
      this.map.camera.pan(-dx * this.map.ratio, -dy * this.map.ratio);
    }
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    return this.map.draw();
  }

  #pinch(event, before) {
    this.map.path = null;
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
    const middle = { clientX: (event.clientX + other[0]) / 2, clientY: (event.clientY + other[1]) / 2 };
    this.zoom(apart([event.clientX, event.clientY]) / apart(before), this.map.placeOf(middle));
  }

  #up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    const { path } = this.map;
    if (path) {
      this.map.path = null;
      this.setLasso(false);
      this.choose(path.length > 2 ? this.map.points.inside(path) : []);
    } else if (this.moved < 5 && event.type === "pointerup") this.#open(...this.map.placeOf(event));
  }

  /** Show the image under the pointer, once the pointer rests. */
  #hover(event) {
    const [x, y] = this.map.placeOf(event);
    const near = this.map.nearest(x, y, 14);
    this.map.canvas.classList.toggle("over", near >= 0);
    if (near < 0) {
      this.#hideTip();
      return;
    }
    clearTimeout(this.hovering);
    const mine = (this.hovering = setTimeout(async () => {
      const picture = await get(`/api/pictures/${this.letter}${near}`);
      if (this.hovering !== mine) return;
      this.tip.replaceChildren(original(picture, 160), h("span", {}, shortName(picture)));
      const { points, camera, ratio } = this.map;
      const [left, top] = camera.toWindow(points.x[near], points.y[near]).map((at) => at / ratio);
      const stage = this.map.canvas.parentElement;
      this.tip.style.left = `${Math.min(left + 12, stage.clientWidth - 190)}px`;
      this.tip.style.top = `${Math.min(top + 12, stage.clientHeight - 210)}px`;
      this.tip.hidden = false;
    }, 60));
  }

  #hideTip() {
    clearTimeout(this.hovering);
    this.hovering = null;
    this.tip.hidden = true;
  }

  key(event) {
    if (isTyping(event) || document.activeElement !== this.map.canvas) return;
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [across, down] = moves[event.key];
      if (event.shiftKey) this.#stretch(STEP * across, STEP * down);
      else {
        this.map.camera.pan(60 * across, 60 * down);
      }
    } else if (event.key === "+" || event.key === "=") this.zoom(1.3);
    else if (event.key === "-") this.zoom(1 / 1.3);
    else if (event.key === "0") this.map.reset(true);
    else if (event.key === "Enter" && this.map.rectangle) this.#chooseRectangle();
    else if (event.key === "Enter") this.#open(this.map.camera.x, this.map.camera.y);
    else if (event.key === "Escape" && this.map.rectangle) this.map.rectangle = null;
    else if (event.key === "Escape") this.clear();
    else return;
    event.preventDefault();
    this.map.draw();
    if (this.map.rectangle) this.#announceRectangle();
  }

  /** Open a rectangle in the middle of the map, or resize it. */
  #stretch(across, down) {
    const { canvas, ratio } = this.map;
    const most = [canvas.width / ratio, canvas.height / ratio];
    const [width, height] = this.map.rectangle ?? most.map((side) => Math.round(side / 4));
    const within = (side, limit) => Math.min(limit, Math.max(STEP, side));
    this.map.rectangle = [within(width + across, most[0]), within(height + down, most[1])];
  }

  /** Announce how many images are in the rectangle, once no key has been pressed for 0.2 s. */
  #announceRectangle() {
    clearTimeout(this.announcing);
    this.announcing = setTimeout(() => this.map.rectangle && announce(`${number(this.map.inRectangle().length)} images in the rectangle.`), 200);
  }

  setLasso(isLasso) {
    this.isLasso = isLasso;
    this.lassoed(isLasso);
    this.map.canvas.classList.toggle("lasso", isLasso);
  }
}
