import assert from "node:assert/strict";
import { test } from "node:test";
import { parsed, written } from "../../../src/autoencode/web/static/address.js";

test("a state comes back from the address it was written to", () => {
  const state = { text: "a & b/c?", label: "Löwe", down: "true" };
  const { tab, params } = parsed(written("browse", state));
  assert.equal(tab, "browse");
  assert.deepEqual(Object.fromEntries(params), state);
});

test("what is the default or empty is left out", () => {
  assert.equal(written("browse", { sort: "name", text: "", tag: "x" }, { sort: "name" }), "#browse?tag=x");
  assert.equal(written("map", { layout: "pca" }, { layout: "pca" }), "#map");
  assert.equal(parsed("#map").params.size, 0);
});
