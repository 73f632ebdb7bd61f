// Pictures: as buttons, in a window with their actions, and read from files.

import { get, getBlob, imageUrl, query, restarting, upload } from "/static/api.js";
import { h, keepingFocus, number, say, save as saveFile, showFailure, announce } from "/static/dom.js";
import { MORPH_MOST, canGenerate, hasImages, morphing, workspace } from "/static/shared.js";

/** The last part of a picture's path. */
export function shortName(picture) {
  return picture.name.split("/").pop();
}

export function image(picture, part = "", alt = null) {
  const { width, height } = workspace;
  return h("img", { src: imageUrl(picture.id, part), alt: alt ?? shortName(picture), width, height, decoding: "async" });
}

/** A picture to press. By default its window opens. */
export function pictureButton(picture, { caption = null, onclick = null, title = null } = {}) {
  return h(
    "button",
    { type: "button", class: "picture", title: title ?? picture.name, onclick: onclick ?? (() => openPicture(picture)) },
    image(picture),
    caption === null ? null : h("span", { class: "caption" }, caption),
  );
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

function modal(title, ...content) {
  const heading = h("h2", { id: "dialog-title", tabindex: "-1" }, title);
  const close = h("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×");
  const dialog = h(
    "dialog",
    { "aria-labelledby": "dialog-title", onclose: () => dialog.remove() },
    h("div", { class: "dialog-head" }, heading, close),
    ...content,
  );
  // A click outside the content reaches the dialog itself, and closes it.
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

const PARTS = [
  ["", "Image"],
  ["reconstruction", "Reconstruction"],
  ["difference", "Difference"],
];

/** Open the window of a picture: large, with its neighbours and its actions. */
export function openPicture(picture) {
  const body = h("div", { class: "viewer" });
  const dialog = modal(shortName(picture), body);
  const neighbours = restarting(async (signal, of, place) => {
    const found = await get(`/api/search?${query({ picture: of.id, k: 8 })}`, signal);
    place.replaceChildren(
      h("h3", {}, "Most similar"),
      h(
        "div",
        { class: "grid tiny" },
        found.neighbours.map((near) =>
          pictureButton(near, { caption: score(near.score, found.similarity), onclick: () => show(near) }),
        ),
      ),
    );
    announce(`${found.neighbours.length} neighbours of ${shortName(of)}.`);
  });
  const show = (of) => {
    const heading = dialog.querySelector("#dialog-title");
    heading.textContent = shortName(of);
    const near = h("div", { class: "near" });
    const about = h("div", { class: "about" }, facts(of), ...actions(of, dialog), near);
    keepingFocus(body, () => body.replaceChildren(largeView(of), about), () => heading);
    if (workspace.index) neighbours(of, near).catch((err) => showFailure(err, near));
    body.scrollTop = 0;
  };
  show(picture);
}

function largeView(picture) {
  const frame = h("div", { class: "frame" }, image(picture));
  const legend = h("p", { class: "hint", hidden: true }, heatLegend());
  const show = (part, text) => {
    legend.hidden = part !== "difference";
    frame.replaceChildren(image(picture, part, `${shortName(picture)}, ${text.toLowerCase()}`));
    for (const button of switches.children) {
      button.setAttribute("aria-pressed", String(button.dataset.part === part));
    }
  };
  const switches = h(
    "div",
    { class: "switches", role: "group", "aria-label": "View" },
    PARTS.map(([part, text]) =>
      h(
        "button",
        { type: "button", "data-part": part, "aria-pressed": String(part === ""), onclick: () => show(part, text) },
        text,
      ),
    ),
  );
  return h("div", { class: "large" }, frame, switches, legend);
}

function facts(picture) {
  const known = [picture.label && `label ${picture.label}`, picture.split && `${picture.split} image`];
  if (picture.kind === "upload") known.push("added by you, kept in memory only");
  if (picture.kind === "sample") known.push("generated by the model");
  return h("p", { class: "facts" }, [picture.name, ...known].filter(Boolean).join(" · "));
}

function actions(picture, dialog) {
  const go = (hash) => () => {
    dialog.close();
    location.hash = hash;
  };
  const button = (text, onclick) => h("button", { type: "button", onclick }, text);
  const failure = h("div", { role: "status" });
  const save = async () => {
    saveFile(await getBlob(imageUrl(picture.id)), `${shortName(picture).replace(/\.\w+$/, "")}.png`);
  };
  const buttons = h(
    "div",
    { class: "actions" },
    button("Find similar", go(`#search?picture=${picture.id}`)),
    button("Add to morph", () => {
      if (!addToMorph([picture])) return;
      say(`In the morph: ${morphing.length} of ${MORPH_MOST}.`);
      if (morphing.length > 1) go("#morph")();
    }),
    button("Restore", go(`#restore?picture=${picture.id}`)),
    canGenerate() && button("Vary", go(`#generate?vary=${picture.id}`)),
    button("Save PNG", () => save().catch((err) => showFailure(err, failure))),
  );
  return [buttons, failure];
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
