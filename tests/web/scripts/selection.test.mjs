import assert from "node:assert/strict";
import { test } from "node:test";
import { Selection, order, positionsOf } from "../../../src/autoencode/web/static/selection.js";

test("a press with Shift selects what is shown between, in either direction", () => {
  const selection = new Selection();
  const shown = [9, 4, 7, 1, 3];
  selection.toggle(7);
  selection.extend(9, shown);
  assert.deepEqual(selection.positions(), [4, 7, 9]);
  selection.extend(3, shown);
  assert.deepEqual(selection.positions(), [1, 3, 4, 7, 9]);
});

test("a range from an image that is no longer shown is the pressed image alone", () => {
  const selection = new Selection();
  selection.toggle(100);
  selection.extend(4, [9, 4, 7]);
  selection.extend(7, [9, 4, 7]);
  assert.deepEqual(selection.positions(), [4, 7, 100]);
});

test("every change is told, and a second press takes back the first", () => {
  const selection = new Selection();
  let told = 0;
  selection.addEventListener("change", () => (told += 1));
  selection.toggle(5);
  selection.toggle(5);
  selection.replace([1, 2]);
  selection.clear();
  assert.equal(told, 4);
  assert.equal(selection.size, 0);
});

test("what is saved is named by what the pictures were found by, and no longer once others are selected", () => {
  order.of = "copy";
  const selection = new Selection();
  selection.add([1]);
  assert.equal(order.of, "copy");
  selection.replace([2]);
  assert.equal(order.of, "");
});

test("bits come back as the positions they were made of", () => {
  const selection = new Selection();
  const chosen = [0, 7, 8, 23, 24, 41];
  selection.add(chosen);
  assert.deepEqual(positionsOf(selection.bits(42)), chosen);
  assert.equal(selection.bits(42).length, 6);
  assert.equal(selection.bits(42)[1], 1); // the lowest bit is the first image of its eight
});
