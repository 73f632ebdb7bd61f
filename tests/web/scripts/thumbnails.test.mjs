import assert from "node:assert/strict";
import { test } from "node:test";
import { discRows, liesApart } from "../../../src/autoencode/web/static/points.js";
import { apart, levelOf, picked, priorities, readable, sideAt } from "../../../src/autoencode/web/static/thumbnails.js";

const points = (xs, ys, chosen = []) => ({
  x: Float32Array.from(xs),
  y: Float32Array.from(ys),
  count: xs.length,
  chosen: Uint8Array.from(xs, (_, i) => Number(chosen.includes(i))),
  chosenCount: chosen.length,
});

test("one point of each cell has a thumbnail, and keeps it as one comes closer", () => {
  const xs = Array.from({ length: 400 }, (_, i) => (i * 37) % 100);
  const ys = Array.from({ length: 400 }, (_, i) => (i * 61) % 100);
  const all = points(xs, ys);
  const priority = priorities(400);
  const far = picked(all, 50, priority);
  const near = new Set(picked(all, 25, priority));
  assert.equal(far.length, 4);
  for (const i of far) assert.ok(near.has(i));
});

test("of pictures that would cover each other the first stays", () => {
  assert.deepEqual(apart([[0, 0], [9, 9], [10, 0], [15, 30], [24, 39]], 10), [0, 2, 3]);
});

test("while some are selected, only those have thumbnails", () => {
  assert.deepEqual([...picked(points([0, 9, 0], [0, 9, 1], [1]), 5, priorities(3))], [1]);
});

test("thumbnails grow with the zoom, within bounds", () => {
  assert.ok(sideAt(1) < sideAt(4));
  assert.equal(sideAt(1e6), 148);
  assert.equal(levelOf(2) - levelOf(1), 2);
});

test("a disc is as high as wide, and round", () => {
  const rows = discRows(7);
  assert.equal(rows.length, 7);
  assert.deepEqual(rows[3], [0, 7]);
  assert.ok(rows[0][1] - rows[0][0] < 5);
  assert.deepEqual(rows[0], rows[6]);
});

test("groups lie apart where most of the variance is between them, and not where they are mixed", () => {
  const places = points(Array.from({ length: 60 }, (_, i) => (i * 37) % 60), Array.from({ length: 60 }, (_, i) => (i * 23) % 60));
  const half = Array.from(places.x, (x) => Number(x > 29));
  assert.equal(liesApart(places, half), true);
  assert.equal(liesApart(places, Array.from(places.x, (_, i) => i % 5)), false);
  assert.equal(liesApart(places, Array.from(places.x, () => 0)), false);
  assert.equal(liesApart(places, Array.from(places.x, (x, i) => (i % 2 ? -1 : Number(x > 29)))), true);
});

test("of names that would lie over each other the first is written", () => {
  const at = (left, top) => ({ left, top, width: 40 });
  assert.deepEqual(readable([at(0, 0), at(30, 10), at(50, 0), at(0, 18)], 18), [0, 2, 3]);
});
