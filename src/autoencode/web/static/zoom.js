// Zooming into a picture that fits its stage at scale 1: arithmetic alone, so that it can be tested without a page.

/**
 * @typedef {{scale: number, x: number, y: number}} View where the middle of the picture is, in pixels from the middle of
 *   the stage, and how much larger it is than when it fits
 * @typedef {{width: number, height: number}} Size
 */

/** @type {View} */
export const FITTING = { scale: 1, x: 0, y: 0 };

/** The size at which a picture fits a stage; a small picture is enlarged, to four times its pixels at most.
 * @param {Size} picture @param {Size} stage @returns {Size} */
export function fitted(picture, stage) {
  const scale = Math.min(stage.width / picture.width, stage.height / picture.height, 4);
  return { width: picture.width * scale, height: picture.height * scale };
}

/** Zoom by a factor about a point that stays where it is.
 * @param {View} view @param {number} factor @param {{x: number, y: number}} point from the middle of the stage
 * @param {Size} fit @param {Size} stage @param {number} most @returns {View} */
export function zoomed(view, factor, point, fit, stage, most = 16) {
  const scale = Math.min(most, Math.max(1, view.scale * factor));
  const kept = scale / view.scale;
  return held({ scale, x: point.x + (view.x - point.x) * kept, y: point.y + (view.y - point.y) * kept }, fit, stage);
}

/** Move the picture.
 * @param {View} view @param {number} dx @param {number} dy @param {Size} fit @param {Size} stage @returns {View} */
export function moved(view, dx, dy, fit, stage) {
  return held({ scale: view.scale, x: view.x + dx, y: view.y + dy }, fit, stage);
}

/** Keep the picture over the stage: none of its edges comes further in than it needs to.
 * @param {View} view @param {Size} fit @param {Size} stage @returns {View} */
function held(view, fit, stage) {
  const room = (side, space) => Math.max(0, (side * view.scale - space) / 2);
  const [across, down] = [room(fit.width, stage.width), room(fit.height, stage.height)];
  return {
    scale: view.scale,
    x: Math.min(across, Math.max(-across, view.x)) + 0, // never -0
    y: Math.min(down, Math.max(-down, view.y)) + 0,
  };
}

/** How wide a column of a grid becomes that fills a row with columns of at least so many pixels.
 * @param {number} least @param {number} room of the row @param {number} gap between two @returns {number} */
export function columnWidth(least, room, gap) {
  const columns = Math.max(1, Math.floor((room + gap) / (least + gap)));
  return Math.max(least, (room - gap * (columns - 1)) / columns);
}

/** The longest side to ask the server for, so that each pixel of the screen has one of the picture.
 * @param {number} shown longest side on the screen @param {number} ratio pixels of the screen per CSS pixel
 * @returns {number} */
export function neededSide(shown, ratio) {
  return [160, 320, 640, 1280, 2560].find((side) => side >= 0.9 * shown * ratio) ?? 5120;
}
