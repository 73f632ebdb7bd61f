import assert from "node:assert/strict";
import { test } from "node:test";
import { FITTING, columnWidth, fitted, moved, neededSide, zoomed } from "../../../src/autoencode/web/static/zoom.js";

const stage = { width: 800, height: 600 };

test("a picture fits its stage, and a small one is enlarged four times at most", () => {
  assert.deepEqual(fitted({ width: 1600, height: 400 }, stage), { width: 800, height: 200 });
  assert.deepEqual(fitted({ width: 32, height: 32 }, stage), { width: 128, height: 128 });
});

test("the point under the pointer stays where it is", () => {
  const fit = { width: 800, height: 600 };
  const point = { x: 130, y: -70 };
  const view = zoomed(FITTING, 2, point, fit, stage);
  // The same share of the picture is under the point as before.
  assert.ok(Math.abs((point.x - view.x) / view.scale - point.x) < 1e-9);
  assert.ok(Math.abs((point.y - view.y) / view.scale - point.y) < 1e-9);
});

test("no edge comes further in than it needs to, and nothing is smaller than it fits", () => {
  const fit = { width: 800, height: 200 };
  const view = moved({ scale: 2, x: 0, y: 0 }, 1e4, 1e4, fit, stage);
  assert.deepEqual(view, { scale: 2, x: 400, y: 0 });
  assert.deepEqual(zoomed(view, 0.1, { x: 5, y: 5 }, fit, stage), FITTING);
  assert.equal(zoomed(FITTING, 1000, { x: 0, y: 0 }, fit, stage).scale, 16);
});

test("enough pixels are asked for, and no more than the largest size there is", () => {
  assert.equal(neededSide(160, 1), 160);
  assert.equal(neededSide(200, 2), 640);
  assert.equal(neededSide(99999, 2), 5120);
});

test("the columns of a grid fill its row, as those of the style sheet do", () => {
  assert.equal(columnWidth(168, 1216, 12), (1216 - 5 * 12) / 6);
  assert.equal(columnWidth(480, 300, 12), 480); // one that is wider than the row
  assert.equal(columnWidth(100, 324, 12), 100);
});
