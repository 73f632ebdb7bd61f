// The points of the map: positions, nearest point, visible points. Typed arrays, as there are 100,000 and more.

const CELLS = 160; // along a side of the grid that finds the nearest point

export class Points {
  /** Read what /api/map/points gives: x, y, score float32, label int16, split, copies and group int8. */
  constructor(buffer, count) {
    const floats = (part) => new Float32Array(buffer, 4 * count * part, count);
    this.count = count;
    this.x = floats(0);
    this.y = floats(1);
    this.score = floats(2);
    this.label = new Int16Array(buffer, 12 * count, count);
    this.split = new Int8Array(buffer, 14 * count, count);
    this.copies = new Int8Array(buffer, 15 * count, count); // 1 for those that have copies, -1 if nobody looked
    this.group = new Int8Array(buffer, 16 * count, count); // of similar images
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

  /** The points inside a polygon of [x, y]. */
  inside(polygon) {
    const xs = polygon.map(([x]) => x);
    const ys = polygon.map(([, y]) => y);
    return [...this.within(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys))].filter((i) =>
      isInside(polygon, this.x[i], this.y[i]),
    );
  }

  choose(places) {
    this.chosen.fill(0);
    for (const i of places) this.chosen[i] = 1;
    this.chosenCount = places.length;
  }

  /** The points of a group: a label, a split, those with or without copies, or similar ones.
   * @param {"label" | "split" | "copies" | "group"} part @param {number} group */
  ofGroup(part, group) {
    const values = this[part];
    const found = [];
    for (let i = 0; i < this.count; i++) if (values[i] === group) found.push(i);
    return found;
  }

  /** The place of each group of labels: the median of its points, where most of it is. */
  middles(groups) {
    return groups.map((_, group) => {
      const places = this.ofGroup("label", group);
      const middle = (values) => Float32Array.from(places, (i) => values[i]).sort()[places.length >> 1];
      return { x: middle(this.x), y: middle(this.y), count: places.length };
    });
  }

  /** The selected points, in their order. */
  places() {
    const found = [];
    for (let i = 0; i < this.count; i++) if (this.chosen[i]) found.push(i);
    return found;
  }
}

const SEPARATE = 0.15; // five folders of photographs by year: .00; five kinds of flowers: .2 and more

/**
 * Whether groups lie apart: the share of the variance of places that is between groups, less that which chance gives.
 * @param {{x: ArrayLike<number>, y: ArrayLike<number>}} points @param {ArrayLike<number>} values the group of each, below 0 for none
 */
export function liesApart({ x, y }, values) {
  const groups = new Map();
  const all = { n: 0, x: 0, y: 0, squares: 0 };
  for (let i = 0; i < values.length; i++) {
    if (values[i] < 0) continue;
    if (!groups.has(values[i])) groups.set(values[i], { n: 0, x: 0, y: 0 });
    for (const sum of [all, groups.get(values[i])]) {
      sum.n += 1;
      sum.x += x[i];
      sum.y += y[i];
    }
    all.squares += x[i] ** 2 + y[i] ** 2;
  }
  if (groups.size < 2) return false;
  const about = ({ n, x: sx, y: sy }) => (sx ** 2 + sy ** 2) / n;
  const total = all.squares - about(all);
  const between = [...groups.values()].reduce((sum, group) => sum + about(group), 0) - about(all);
  return total > 0 && between / total - (groups.size - 1) / Math.max(1, all.n - 1) >= SEPARATE;
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

/** The rows of a disc: where each begins and ends, from the corner of its square.
 * @param {number} side @returns {Array<[number, number]>} */
export function discRows(side) {
  const radius = side / 2;
  return Array.from({ length: side }, (_, row) => {
    const half = Math.sqrt(Math.max(0, radius * radius - (row + 0.5 - radius) ** 2));
    return [Math.round(radius - half), Math.max(Math.round(radius - half) + 1, Math.round(radius + half))];
  });
}

/** Draw points into the pixels of an image as discs; while some are selected, the others are dim. */
export function drawPoints(points, image, scale, centreX, centreY, side) {
  const pixels = new Uint32Array(image.data.buffer);
  pixels.fill(0);
  const { width, height } = image;
  const { x, y, colour, chosen, count } = points;
  const anyChosen = points.chosenCount > 0;
  const [across, down] = [width / 2 - centreX * scale - side / 2, height / 2 - centreY * scale - side / 2];
  const [lastLeft, lastTop] = [width - side, height - side];
  const rows = discRows(side);
  for (let pass = 0; pass < (anyChosen ? 2 : 1); pass++) {
    for (let i = 0; i < count; i++) {
      if (anyChosen && chosen[i] !== pass) continue;
      const left = (x[i] * scale + across) | 0;
      const top = (y[i] * scale + down) | 0;
      if (left < 0 || top < 0 || left > lastLeft || top > lastTop) continue;
      const value = anyChosen && !pass ? (colour[i] & 0x00ffffff) | 0x30000000 : colour[i];
      let start = top * width + left;
      for (let row = 0; row < side; row++, start += width) {
        const [first, last] = rows[row];
        for (let at = start + first; at < start + last; at++) pixels[at] = value;
      }
    }
  }
}

/**
 * How many points there are around each place: a small picture whose alpha grows with the logarithm of the number.
 * @param {Points} points @param {ImageData} image small, drawn enlarged @param {number} scale pixels of it per unit
 * @param {number} colour of the points, as 0x00bbggrr
 */
export function drawDensity(points, image, scale, centreX, centreY, colour) {
  const { width, height } = image;
  const counts = new Float32Array(width * height);
  const { x, y, count } = points;
  const [across, down] = [width / 2 - centreX * scale, height / 2 - centreY * scale];
  for (let i = 0; i < count; i++) {
    const column = (x[i] * scale + across) | 0;
    const row = (y[i] * scale + down) | 0;
    if (column > 0 && row > 0 && column < width - 1 && row < height - 1) counts[row * width + column]++;
  }
  blur(counts, width, height);
  blur(counts, width, height);
  const most = counts.reduce((high, value) => Math.max(high, value), 0);
  const pixels = new Uint32Array(image.data.buffer);
  for (let at = 0; at < counts.length; at++) {
    const alpha = most ? (90 * Math.log1p(counts[at])) / Math.log1p(most) : 0;
    pixels[at] = (Math.round(alpha) << 24) | colour;
  }
}

/** Mean of three in each direction. */
function blur(values, width, height) {
  for (const [step, length, lines, gap] of [[1, width, height, width], [width, height, width, 1]]) {
    for (let line = 0; line < lines; line++) {
      let before = 0;
      for (let k = 0, at = line * gap; k < length; k++, at += step) {
        const here = values[at];
        values[at] = (before + here + (k + 1 < length ? values[at + step] : 0)) / 3;
        before = here;
      }
    }
  }
}
