// The window of a picture: as large as the screen, with arrows to the next one, zoom, its facts and its actions.

import { windowOf, withWindow } from "./address.js";
import { get, getBlob, imageUrl, originalUrl, query, restarting, waitFor } from "./api.js";
import { curation } from "./curation.js";
import { announce, h, keepingFocus, number, progressBar, say, save as saveFile, showFailure } from "./dom.js";
import { followGestures, pointIn } from "./gestures.js";
import { addToMorph, heatLegend, pictureButton, score, shortName } from "./pictures.js";
import { MORPH_MOST, canGenerate, lacks, morphing, workspace } from "./shared.js";
import { FITTING, fitted, moved, neededSide, zoomed } from "./zoom.js";

const VIEWS = [
  ["original", "Picture"],
  ["", "Model's view"],
  ["reconstruction", "Reconstruction"],
  ["difference", "Difference"],
];
const STEP = 60; // pixels by which an arrow key moves a picture that is zoomed in

let part = "original"; // kept from picture to picture

/**
 * Open the window of a picture; `list` is what the arrows go through.
 * @param {{id: string}} picture @param {Array<any> | null} list it may grow
 * @param {{total: () => number, more: () => Promise<any>} | null} rest what the list will have once all is loaded, and how
 */
export function openPicture(picture, list = null, rest = null) {
  let pictures = list?.length ? list : [picture];
  const total = () => rest?.total() ?? pictures.length;
  let at = Math.max(0, pictures.findIndex(({ id }) => id === picture.id));
  if (!workspace.kind || workspace.kind === "restorer") part = "original";
  const heading = h("h2", { id: "viewer-title", tabindex: "-1" });
  const position = h("span", { class: "hint position" });
  const stage = new Stage();
  const panel = h("div", { class: "panel" });
  const views = h("div", { class: "switches", role: "group", "aria-label": "View" }, VIEWS.map(([name, text]) => viewButton(name, text)));
  views.hidden = !workspace.kind || workspace.kind === "restorer";
  const legend = h("p", { class: "hint", hidden: true }, heatLegend());
  const icon = (text, label, onclick, more = {}) => h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...more }, text);
  const back = icon("‹", "Previous picture", () => turn(-1), { class: "icon turn back" });
  const next = icon("›", "Next picture", () => turn(1), { class: "icon turn next" });
  const dialog = h(
    "dialog",
    { class: "viewer", "aria-labelledby": "viewer-title" },
    h(
      "div",
      { class: "viewer-head" },
      h("div", { class: "viewer-name" }, heading, position),
      views,
      h(
        "div",
        { class: "viewer-zoom" },
        icon("−", "Zoom out", () => stage.zoom(1 / 1.5)),
        icon("+", "Zoom in", () => stage.zoom(1.5)),
        icon("⤢", "Fit to the window", () => stage.reset()),
      ),
      icon("×", "Close", () => dialog.close(), { class: "icon close" }),
    ),
    h("div", { class: "viewer-body" }, h("div", { class: "stage-place" }, stage.element, back, next, legend), panel),
  );
  const note = inHistory(dialog, pictures[at].id);
  const behind = document.querySelector("main > section:not([hidden])");
  let shown = picture.id;
  let curated = null; // the controls of the picture that is shown
  const renew = () => curated?.refresh().catch((err) => showFailure(err));
  addEventListener("curated", renew);
  dialog.addEventListener("close", () => {
    removeEventListener("curated", renew);
    // The picture that was seen last has the keyboard then, not the first: its window was opened from there.
    const last = behind?.checkVisibility?.() !== false && /** @type {HTMLElement | null} */ (behind?.querySelector(`[data-picture="${CSS.escape(shown)}"]`));
    if (last) last.focus();
  });
  dialog.addEventListener("keydown", (event) => key(event));

  function viewButton(name, text) {
    return h("button", { type: "button", "data-part": name, onclick: () => look(name) }, text);
  }

  function look(name) {
    part = name;
    legend.hidden = part !== "difference";
    for (const button of views.children) button.setAttribute("aria-pressed", String(button.dataset.part === part));
    const text = VIEWS.find(([known]) => known === part)[1].toLowerCase();
    stage.show(pictures[at], part, part === "original" ? shortName(pictures[at]) : `${shortName(pictures[at])}, ${text}`);
  }

  const facts = restarting(async (signal, of, place) => {
    const about = await get(`/api/pictures/${of.id}/file`, signal);
    place.replaceChildren(...factRows(of, about));
  });
  const neighbours = restarting(async (signal, of, place) => {
    const found = await get(`/api/search?${query({ picture: of.id, k: 12 })}`, signal);
    const buttons = found.neighbours.map((near) =>
      pictureButton(near, { caption: score(near.score, found.similarity), onclick: () => into(found.neighbours, near) }),
    );
    place.replaceChildren(h("h3", {}, "Most similar"), h("div", { class: "grid tiny" }, buttons));
    announce(`${found.neighbours.length} neighbours of ${shortName(of)}.`);
  });

  /** What a sample is most like, on a page without an index: by codes, which takes a moment the first time. */
  const realOnes = restarting(async (signal, of, place) => {
    const bar = progressBar("encoding images");
    place.replaceChildren(bar);
    const found = await waitFor(`/api/generate/nearest?${query({ picture: of.id, k: 12 })}`, bar.update, signal);
    const buttons = found.neighbours.map((near) => pictureButton(near, { onclick: () => into(found.neighbours, near) }));
    place.replaceChildren(h("h3", {}, "Most similar real pictures, by their codes"), h("div", { class: "grid tiny" }, buttons));
    announce(`${found.neighbours.length} real pictures like ${shortName(of)}.`);
  });

  /** Go on from a neighbour: the arrows then go through the neighbours. */
  function into(list, near) {
    pictures = list;
    rest = null;
    at = list.indexOf(near);
    show();
  }

  function show() {
    const of = pictures[at];
    shown = of.id;
    note(of.id);
    curated = curation(of);
    renew();
    heading.textContent = shortName(of);
    position.textContent = total() > 1 ? `${number(at + 1)} of ${number(total())}` : "";
    back.hidden = next.hidden = pictures.length < 2;
    back.disabled = at === 0;
    next.disabled = at === total() - 1;
    const known = h("div", { class: "facts" });
    const near = h("div", { class: "near" });
    keepingFocus(panel, () => panel.replaceChildren(known, curated?.element ?? "", ...actions(of, dialog), near), () => heading);
    panel.scrollTop = 0;
    look(part);
    facts(of, known).catch((err) => showFailure(err, known));
    const isSample = of.kind === "sample" && !workspace.index && !lacks("nearest");
    if (isSample) realOnes(of, near).catch((err) => showFailure(err, near));
    if (workspace.index) neighbours(of, near).catch((err) => showFailure(err, near));
    announce(`${shortName(of)}${position.textContent && `, ${position.textContent}`}.`);
  }

  async function go(by) {
    // A decision may have taken the picture out of the list, and what follows it is in its place then.
    const now = pictures.findIndex(({ id }) => id === shown);
    const to = now >= 0 ? now + by : at + (by > 0 ? by - 1 : by);
    if (to < 0 || to >= total()) return;
    if (to >= pictures.length) await rest.more();
    if (!pictures[to]) return;
    at = to;
    show();
  }

  function turn(by) {
    go(by).catch((err) => showFailure(err, panel));
  }

  function key(event) {
    if (event.target.matches("input, select, textarea") || (event.key === " " && event.target.matches("button, a")) || event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (stage.isZoomed && event.key in moves) stage.move(...moves[event.key].map((way) => way * STEP));
    else if (event.key === "ArrowLeft") turn(-1);
    else if (event.key === "ArrowRight") turn(1);
    else if (event.key === "+" || event.key === "=") stage.zoom(1.5);
    else if (event.key === "-") stage.zoom(1 / 1.5);
    else if (event.key === "0") stage.reset();
    else if (event.key === "m" && !views.hidden) look(part === "original" ? "" : "original");
    else if (event.repeat || !curated?.key(event.key)) return;
    event.preventDefault();
  }

  document.body.append(dialog);
  dialog.showModal();
  show();
  heading.focus();
}

const NOTE_MS = 250; // Safari takes 100 changes of the address in half a minute, and an arrow key repeats faster
let windows = Date.now(); // each entry of the history names its own window, also after a reload

/**
 * Give a window an entry of the history, so that Back closes it and leaves the page behind as it is, and a reload opens it
 * again. Return what notes the picture it shows in the address.
 * @param {HTMLDialogElement} dialog @param {string} id of its first picture @returns {(id: string) => void}
 */
function inHistory(dialog, id) {
  // An address that names the picture is one of a reload, with its entry, or of a bookmark, with no page behind it.
  const isNamed = windowOf(location.hash) === id;
  const mine = (isNamed && history.state?.viewer) || ++windows;
  if (!isNamed) history.pushState({ viewer: mine }, "", withWindow(location.hash, id));
  else if (history.state?.viewer !== mine) history.replaceState({ viewer: mine, isFirst: true }, "");
  const isOnTop = () => history.state?.viewer === mine;
  const back = () => isOnTop() || dialog.close();
  let noting = 0;
  addEventListener("popstate", back);
  dialog.addEventListener("close", () => {
    clearTimeout(noting);
    removeEventListener("popstate", back);
    dialog.remove();
    if (!isOnTop()) return;
    if (history.state.isFirst) history.replaceState(null, "", withWindow(location.hash, null));
    else history.back();
  });
  return (now) => {
    clearTimeout(noting);
    noting = setTimeout(() => isOnTop() && history.replaceState(history.state, "", withWindow(location.hash, now)), NOTE_MS);
  };
}

/** The picture in the middle of the window, which can be zoomed and moved. */
class Stage {
  constructor() {
    this.picture = h("img", { draggable: "false" });
    this.element = h("div", { class: "frame" }, this.picture);
    this.view = FITTING;
    this.natural = { width: 1, height: 1 };
    this.picture.addEventListener("load", () => this.#loaded());
    this.element.addEventListener("dblclick", (event) => (this.isZoomed ? this.reset() : this.zoom(3, pointIn(this.element, event))));
    followGestures(this.element, {
      zoom: (factor, point) => this.zoom(factor, point),
      drag: (now, before) => this.move(now.x - before.x, now.y - before.y),
    });
    new ResizeObserver(() => this.#place()).observe(this.element);
  }

  get isZoomed() {
    return this.view.scale > 1;
  }

  show(picture, part, alt) {
    const isSame = this.id === picture.id;
    this.id = picture.id;
    this.part = part;
    this.side = 0;
    this.picture.alt = alt;
    if (!isSame) this.view = FITTING;
    this.element.classList.add("waiting");
    if (part === "original") this.#want();
    else this.picture.src = imageUrl(picture.id, part);
  }

  zoom(factor, point = { x: 0, y: 0 }) {
    this.view = zoomed(this.view, factor, point, this.fit, this.#size());
    this.#place();
  }

  move(dx, dy) {
    this.view = moved(this.view, dx, dy, this.fit, this.#size());
    this.#place();
  }

  reset() {
    this.view = FITTING;
    this.#place();
  }

  #size() {
    return { width: this.element.clientWidth || 1, height: this.element.clientHeight || 1 };
  }

  #loaded() {
    this.element.classList.remove("waiting");
    this.natural = { width: this.picture.naturalWidth || 1, height: this.picture.naturalHeight || 1 };
    this.picture.classList.toggle("pixelated", Math.max(this.natural.width, this.natural.height) <= 64);
    this.#place();
  }

  #place() {
    const size = this.#size();
    this.fit = fitted(this.natural, size);
    const { style } = this.picture;
    style.width = `${this.fit.width * this.view.scale}px`;
    style.height = `${this.fit.height * this.view.scale}px`;
    style.transform = `translate(calc(-50% + ${this.view.x}px), calc(-50% + ${this.view.y}px))`;
    this.element.classList.toggle("zoomed", this.isZoomed);
    if (this.part === "original") this.#want();
  }

  /** Ask for a larger file when the one at hand has too few pixels. */
  #want() {
    const size = this.#size();
    const shown = this.fit ? Math.max(this.fit.width, this.fit.height) * this.view.scale : Math.max(size.width, size.height);
    const side = neededSide(shown, devicePixelRatio || 1);
    if (side <= this.side) return;
    this.side = side;
    this.picture.src = originalUrl(this.id, side);
  }
}

const SIZES = ["bytes", "KB", "MB", "GB"];

/** A number of bytes for people. */
export function bytes(count) {
  const power = count ? Math.min(SIZES.length - 1, Math.floor(Math.log(count) / Math.log(1000))) : 0;
  return `${number(count / 1000 ** power, power > 1 ? 1 : 0)} ${SIZES[power]}`;
}

function factRows(picture, about) {
  const rows = [
    about.width && ["size", `${number(about.width)} × ${number(about.height)} pixels, ${bytes(about.bytes)}`],
    about.modified && ["changed", new Date(1000 * about.modified).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })],
    picture.label && ["label", picture.label],
    picture.split && ["part of", `the ${picture.split} images`],
    picture.score !== undefined && picture.score !== null && ["score", number(picture.score, 3)],
    picture.kind === "upload" && ["from", "added by you, kept in memory only"],
    picture.kind === "sample" && ["from", "generated by the model"],
  ].filter(Boolean);
  const path = about.path ?? picture.name;
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(path);
      say("Path copied.");
    } catch {
      getSelection().selectAllChildren(code);
      say("Selected. Copy it with Ctrl-C.");
    }
  };
  const code = h("code", {}, path);
  return [
    h("p", { class: "path" }, code, about.path ? h("button", { type: "button", class: "small", onclick: copy }, "Copy path") : null),
    about.problem ? h("p", { class: "notice warning" }, about.problem) : null,
    h("dl", {}, rows.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
  ].filter(Boolean);
}

function actions(picture, dialog) {
  const go = (hash) => () => {
    // In place of the window's own entry of the history: Back then leads to the page that it was opened from.
    history.replaceState(null, "", hash);
    dialog.close();
    dispatchEvent(new HashChangeEvent("hashchange"));
  };
  const button = (text, onclick) => h("button", { type: "button", onclick }, text);
  const failure = h("div", { role: "status" });
  const save = async () => {
    saveFile(await getBlob(imageUrl(picture.id)), `${shortName(picture).replace(/\.\w+$/, "")}.png`);
  };
  const buttons = h(
    "div",
    { class: "actions" },
    !lacks("search") && button("Find similar", go(`#search?picture=${picture.id}`)),
    !lacks("morph") &&
      button("Add to morph", () => {
        if (!addToMorph([picture])) return;
        say(`In the morph: ${morphing.length} of ${MORPH_MOST}.`);
        if (morphing.length > 1) go("#morph")();
      }),
    !lacks("restore") && button("Restore", go(`#restore?picture=${picture.id}`)),
    canGenerate() && button("Vary", go(`#generate?vary=${picture.id}`)),
    button("Save PNG", () => save().catch((err) => showFailure(err, failure))),
  );
  return [buttons, failure];
}
