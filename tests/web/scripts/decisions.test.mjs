import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.document = { getElementById: () => null };
const { conclude, hear, newestCounts, propose } = await import("../../../src/autoencode/web/static/decisions.js");
const { readingTime } = await import("../../../src/autoencode/web/static/dom.js");

test("an answer that arrives after a newer one changes nothing", () => {
  const picture = { decision: null };
  assert.equal(hear(picture, "keep", 7), true);
  assert.equal(hear(picture, "drop", 6), false);
  assert.equal(picture.decision, "keep");
  assert.equal(hear(picture, null, 8), true);
  assert.equal(picture.decision, null);
});

test("a decision that is being written stands until the server says which was the last", () => {
  const picture = { decision: null };
  hear(picture, null, 1);
  propose(picture, "keep");
  assert.equal(hear(picture, "drop", 2), false); // of another window, asked for before ours was written
  assert.equal(picture.decision, "keep");
  hear(picture, "keep", 3);
  assert.equal(conclude(picture), false);
  assert.equal(picture.decision, "keep");
  propose(picture, "keep");
  hear(picture, "drop", 5); // of another window, written after ours
  hear(picture, "keep", 4);
  assert.equal(conclude(picture), true);
  assert.equal(picture.decision, "drop");
});

test("a decision that could not be written gives way to what the server has", () => {
  const picture = { decision: "drop" };
  hear(picture, "drop", 1);
  propose(picture, "keep");
  assert.equal(conclude(picture), true);
  assert.equal(conclude(picture), false);
  assert.equal(picture.decision, "drop");
});

test("counts of an older revision are not shown", () => {
  const shown = [];
  const show = newestCounts((counts) => shown.push(counts));
  for (const [counts, revision] of [["a", 3], ["b", 2], ["c", 3], ["d", 9]]) show({ counts, revision });
  assert.deepEqual(shown, ["a", "c", "d"]);
});

test("a short message stays for a short time", () => {
  assert.ok(readingTime("part_001.jpg: drop.") < 2500);
  assert.equal(readingTime("x".repeat(500)), 6000);
});
