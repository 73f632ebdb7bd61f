// The points of the map: positions, nearest point, visible points. Typed arrays, as there are 100,000 and more.

const CELLS = 160; // along a side of the grid that finds the nearest point

export class Points {
  /** Read what /api/map/points gives: x, y, score float32, label int16, split int8. */
  constructor(buffer, count) {
    const floats = (part) => new Float32Array(buffer, 4 * count * part, count);
    this.count = count;
    this.x = floats(0);
    this.y = floats(1);
    this.score = floats(2);
    this.label = new Int16Array(buffer, 12 * count, count);
    this.split = new Int8Array(buffer, 14 * count, count);
    this.colour = new Uint32Array(count);
    this.chosen = new Uint8Array(count);
    this.chosenCount = 0;
    this.#fit();
    this.#sort();
  }

  /** Centre and extent of 99 % of the points, so that one far point does not squeeze the others into a corner. */
  #fit() {
    const range = (values) => {
      const sorted = Float32Array.from(values).sort();
      const at = (share) => sorted[Math.round(share * (this.count - 1))];
      return [at(0.005), at(0.995), sorted[0], sorted[this.count - 1]];
    };
    const [x0, x1, left, right] = range(this.x);
    const [y0, y1, top, bottom] = range(this.y);
    this.view = { x: (x0 + x1) / 2, y: (y0 + y1) / 2, width: x1 - x0 || 1, height: y1 - y0 || 1 };
    this.whole = { x: (left + right) / 2, y: (top + bottom) / 2, width: right - left || 1, height: bottom - top || 1 };
    this.box = { left, top, width: right - left || 1, height: bottom - top || 1 };
  }

  /** Counting sort into the cells of the grid. */
  #sort() {
    const cell = new Int32Array(this.count);
    this.starts = new Int32Array(CELLS * CELLS + 1);
    for (let i = 0; i < this.count; i++) {
      cell[i] = this.#column(this.x[i]) + CELLS * this.#row(this.y[i]);
      this.starts[cell[i] + 1]++;
    }
    for (let i = 0; i < CELLS * CELLS; i++) this.starts[i + 1] += this.starts[i];
    const next = this.starts.slice();
    this.sorted = new Int32Array(this.count);
    for (let i = 0; i < this.count; i++) this.sorted[next[cell[i]]++] = i;
  }

  #column(x) {
    return Math.min(CELLS - 1, Math.max(0, Math.floor(((x - this.box.left) / this.box.width) * CELLS)));
  }

  #row(y) {
    return Math.min(CELLS - 1, Math.max(0, Math.floor(((y - this.box.top) / this.box.height) * CELLS)));
  }

  /** The points in a rectangle. */
  *within(left, top, right, bottom) {
    for (let row = this.#row(top); row <= this.#row(bottom); row++) {
      for (let column = this.#column(left); column <= this.#column(right); column++) {
        const cell = column + CELLS * row;
        for (let k = this.starts[cell]; k < this.starts[cell + 1]; k++) {
          const i = this.sorted[k];
          if (this.x[i] >= left && this.x[i] <= right && this.y[i] >= top && this.y[i] <= bottom) yield i;
        }
      }
    }
  }

  /** The point nearest to (x, y), at most `reach` away; -1 if there is none. */
  nearest(x, y, reach) {
    let best = -1;
    let least = reach * reach;
    for (const i of this.within(x - reach, y - reach, x + reach, y + reach)) {
      const distance = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
      if (distance <= least) [least, best] = [distance, i];
    }
    return best;
  }

  /** Select the points inside a polygon of [x, y]. */
  lasso(polygon) {
    const xs = polygon.map(([x]) => x);
    const ys = polygon.map(([, y]) => y);
    this.choose(
      [...this.within(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys))].filter((i) =>
        isInside(polygon, this.x[i], this.y[i]),
      ),
    );
  }

  choose(places) {
    this.chosen.fill(0);
    for (const i of places) this.chosen[i] = 1;
    this.chosenCount = places.length;
  }

  /** The points of a label, or of a split. */
  ofGroup(mode, group) {
    const values = mode === "label" ? this.label : this.split;
    const found = [];
    for (let i = 0; i < this.count; i++) if (values[i] === group) found.push(i);
    return found;
  }

  /** A bit for each point, set if it is selected; the first point is the lowest bit of the first byte. */
  bits() {
    const bits = new Uint8Array(Math.ceil(this.count / 8));
    for (let i = 0; i < this.count; i++) if (this.chosen[i]) bits[i >> 3] |= 1 << (i & 7);
    return bits;
  }

  /** The selected points, in their order. */
  places() {
    const found = [];
    for (let i = 0; i < this.count; i++) if (this.chosen[i]) found.push(i);
    return found;
  }
}

/** Ray casting: a ray from the point crosses the border an odd number of times. */
function isInside(polygon, x, y) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i];
    const [xj, yj] = polygon[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

/** Draw points into the pixels of an image as squares of `side`; while some are selected, the others are dim. */
export function drawPoints(points, image, scale, centreX, centreY, side) {
  const pixels = new Uint32Array(image.data.buffer);
  pixels.fill(0);
  const { width, height } = image;
  const { x, y, colour, chosen, count } = points;
  const anyChosen = points.chosenCount > 0;
  const [across, down] = [width / 2 - centreX * scale - side / 2, height / 2 - centreY * scale - side / 2];
  const [lastLeft, lastTop] = [width - side, height - side];
  for (let pass = 0; pass < (anyChosen ? 2 : 1); pass++) {
    for (let i = 0; i < count; i++) {
      if (anyChosen && chosen[i] !== pass) continue;
      const left = (x[i] * scale + across) | 0;
      const top = (y[i] * scale + down) | 0;
      if (left < 0 || top < 0 || left > lastLeft || top > lastTop) continue;
      const value = anyChosen && !pass ? (colour[i] & 0x00ffffff) | 0x30000000 : colour[i];
      for (let row = top; row < top + side; row++) {
        const start = row * width + left;
        for (let at = start; at < start + side; at++) pixels[at] = value;
      }
    }
  }
}
