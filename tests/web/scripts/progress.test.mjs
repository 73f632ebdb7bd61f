// Progress in words: what a command wrote last, and how long the rest takes.

import assert from "node:assert/strict";
import test from "node:test";

import { duration, timeLeft } from "../../../src/autoencode/web/static/dom.js";
import { changed, endOf, stageOf, titleOf } from "../../../src/autoencode/web/static/start.js";

test("a line of a command is a stage with its numbers", () => {
  const line = "packing: 1,200 of 2,000, 310 images/s, 3 s left";
  assert.deepEqual(stageOf(line), { stage: "packing", done: 1200, total: 2000 });
  assert.deepEqual(stageOf("epoch 1/40  loss 0.1, 0:30 left"), { stage: "epochs", done: 1, total: 40 });
});

test("a line of the sharp decoder is about its own epochs", () => {
  const line = "sharp decoder, epoch 1/50  perceptual distance 0.9892  22 images/s  1:51 left";
  assert.deepEqual(stageOf(line), { stage: "epochs of the sharp decoder", done: 1, total: 50 });
});

test("the end of a command is said once, and a stopped one is not done", () => {
  const end = { failed: false, stopped: false, ready: true };
  assert.equal(endOf(end), "done");
  assert.match(endOf({ ...end, stopped: true }), /^stopped, and .* kept$/);
  assert.equal(endOf({ ...end, stopped: true, ready: false }), "stopped");
  assert.equal(endOf({ ...end, failed: true }), "failed");
});

test("a line without numbers is shown as it is, and none as the start", () => {
  assert.deepEqual(stageOf("saving"), { stage: "saving", done: 0, total: 0 });
  assert.equal(stageOf("").stage, "starting");
});

test("the time left follows from the pace, and is not told before there is one", () => {
  assert.equal(timeLeft(50, 10_000, 150), ", about 30 s left");
  assert.equal(timeLeft(50, 1_999, 150), "");
  assert.equal(timeLeft(0, 10_000, 150), "");
  assert.equal(timeLeft(200, 10_000, 0), "");
});

test("a duration has the unit that a person would choose", () => {
  assert.deepEqual([0.2, 89, 120, 5400].map(duration), ["1 s", "89 s", "2 min", "1.5 h"]);
});

test("an update of an index is called one, and its end counts what changed", () => {
  assert.equal(titleOf({ kind: "index", updates: true, source: "photos" }), "Updating the index of photos");
  assert.equal(titleOf({ kind: "index", updates: false, source: "photos" }), "Indexing photos");
  assert.match(changed({ encoded: 1, kept: 2000, removed: 410 }), /^1 new picture, 2,000 as before, 410 no longer there\. Tags/);
  assert.equal(changed(null), "");
});
