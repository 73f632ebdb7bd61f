import assert from "node:assert/strict";
import { test } from "node:test";

globalThis.matchMedia = () => ({ matches: false, addEventListener() {} });
const { following } = await import("../../../src/autoencode/web/static/theme.js");

test("the first press of the button changes the colours, whatever the system has", () => {
  assert.deepEqual(["", "dark", "light"].map((chosen) => following(chosen, false)), ["dark", "light", ""]);
  assert.deepEqual(["", "light", "dark"].map((chosen) => following(chosen, true)), ["light", "dark", ""]);
});
