import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.matchMedia = () => ({ matches: false, addEventListener() {} });
globalThis.localStorage = { getItem: () => null, setItem() {} };
globalThis.BroadcastChannel = class {};
const { meant } = await import("../../../src/autoencode/web/static/outlierpicture.js");
const { wanted } = await import("../../../src/autoencode/web/static/outlierlinks.js");
const { setShared } = await import("../../../src/autoencode/web/static/shared.js");
const { decided, gone } = await import("../../../src/autoencode/web/static/selectionbar.js");

test("a heat map says what its colours mean, and that there is none", () => {
  assert.match(meant({ stands_out: true }, "label:good"), /^red: where it differs from normal pictures/);
  assert.match(meant({ stands_out: true }, "all"), /^red: where it differs from the other pictures/); // none is known to be normal
  assert.match(meant({ stands_out: false }, "all"), /no place stands out.*Blue: its own/);
  assert.match(meant({ stands_out: null }, "all"), /no map/);
});

test("a decision about a selection says how many others it replaces", () => {
  assert.match(decided(4, "drop", 2), /^4 pictures to drop, of which 2 were kept before; Undo/);
  assert.match(decided(1, "keep", 1), /^1 picture to keep, of which 1 was to drop before/);
  assert.doesNotMatch(decided(4, "drop", 0), /before/);
});

test("the address of Outliers gives what is compared and the line; another means the default", () => {
  setShared({ bases: [["model", ""], ["all", ""]] });
  const of = (text) => wanted({ tab: "outliers", params: new URLSearchParams(text) });
  assert.deepEqual(of("by=all&threshold=3.5"), { by: "all", dragged: 3.5, wrong: [] });
  assert.deepEqual(of("threshold=3.5"), { by: "model", dragged: null, wrong: [] }); // a line means nothing alone
  assert.deepEqual(of("by=none&threshold=x"), { by: "model", dragged: null, wrong: ["by=none", "threshold=x"] });
  assert.deepEqual(wanted({ tab: "browse", params: new URLSearchParams("by=all") }).by, "model");
});

test("an archive says how much of it is missing", () => {
  assert.match(gone(1, 3), /^1 file of 3 is gone: missing\.txt .* names it\.$/);
  assert.match(gone(2, 3), /^2 files of 3 are gone: .* names them\.$/);
  assert.match(gone(3, 3), /nothing to save: all 3 files are gone/);
  assert.match(gone(1, 1), /the file is gone/);
  assert.match(gone(2, 3, "txt"), /^2 files of 3 are gone, and left out of the list\. .* names them\.$/);
  assert.match(gone(3, 3, "csv"), /the column “gone”/);
});
