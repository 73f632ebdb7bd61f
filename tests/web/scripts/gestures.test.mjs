import assert from "node:assert/strict";
import { test } from "node:test";
import { followGestures, pinched } from "../../../src/autoencode/web/static/gestures.js";

/** A frame of 200 by 100 pixels at (10, 20) of the window, with what gestures need of an element. */
function frameOf() {
  const handlers = {};
  return {
    addEventListener: (name, handler) => (handlers[name] = handler),
    setPointerCapture: () => {},
    getBoundingClientRect: () => ({ left: 10, top: 20, width: 200, height: 100 }),
    send: (name, more) => handlers[name]({ preventDefault: () => {}, ...more }),
  };
}

function followed() {
  const frame = frameOf();
  const calls = [];
  followGestures(frame, {
    zoom: (factor, point) => calls.push(["zoom", factor, point]),
    drag: (now, before) => calls.push(["drag", now.x - before.x, now.y - before.y]),
    press: (point) => calls.push(["press", point]),
  });
  return { frame, calls };
}

test("two fingers that come twice as far apart zoom by two, about the point between them", () => {
  assert.deepEqual(pinched({ x: 10, y: 0 }, { x: 20, y: 0 }, { x: 0, y: 0 }), { factor: 2, point: { x: 10, y: 0 } });
  const { frame, calls } = followed();
  frame.send("pointerdown", { pointerId: 1, clientX: 110, clientY: 70 });
  frame.send("pointerdown", { pointerId: 2, clientX: 130, clientY: 70 });
  frame.send("pointermove", { pointerId: 2, clientX: 150, clientY: 70 });
  assert.deepEqual(calls, [["press", { x: 0, y: 0 }], ["zoom", 2, { x: 20, y: 0 }]]);
});

test("one finger drags, also when another one has left, and none does nothing", () => {
  const { frame, calls } = followed();
  frame.send("pointermove", { pointerId: 1, clientX: 0, clientY: 0 });
  frame.send("pointerdown", { pointerId: 1, clientX: 110, clientY: 70 });
  frame.send("pointerdown", { pointerId: 2, clientX: 130, clientY: 70 });
  frame.send("pointerup", { pointerId: 2 });
  frame.send("pointermove", { pointerId: 1, clientX: 115, clientY: 60 });
  assert.deepEqual(calls, [["press", { x: 0, y: 0 }], ["drag", 5, -10]]);
});

test("a wheel zooms about its point, and up is in", () => {
  const { frame, calls } = followed();
  frame.send("wheel", { deltaY: -100, ctrlKey: false, clientX: 10, clientY: 20 });
  const [[, factor, point]] = calls;
  assert.ok(Math.abs(factor - Math.exp(0.2)) < 1e-12);
  assert.deepEqual(point, { x: -100, y: -50 });
});
