import assert from "node:assert/strict";
import { test } from "node:test";
import { asked, between, parsed, remember, windowOf, withWindow, written } from "../../../src/autoencode/web/static/address.js";

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

test("a value that means nothing stays the default and is named, and so is no name that is unknown", () => {
  const { params } = parsed("#browse?sort=bad&down=true&unusual=7&foo=1&text=");
  const { state, wrong } = asked(params, { sort: "name", down: "", unusual: "", text: "old" }, { sort: ["name", "date"], unusual: between(0, 1) });
  assert.deepEqual(state, { sort: "name", down: "true", unusual: "", text: "" });
  assert.deepEqual(wrong, ["sort=bad", "unusual=7"]);
});

test("a number is one within its bounds, written in full", () => {
  const fits = between(-2.5, 2.5);
  assert.deepEqual(["-2.5", "0", "1e0", "2.6", "", " ", "x", "NaN"].map(fits), [true, true, true, false, false, false, false, false]);
});

test("a window is named beside the state of its tab, and taken away again", () => {
  const hash = withWindow("#browse?sort=date", "i7");
  assert.equal(hash, "#browse?sort=date&open=i7");
  assert.equal(windowOf(hash), "i7");
  assert.equal(withWindow(withWindow(hash, "i8"), null), "#browse?sort=date");
  assert.equal(windowOf("#browse?sort=date"), null);
});

test("what a tab remembers leaves its window open, and no other tab that was chosen meanwhile", () => {
  const replaced = [];
  globalThis.location = { hash: "#browse?open=i7" };
  globalThis.document = { body: { dataset: { tab: "browse" } } };
  globalThis.history = { state: { viewer: 1 }, replaceState: (state, _, hash) => replaced.push([state.viewer, hash]) };
  remember("browse", { sort: "date" });
  assert.deepEqual(replaced.pop(), [1, "#browse?sort=date&open=i7"]);
  globalThis.location.hash = "#map?open=i7";
  remember("browse", { sort: "date" });
  assert.deepEqual(replaced, []);
  for (globalThis.location.hash of ["", "#main"]) {
    remember("browse", { sort: "date" });
    assert.deepEqual(replaced.pop(), [1, "#browse?sort=date"]);
    remember("map", { layout: "grid" }); // such work ends in a tab that is no longer open
    assert.deepEqual(replaced, []);
  }
});
