import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.matchMedia = () => ({ matches: false, addEventListener() {} });
globalThis.localStorage = { getItem: () => null, setItem() {} };
globalThis.document = { documentElement: { dataset: {} } };
globalThis.BroadcastChannel = class {};
const { layoutOf } = await import("../../../src/autoencode/web/static/mapview.js");

test("a folder of hundreds is laid out by neighbours, one of a few or of very many by distance", () => {
  assert.deepEqual([10, 420, 12_000, 12_001].map((images) => layoutOf(images, true)), ["pca", "umap", "umap", "pca"]);
  assert.equal(layoutOf(2000, false), "pca");
});
