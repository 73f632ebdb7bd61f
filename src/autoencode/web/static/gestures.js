// Wheel, pinch and drag on a frame: how far to zoom and to move, for whatever the frame shows.

const WHEEL_RATE = 0.002; // of the logarithm of the zoom a pixel: a notch of a wheel, some 100 pixels, is 20 %
const TRACKPAD_RATE = 0.01; // a pinch on a trackpad comes as a wheel with Ctrl, in a few pixels

/** @typedef {{x: number, y: number}} Point in pixels from the middle of the frame */

/** The factor of a pinch, and the point between the fingers. One finger has moved, the other is still.
 * @param {Point} before @param {Point} now @param {Point} other @returns {{factor: number, point: Point}} */
export function pinched(before, now, other) {
  const apart = (point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
  return { factor: apart(now) / apart(before), point: { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 } };
}

/** Call `zoom` for wheel and pinch, `press` for the first finger or button that goes down, and `drag` while it moves.
 * @param {HTMLElement} frame
 * @param {{zoom: (factor: number, point: Point) => void, drag: (now: Point, before: Point) => void,
 *   press?: (point: Point) => void}} on */
export function followGestures(frame, on) {
  /** @type {Map<number, Point>} */
  const pointers = new Map();
  const pointOf = (event) => pointIn(frame, event);
  frame.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      on.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? TRACKPAD_RATE : WHEEL_RATE)), pointOf(event));
    },
    { passive: false },
  );
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, pointOf(event));
    if (pointers.size === 1) on.press?.(pointOf(event));
  });
  frame.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = pointOf(event);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const { factor, point } = pinched(before, now, other);
      on.zoom(factor, point);
    } else on.drag(now, before);
    pointers.set(event.pointerId, now);
  });
  const gone = (event) => pointers.delete(event.pointerId);
  frame.addEventListener("pointerup", gone);
  frame.addEventListener("pointercancel", gone);
}

/** Where an event is in a frame.
 * @param {HTMLElement} frame @param {MouseEvent} event @returns {Point} */
export function pointIn(frame, event) {
  const box = frame.getBoundingClientRect();
  return { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
}
