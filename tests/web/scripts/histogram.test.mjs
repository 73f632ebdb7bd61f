import assert from "node:assert/strict";
import { test } from "node:test";
import { heights, scoreAt, shareOf } from "../../../src/autoencode/web/static/histogram.js";

test("the right end of the slider is the highest score itself", () => {
  const histogram = { low: 0.1, high: 5.283999999999999 };
  assert.equal(scoreAt(histogram, 1), histogram.high);
  assert.equal(scoreAt(histogram, -3), histogram.low);
});

test("a score comes back from its place", () => {
  const histogram = { low: -2, high: 6 };
  for (const score of [-2, 0, 1.5, 6]) assert.ok(Math.abs(scoreAt(histogram, shareOf(histogram, score)) - score) < 1e-12);
  assert.equal(shareOf(histogram, 100), 1);
});

test("one picture among thousands still has a bar", () => {
  const [many, one, none] = heights([5000, 1, 0]);
  assert.equal(many, 1);
  assert.ok(one > 0.05);
  assert.equal(none, 0);
});
