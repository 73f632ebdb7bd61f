// Pictures: as they are or as the model sees them, as buttons, in grids, and read from files.

import { get, imageUrl, originalUrl, query, restarting, upload } from "./api.js";
import { h, modal, number, say, showFailure } from "./dom.js";
import { MORPH_MOST, hasImages, morphing, workspace } from "./shared.js";
import { openPicture } from "./viewer.js";
import { columnWidth, neededSide } from "./zoom.js";

export { openPicture };

/** The last part of a picture's path. */
export function shortName(picture) {
  return picture.name.split("/").pop();
}

/** A picture as the model sees it, or a part of what the model makes of it. */
export function image(picture, part = "", alt = null) {
  const { width, height } = workspace;
  return h("img", { src: imageUrl(picture.id, part), alt: alt ?? shortName(picture), width, height, decoding: "async" });
}

/** A picture as its file has it, with pixels enough for `size`, its longest side on the page. */
export function original(picture, size = 160, alt = null) {
  const side = neededSide(size === tiles.size ? tileWidth() : size, devicePixelRatio || 1);
  const src = tiles.isModelsView ? imageUrl(picture.id) : originalUrl(picture.id, side);
  return h("img", { src, "data-id": picture.id, alt: alt ?? shortName(picture), decoding: "async", loading: "lazy" });
}

/** How pictures are shown in grids, on every tab: their size in pixels, and whether as the model sees them. */
export const tiles = {
  size: Math.min(480, Math.max(72, Number(localStorage.getItem("tile")) || 168)),
  isModelsView: false,
};

/** How wide the pictures of a grid are: its columns fill the row. */
function tileWidth() {
  const [least, room] = [Math.min(tiles.size, innerWidth / 2 - 32), document.querySelector("main")?.clientWidth ?? innerWidth];
  return columnWidth(least, room, 12);
}

function showTiles() {
  document.documentElement.style.setProperty("--tile", `${tiles.size}px`);
  const side = neededSide(tileWidth(), devicePixelRatio || 1);
  for (const shown of /** @type {NodeListOf<HTMLImageElement>} */ (document.querySelectorAll(".grid.sized img[data-id]"))) {
    const src = tiles.isModelsView ? imageUrl(shown.dataset.id) : originalUrl(shown.dataset.id, side);
    if (shown.getAttribute("src") !== src) shown.src = src;
  }
}

let settling = null;

/** Controls of the grids: a slider for the size of pictures, and a switch to the model's view. */
export function tileControls() {
  const slider = h("input", {
    type: "range",
    class: "tile-size",
    min: 72,
    max: 480,
    step: 8,
    value: tiles.size,
    "aria-label": "Size of the pictures",
    title: "Size of the pictures",
    oninput: () => {
      tiles.size = Number(slider.value);
      localStorage.setItem("tile", String(tiles.size));
      document.documentElement.style.setProperty("--tile", `${tiles.size}px`);
      clearTimeout(settling);
      settling = setTimeout(showTiles, 250); // larger files once the hand rests
    },
  });
  document.documentElement.style.setProperty("--tile", `${tiles.size}px`);
  const view = h("button", {
    type: "button",
    class: "model-view",
    "aria-pressed": String(tiles.isModelsView),
    title: "Show the pictures as the model sees them",
    onclick: () => {
      tiles.isModelsView = !tiles.isModelsView;
      for (const one of document.querySelectorAll(".model-view")) one.setAttribute("aria-pressed", String(tiles.isModelsView));
      showTiles();
    },
  }, "Model's view");
  return h("div", { class: "tile-controls" }, workspace.kind ? view : null, slider);
}

/** A picture to press. By default its window opens; its arrows go through `list`. */
export function pictureButton(picture, { caption = null, onclick = null, title = null, list = null, size = tiles.size } = {}) {
  return h(
    "button",
    { type: "button", class: "picture", "data-picture": picture.id, title: title ?? picture.name, onclick: onclick ?? (() => openPicture(picture, list)) },
    original(picture, size, caption === shortName(picture) ? "" : null), // read once
    caption === null ? null : h("span", { class: "caption" }, caption),
  );
}

/** A grid of pictures to press, in the size that the slider has. */
export function pictureGrid(pictures, caption = (_) => null) {
  return h("div", { class: "grid sized" }, pictures.map((picture) => pictureButton(picture, { list: pictures, caption: caption(picture) })));
}

export function score(value, isSimilarity) {
  return isSimilarity ? value.toFixed(3) : number(value, 2);
}

/** Add pictures to the morph until it is full; return whether all of them were added. */
export function addToMorph(pictures) {
  const taken = pictures.slice(0, MORPH_MOST - morphing.length);
  morphing.push(...taken);
  if (taken.length === pictures.length) return true;
  const left = taken.length ? `${taken.length} of ${pictures.length} were added.` : "Remove one first.";
  say(`A morph takes ${MORPH_MOST} pictures at most. ${left}`);
  return false;
}

/** The legend of a difference heat map. */
export function heatLegend() {
  return h("span", { class: "heat-legend" }, "least", h("span", { class: "ramp" }), "most, in this image");
}

const SKIPPED_NAMED = 3;

/** Send files and pass their pictures to `take`; skipped files are reported. */
export async function takePictures(files, take) {
  say(files.length > 1 ? `Reading ${files.length} images…` : "Reading the image…");
  const taken = [];
  const skipped = [];
  for (const [place, file] of files.entries()) {
    try {
      taken.push(await upload(file, workspace.upload_bytes, () => say(`Reading image ${place + 1} of ${files.length}…`)));
    } catch (err) {
      skipped.push(err.message);
    }
  }
  if (skipped.length > SKIPPED_NAMED) say(`${skipped.length} of ${files.length} files were skipped. The first: ${skipped[0]}`);
  else if (skipped.length) say(skipped.join(" "));
  else say(taken.length > 1 ? `${taken.length} images read.` : "Image read.");
  if (taken.length) take(taken);
}

/** Controls to choose image files, or to pick one of the images of the workspace. */
export function dropzone(take, { multiple = false, label = "Choose an image" } = {}) {
  const input = h("input", {
    type: "file",
    accept: "image/*,.ppm,.pgm,.pbm,.pnm", // browsers know no type for the last ones
    multiple,
    class: "visually-hidden",
    onchange: () => {
      takePictures([...input.files], take);
      input.value = "";
    },
  });
  return h(
    "div",
    { class: "dropzone" },
    h("label", { class: "button primary" }, label, input),
    hasImages() && h("button", { type: "button", onclick: () => pick(take) }, "Pick one of yours"),
    h("span", { class: "hint" }, "or drop it anywhere, or paste it"),
  );
}

/** Let the person pick one of the images of the workspace. */
export function pick(take) {
  let seed = Math.floor(Math.random() * 1e6);
  const grid = h("div", { class: "grid small" });
  const fill = async () => {
    const pictures = await get(`/api/pictures?${query({ seed: seed++, count: 30 })}`);
    const choose = (picture) => {
      dialog.close();
      take([picture]);
    };
    grid.replaceChildren(...pictures.map((picture) => pictureButton(picture, { onclick: () => choose(picture) })));
  };
  const dialog = modal("Pick an image", grid, h("button", { type: "button", onclick: fill }, "Show others"));
  fill().catch((err) => showFailure(err, grid));
}

/** Return the name and facts of a picture by its id. */
export async function describe(id, signal) {
  return get(`/api/pictures/${id}`, signal);
}

/** Return a random image of the workspace; undefined if it has none. */
async function anyPicture(signal) {
  const [first] = await get(`/api/pictures?${query({ seed: Math.floor(Math.random() * 1e6), count: 1 })}`, signal);
  return first;
}

/**
 * Return a function that passes the picture of an id to `take`; without an id, a random one unless there is one already.
 * A later choice cancels a request that is still running, so that a late answer never replaces it.
 */
export function choosing(take, fail) {
  let wanted = null;
  let taken = null;
  const choose = restarting(async (signal, id) => {
    const picture = id ? await describe(id, signal) : await anyPicture(signal);
    if (!picture) return;
    wanted = taken = picture.id;
    take(picture);
  });
  return (id) => {
    if (id ? id === wanted : wanted) return;
    wanted = id ?? "any";
    choose(id).catch((err) => {
      wanted = taken;
      fail(err);
    });
  };
}
