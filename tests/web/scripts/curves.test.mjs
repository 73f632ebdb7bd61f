import assert from "node:assert/strict";
import { test } from "node:test";
import { niceTicks, phaseOf, tickText } from "../../../src/autoencode/web/static/curves.js";

test("the ticks of an axis differ from each other, however small its range", () => {
  for (const [low, high] of [[23.118, 23.124], [0.00417, 0.00439], [0.9998, 1.0003], [1e-7, 4e-7], [1.2e6, 1.9e6], [5, 5], [-3, 8]]) {
    const ticks = niceTicks(low, high);
    const texts = ticks.map((tick) => tickText(tick, ticks[1] - ticks[0]));
    assert.equal(new Set(texts).size, ticks.length, texts.join(" "));
    for (const [place, text] of texts.entries()) assert.ok(Math.abs(Number(text) - ticks[place]) < (ticks[1] - ticks[0]) / 4, `${text} for ${ticks[place]}`);
  }
});

test("a tick has no more digits than it needs", () => {
  assert.deepEqual([0, 0.5, 1].map((tick) => tickText(tick, 0.5)), ["0.0", "0.5", "1.0"]);
  assert.deepEqual([0, 20, 40].map((tick) => tickText(tick, 20)), ["0", "20", "40"]);
});

const epochs = (count) => Array.from({ length: count }, (_, k) => ({ epoch: k + 1, train_loss: 1 }));
const sharp = (count) => Array.from({ length: count }, (_, k) => ({ epoch: 100 + k, train_perceptual_loss: 1 }));

test("the epochs that are done are counted among those of their phase", () => {
  assert.deepEqual(phaseOf(epochs(18), 200, 250), { stage: "epochs", done: 18, total: 200 });
  // The first phase ended early; the second has as many as the settings give it.
  assert.deepEqual(phaseOf([...epochs(60), ...sharp(3)], 200, 250), { stage: "epochs of the sharp decoder", done: 3, total: 50 });
});

test("a log that is longer than its settings have it counts no epoch beyond the last", () => {
  const { done, total } = phaseOf([...epochs(4), ...sharp(9)], 16, 20);
  assert.equal(done, total);
});
