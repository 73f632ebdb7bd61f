// The selection that all tabs share: images under review, by their position.

/** A set of positions that says when it changes. */
export class Selection extends EventTarget {
  #chosen = new Set();
  #anchor = null; // where a range begins: the image that was last pressed without Shift

  /** @returns {number} */
  get size() {
    return this.#chosen.size;
  }

  /** @param {number} position @returns {boolean} */
  has(position) {
    return this.#chosen.has(position);
  }

  /** The positions, ascending.
   * @returns {number[]} */
  positions() {
    return [...this.#chosen].sort((a, b) => a - b);
  }

  /** @param {number} position */
  toggle(position) {
    if (!this.#chosen.delete(position)) this.#chosen.add(position);
    this.#anchor = position;
    this.#changed();
  }

  /** Add what lies between the last pressed image and this one, in the order in which they are shown.
   * @param {number} position @param {number[]} shown positions in that order */
  extend(position, shown) {
    const from = shown.indexOf(this.#anchor ?? position);
    const to = shown.indexOf(position);
    if (from < 0) this.#anchor = position;
    const [first, last] = from < 0 ? [to, to] : [Math.min(from, to), Math.max(from, to)];
    for (const one of shown.slice(first, last + 1)) this.#chosen.add(one);
    this.#changed();
  }

  /** @param {Iterable<number>} positions */
  add(positions) {
    for (const one of positions) this.#chosen.add(one);
    this.#changed();
  }

  /** @param {Iterable<number>} positions */
  replace(positions) {
    order.of = ""; // whoever selects others says by what
    this.#chosen = new Set(positions);
    this.#changed();
  }

  clear() {
    this.#anchor = null;
    this.replace([]);
  }

  /** A bit for each of `count` images; the first image is the lowest bit of the first byte.
   * @param {number} count @returns {Uint8Array} */
  bits(count) {
    const bits = new Uint8Array(Math.ceil(count / 8));
    for (const one of this.#chosen) bits[one >> 3] |= 1 << (one & 7);
    return bits;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** The positions whose bit is set.
 * @param {Uint8Array} bits @returns {number[]} */
export function positionsOf(bits) {
  const found = [];
  for (const [place, byte] of bits.entries()) {
    for (let bit = 0; bit < 8; bit++) if (byte & (1 << bit)) found.push(8 * place + bit);
  }
  return found;
}

export const selection = new Selection();

/** How its pictures were shown where they were selected, for what is saved: their order, and what they were found by. */
export const order = { sort: "name", down: "", of: "" };
