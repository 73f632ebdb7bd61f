import assert from "node:assert/strict";
import { test } from "node:test";
import { box, target, touches } from "../../../src/autoencode/web/static/grid.js";

test("arrow keys move in rows and columns and stop at the ends", () => {
  assert.equal(target("ArrowDown", 1, 10, 4), 5);
  assert.equal(target("ArrowUp", 1, 10, 4), null);
  assert.equal(target("ArrowRight", 9, 10, 4), null);
  assert.equal(target("ArrowLeft", 4, 10, 4), 3);
  assert.equal(target("End", 2, 10, 4), 9);
  assert.equal(target("a", 2, 10, 4), null);
});

test("a rectangle is drawn in any direction and touches what it overlaps", () => {
  assert.deepEqual(box({ x: 30, y: 5 }, { x: 10, y: 25 }), { left: 10, top: 5, width: 20, height: 20 });
  const area = { left: 0, top: 0, right: 10, bottom: 10 };
  assert.equal(touches(area, { left: 9, top: 9, right: 20, bottom: 20 }), true);
  assert.equal(touches(area, { left: 10, top: 0, right: 20, bottom: 10 }), false);
});
