// The map with its controls and its side panel: layouts, colours, and what is selected.

import { asked, remember } from "./address.js";
import { get, getBuffer, post, query, restarting, waitFor } from "./api.js";
import { groupOf, legend, paint } from "./colours.js";
import { counted, field, h, notice, number, progressBar, sayIgnored, select, showFailure } from "./dom.js";
import { MapCanvas } from "./mapcanvas.js";
import { MapGestures } from "./mapgestures.js";
import { describe, openPicture, original, pictureButton } from "./pictures.js";
import { Points, liesApart } from "./points.js";
import { selection } from "./selection.js";
import { lacks, workspace } from "./shared.js";

const LISTED = 48;
// UMAP takes 11 s of a core up to 450 pictures, most of it to load its libraries, 15 s for 2,000 and less than a minute for the
// most; fewer are too few neighbours of each other.
const [FEWEST_BY_NEIGHBOURS, MOST_BY_NEIGHBOURS] = [50, 12000];
// Colours that wait for work, with what they wait for.
const WORK = {
  score: { part: "score", words: "scoring images", address: () => `/api/outliers?${query({ by: workspace.bases[0][0], limit: 1 })}` },
  copies: { part: "copies", words: "looking for copies", address: () => "/api/duplicates?limit=1" },
};

/** The layout that a map comes to by itself. @param {number} images @param {boolean} isThere UMAP is installed */
export function layoutOf(images, isThere) {
  return isThere && images >= FEWEST_BY_NEIGHBOURS && images <= MOST_BY_NEIGHBOURS ? "umap" : "pca";
}

export class MapView {
  constructor(root, about, points, load) {
    const hasGroups = about.groups.length > 1;
    // Labels that do not separate, such as folders by year, would colour the map at random.
    const isApart = about.labels.length && (!hasGroups || liesApart(points, points.label));
    const mode = isApart ? "label" : hasGroups ? "group" : about.known.includes("score") ? "score" : workspace.kind ? "split" : "none";
    this.about = about;
    this.load = load;
    this.mode = mode;
    this.layout = "pca";
    const canvas = h("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label": `Map of ${number(about.images)} images`,
      "aria-describedby": "map-keys",
    });
    // Progress appears beside its control: below the map it would be out of sight.
    this.laying = h("div", { class: "waits" });
    this.scoring = h("div", { class: "waits" });
    const stage = h("div", { class: "map-stage" }, canvas, this.#zoomButtons());
    this.map = new MapCanvas(canvas, about, points);
    this.gestures = new MapGestures(this.map, {
      letter: about.letter,
      choose: (places) => selection.replace(places),
      clear: () => this.clear(),
      open: (place) => describe(`${about.letter}${place}`).then(openPicture).catch((err) => showFailure(err)),
      lassoed: (isLasso) => this.lassoButton.setAttribute("aria-pressed", String(isLasso)),
    });
    this.key_ = h("div", { class: "legend" });
    this.list = h("div", { class: "chosen" });
    const panel = h("aside", { class: "map-panel", "aria-label": "Map" }, this.#toolbar(), this.laying, this.scoring, this.key_, this.list, keysHelp());
    root.append(h("div", { class: "map" }, stage, panel));
    this.#takeSelection();
    this.recolour();
    new ResizeObserver(() => this.map.resize()).observe(stage);
    selection.addEventListener("change", () => this.#takeSelection());
    addEventListener("theme", () => this.recolour());
    this.firstLayout = layoutOf(about.images, !lacks("umap"));
  }

  /** Take the state of the address, or begin by oneself with the layout that shows most. */
  open(params) {
    const values = (control) => [...control.options].map(({ value }) => value);
    const allowed = { layout: values(this.layouts), colour: values(this.colouring) };
    const { state, wrong } = asked(params ?? new URLSearchParams(), { layout: "", colour: "" }, allowed);
    const { layout, colour: mode } = state;
    sayIgnored(wrong);
    if (mode && mode !== this.mode) {
      this.colouring.value = mode;
      this.setMode(mode);
    }
    const wanted = layout || (this.isOpened ? "" : this.firstLayout);
    this.isOpened = true;
    if (wanted) {
      this.layouts.value = wanted;
      this.setLayout(wanted).catch((err) => showFailure(err, this.laying));
    }
    this.#remember();
  }

  #remember() {
    // The layout that is asked for, also while it is computed.
    const state = { layout: this.layouts.value, colour: this.mode };
    remember("map", state, { layout: this.firstLayout, colour: this.firstMode });
  }

  #zoomButtons() {
    const button = (text, label, onclick) => h("button", { type: "button", "aria-label": label, title: label, onclick }, text);
    return h(
      "div",
      { class: "map-zoom" },
      button("+", "Zoom in", () => this.gestures.zoom(1.6)),
      button("−", "Zoom out", () => this.gestures.zoom(1 / 1.6)),
      button("⤢", "Show all", () => this.map.reset(true)),
    );
  }

  #toolbar() {
    const modes = [workspace.kind ? ["split", "part"] : ["none", "nothing"]];
    if (workspace.bases.length) modes.push(["score", "outlier score"]);
    if (!lacks("duplicates")) modes.push(["copies", "copies"]);
    if (this.about.groups.length > 1) modes.unshift(["group", "similar pictures"]);
    if (this.about.labels.length) modes.unshift(["label", "label"]);
    this.firstMode = this.mode;
    const button = (text, onclick, more = {}) => h("button", { type: "button", class: "small", onclick, ...more }, text);
    this.lassoButton = button("Draw around some", () => this.gestures.setLasso(!this.gestures.isLasso), { "aria-pressed": "false" });
    this.colouring = select(modes, this.mode, (mode) => this.setMode(mode));
    this.layouts = select([["pca", "distance (PCA)"], ["umap", "neighbours (UMAP)"]], this.layout, (layout) => this.setLayout(layout));
    this.hint = h("p", { class: "hint" }, said(this.about));
    const pictures = button("Pictures", () => {
      this.map.hasPictures = !this.map.hasPictures;
      pictures.setAttribute("aria-pressed", String(this.map.hasPictures));
      this.map.draw();
    }, { "aria-pressed": "true" });
    return h(
      "div",
      { class: "map-tools" },
      field("Lay out by", this.layouts),
      field("Colour by", this.colouring),
      h("div", { class: "actions" }, pictures, this.lassoButton, button("Select what is visible", () => selection.replace(this.map.seen()))),
      this.hint,
    );
  }

  setLayout = restarting(async (signal, layout) => {
    const lacking = layout === "umap" && lacks("umap");
    if (lacking) {
      this.layouts.value = this.layout;
      this.laying.replaceChildren(notice(lacking));
      return null;
    }
    this.laying.replaceChildren();
    if (layout === this.layout) return this.#remember();
    const bar = progressBar("laying out images", () => this.#keepLayout(layout));
    this.laying.replaceChildren(bar);
    try {
      const { about, points } = await this.load(bar, layout, signal);
      if (signal.aborted) return null;
      points.choose(selection.positions());
      // What was asked for meanwhile came with the one or the other.
      for (const part of this.about.known.filter((one) => !about.known.includes(one))) {
        points[part].set(this.map.points[part]);
        about.known.push(part);
      }
      this.layout = layout;
      this.about = about;
      this.layouts.value = layout;
      this.map.glideTo(points);
    } catch (err) {
      if (signal.aborted) return null;
      this.layouts.value = this.layout;
      showFailure(err, this.laying);
      return null;
    }
    this.laying.replaceChildren();
    this.hint.textContent = said(this.about);
    this.recolour();
    return this.#remember();
  });

  /** Cancel the layout that is being computed. */
  async #keepLayout(layout) {
    this.layouts.value = this.layout;
    this.layouts.focus();
    await this.setLayout(this.layout);
    await post(`/api/map/cancel?layout=${layout}`).catch((err) => showFailure(err));
  }

  setMode = restarting(async (signal, mode) => {
    this.scoring.replaceChildren();
    const work = WORK[mode];
    if (work && !this.about.known.includes(work.part)) {
      const bar = progressBar(work.words);
      this.scoring.replaceChildren(bar);
      try {
        await waitFor(work.address(), bar.update, signal);
        const points = new Points(await getBuffer(`/api/map/points?layout=${this.layout}`, signal), this.about.images);
        if (signal.aborted) return;
        this.map.points[work.part].set(points[work.part]);
        this.about.known.push(work.part);
      } catch (err) {
        if (signal.aborted) return;
        showFailure(err, this.scoring);
        this.colouring.value = this.mode;
        return;
      }
    }
    this.scoring.replaceChildren();
    this.mode = mode;
    this.recolour();
    this.#remember();
  });

  recolour() {
    const { points } = this.map;
    paint(points, this.mode);
    const choose = (group) => selection.replace(groupOf(points, this.mode, group));
    this.key_.replaceChildren(legend(points, this.mode, this.about, choose, (picture) => original(picture, 56)));
    this.map.isNamed = this.mode === "label";
    this.map.hasLandmarks = this.mode === "group";
    this.map.draw();
  }

  resize() {
    this.map.resize();
  }

  key(event) {
    this.gestures.key(event);
  }

  clear() {
    // The pressed button is about to be removed.
    if (this.list.contains(document.activeElement)) this.map.canvas.focus();
    this.map.rectangle = null;
    selection.replace([]);
  }

  #takeSelection() {
    this.map.points.choose(selection.positions());
    this.map.rectangle = null;
    this.map.pickAnew();
    this.showChosen().catch((err) => showFailure(err, this.list));
  }

  showChosen = restarting(async (signal) => {
    const places = this.map.points.places();
    if (!places.length) {
      this.list.replaceChildren();
      return;
    }
    const pictures = await post("/api/map/chosen", { positions: places.slice(0, LISTED) }, signal);
    this.list.replaceChildren(
      h(
        "div",
        { class: "row between" },
        h("h2", {}, `${counted(places.length, "image")} selected`),
        h("button", { type: "button", class: "small", onclick: () => this.clear() }, "Clear"),
      ),
      h("div", { class: "grid tiny" }, pictures.map((picture) => pictureButton(picture, { list: pictures, size: 80 }))),
      places.length > pictures.length ? h("p", { class: "hint" }, `The first ${pictures.length} are shown; “Show” below has all.`) : "",
    );
  });
}

function said({ explained, by }) {
  if (explained === null) return `Compared by ${by}. Similar pictures lie together; distances between groups mean little.`;
  return `Compared by ${by}, along the two directions in which the pictures differ most: ${Math.round(100 * explained)} % of all differences.`;
}

function keysHelp() {
  return h(
    "p",
    { class: "hint", id: "map-keys" },
    "Shift and drag draws around some; a press on a group of the legend selects it. Keys: arrows move the map, + and − " +
      "zoom, 0 shows all, Enter opens the image in the middle. Shift and arrows open and resize a rectangle, Enter selects " +
      "the images in it, Escape closes it or deselects all.",
  );
}
