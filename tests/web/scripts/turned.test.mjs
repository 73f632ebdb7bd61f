import assert from "node:assert/strict";
import { test } from "node:test";
import { bestTurn } from "../../../src/autoencode/web/static/turned.js";

const one = [1, 2, 3, 4, 5, 6, 7, 8, 9];

test("a picture that was mirrored or turned is brought back", () => {
  assert.deepEqual(bestTurn(one, one, 3), { quarters: 0, isMirrored: false });
  assert.deepEqual(bestTurn(one, [3, 2, 1, 6, 5, 4, 9, 8, 7], 3), { quarters: 0, isMirrored: true });
  // Turned clockwise by a quarter: three more bring it back.
  assert.deepEqual(bestTurn(one, [7, 4, 1, 8, 5, 2, 9, 6, 3], 3), { quarters: 3, isMirrored: false });
  assert.deepEqual(bestTurn(one, [9, 8, 7, 6, 5, 4, 3, 2, 1], 3), { quarters: 2, isMirrored: false });
});
