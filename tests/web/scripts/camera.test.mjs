import assert from "node:assert/strict";
import { test } from "node:test";
import { Camera, between } from "../../../src/autoencode/web/static/camera.js";

const shown = (area = { x: 10, y: -5, width: 40, height: 20 }) => {
  const camera = Object.assign(new Camera(), { width: 800, height: 600 });
  camera.show(area);
  return camera;
};
const near = (one, other) => one.forEach((value, k) => assert.ok(Math.abs(value - other[k]) < 1e-9, `${one} and ${other}`));

test("an area is shown whole, its middle in the middle", () => {
  const camera = shown();
  near(camera.toWindow(10, -5), [400, 300]);
  const [left, top, right, bottom] = [...camera.toWindow(-10, -15), ...camera.toWindow(30, 5)];
  assert.ok(left >= 0 && top >= 0 && right <= 800 && bottom <= 600);
  assert.equal(camera.zoom, 1);
});

test("from the map to the window and back is where one was, after any movement", () => {
  const camera = shown();
  camera.pan(33, -12);
  camera.zoomBy(3.7, [4, 5]);
  near(camera.toMap(...camera.toWindow(1.25, 2.5)), [1.25, 2.5]);
});

test("the point under the pointer stays there while one zooms", () => {
  const camera = shown();
  const before = camera.toWindow(17, 2);
  camera.zoomBy(2.5, [17, 2]);
  near(camera.toWindow(17, 2), before);
});

test("a window of another size shows the same middle at the same zoom", () => {
  const camera = shown();
  camera.zoomBy(3, [17, 2]);
  const middle = [camera.x, camera.y];
  camera.resize(400, 200);
  assert.ok(Math.abs(camera.zoom - 3) < 1e-9);
  near([camera.x, camera.y], middle);
  camera.show({ x: 10, y: -5, width: 40, height: 20 });
  const [, top, , bottom] = [...camera.toWindow(-10, -15), ...camera.toWindow(30, 5)];
  assert.ok(top >= 0 && bottom <= 200);
});

test("nobody zooms so far that nothing is left to see", () => {
  const camera = shown();
  camera.zoomBy(1e9);
  assert.equal(camera.zoom, 400);
  camera.zoomBy(1e-9);
  assert.equal(camera.zoom, 0.5);
});

test("a movement by pixels moves the map by as many", () => {
  const camera = shown();
  camera.zoomBy(4);
  const [left, top] = camera.toWindow(3, 3);
  camera.pan(50, -20);
  near(camera.toWindow(3, 3), [left - 50, top + 20]);
});

test("the area about the middle is as large as asked for", () => {
  const camera = shown();
  const [left, top, right, bottom] = camera.middle(80, 40);
  near([...camera.toWindow(left, top), ...camera.toWindow(right, bottom)], [360, 280, 440, 320]);
});

test("a point begins where it was on the screen, and ends at its new place", () => {
  const [before, now] = [{ x: 1, y: 2, scale: 10 }, { x: 100, y: 50, scale: 4 }];
  const [from, to] = [{ x: 3, y: 2 }, { x: 90, y: 60 }];
  const start = between(from, to, before, now, 0);
  near([(start.x - now.x) * now.scale, (start.y - now.y) * now.scale], [20, 0]);
  near(Object.values(between(from, to, before, now, 1)), [90, 60]);
  const half = between(from, to, before, now, 0.5);
  near(Object.values(half), [(start.x + 90) / 2, (start.y + 60) / 2]);
});
