import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.matchMedia = () => ({ matches: false, addEventListener() {} });
globalThis.localStorage = { getItem: () => null, setItem() {} };
globalThis.document = { documentElement: { dataset: {} } };
const { groupOf } = await import("../../../src/autoencode/web/static/colours.js");
const { Points } = await import("../../../src/autoencode/web/static/points.js");

/** Points as the server sends them. */
const points = ({ score, label, split, copies, group }) => {
  const count = score.length;
  const bytes = [
    new Float32Array(2 * count), Float32Array.from(score), Int16Array.from(label), Int8Array.from(split), Int8Array.from(copies), Int8Array.from(group),
  ];
  const buffer = new Uint8Array(17 * count);
  let at = 0;
  for (const part of bytes) {
    buffer.set(new Uint8Array(part.buffer), at);
    at += part.byteLength;
  }
  return new Points(buffer.buffer, count);
};

test("a press in the legend selects a label, a part, those with copies, or a score and all above", () => {
  const some = points({ score: [0, 3, NaN, 6], label: [1, 0, 1, -1], split: [0, 1, 2, 2], copies: [0, 1, 1, -1], group: [2, 0, 2, 1] });
  assert.deepEqual(groupOf(some, "label", 1), [0, 2]);
  assert.deepEqual(groupOf(some, "split", 2), [2, 3]);
  assert.deepEqual(groupOf(some, "copies", 1), [1, 2]);
  assert.deepEqual(groupOf(some, "group", 2), [0, 2]);
  assert.deepEqual(groupOf(some, "score", 0), [0, 1, 3]);
  assert.deepEqual(groupOf(some, "score", 3), [1, 3]); // six steps from 0 to 6
  assert.deepEqual(groupOf(some, "score", 5), [3]);
});
