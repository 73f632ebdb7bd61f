// How a picture was turned or mirrored against another: tried on small grey copies of both.

/** @typedef {{quarters: number, isMirrored: boolean}} Turn mirrored first, left to right, and then so many quarters clockwise */

const SIDE = 24;

/** Where a place of the turned picture comes from.
 * @param {number} x @param {number} y @param {number} side @param {Turn} turn @returns {[number, number]} */
function from(x, y, side, { quarters, isMirrored }) {
  for (let k = 0; k < quarters; k++) [x, y] = [y, side - 1 - x];
  return [isMirrored ? side - 1 - x : x, y];
}

/** The turn after which a picture differs least from another; both square, of the same side.
 * @param {ArrayLike<number>} one @param {ArrayLike<number>} other @param {number} side @returns {Turn} */
export function bestTurn(one, other, side) {
  let best = { quarters: 0, isMirrored: false };
  let least = Infinity;
  for (const isMirrored of [false, true]) {
    for (let quarters = 0; quarters < 4; quarters++) {
      let apart = 0;
      for (let y = 0; y < side; y++) {
        for (let x = 0; x < side; x++) {
          const [fromX, fromY] = from(x, y, side, { quarters, isMirrored });
          apart += Math.abs(one[y * side + x] - other[fromY * side + fromX]);
        }
      }
      if (apart < least) [least, best] = [apart, { quarters, isMirrored }];
    }
  }
  return best;
}

/** @param {HTMLImageElement} picture */
function grey(picture) {
  const context = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE }).getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0, SIDE, SIDE);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  return Array.from({ length: SIDE * SIDE }, (_, i) => data[4 * i] + data[4 * i + 1] + data[4 * i + 2]);
}

/** Turn a picture as another one lies; return its address then, null where it lies so already.
 * @param {HTMLImageElement} one @param {HTMLImageElement} other @returns {Promise<string | null>} */
export async function turnedLike(one, other) {
  const { quarters, isMirrored } = bestTurn(grey(one), grey(other), SIDE);
  if (!quarters && !isMirrored) return null;
  const [width, height] = [other.naturalWidth, other.naturalHeight];
  const canvas = Object.assign(document.createElement("canvas"), quarters % 2 ? { width: height, height: width } : { width, height });
  const context = canvas.getContext("2d");
  context.translate(canvas.width / 2, canvas.height / 2);
  context.rotate((quarters * Math.PI) / 2);
  if (isMirrored) context.scale(-1, 1);
  context.drawImage(other, -width / 2, -height / 2);
  /** @type {Blob} */
  const blob = await new Promise((resolve) => canvas.toBlob(resolve));
  return URL.createObjectURL(blob);
}
