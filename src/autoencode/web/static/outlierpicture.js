// The picture of Outliers under review, and beside it where it differs.

import { get, heatUrl, imageUrl, restarting } from "./api.js";
import { h, showFailure } from "./dom.js";
import { heatLegend, image, openPicture, original, shortName } from "./pictures.js";

const SIDE = 560;

/**
 * The picture, and beside it where it differs: the heat map never hides what one has to judge.
 * @param {any} picture @param {{by: string, hasMaps: boolean, isHeat: boolean, list: any[]}} how what it is compared with,
 *   whether that gives heat maps, whether they are shown, and what the arrows of its window go through
 */
export function sidesOf(picture, { by, hasMaps, isHeat, list }) {
  const shown = h("button", { type: "button", class: "picture whole", title: picture.name, onclick: () => openPicture(picture, list) }, original(picture, SIDE));
  const source = hasMaps ? picture.stands_out !== null && heatUrl(picture.id, by) : imageUrl(picture.id, "difference");
  const heat = h("img", { class: "heat", src: source, alt: source ? "where it differs" : "" });
  const caption = h("span", { class: "heat-caption" }, hasMaps ? meant(picture, by) : "; where the two differ: ", hasMaps ? null : heatLegend());
  const under = hasMaps ? original(picture, SIDE) : image(picture, "reconstruction", `${shortName(picture)}, reconstruction`);
  const other = h("figure", { class: "other" }, h("div", { class: "frame whole" }, under, heat), h("figcaption", {}, hasMaps ? "" : "reconstruction", caption));
  const both = h("div", { class: "sides" }, h("figure", {}, shown, h("figcaption", {}, "picture")), other);
  showHeat(both, isHeat, hasMaps);
  // Wide pictures lie above each other, tall ones side by side.
  const first = both.querySelector("img");
  const turn = () => both.classList.toggle("stacked", first.naturalWidth > 1.3 * first.naturalHeight);
  first.addEventListener("load", turn);
  if (first.complete) turn();
  return both;
}

/** Show the heat map or hide it; a picture that has maps is not shown twice without one. */
export function showHeat(both, isHeat, hasMaps) {
  both.querySelector(".heat").hidden = both.querySelector(".heat-caption").hidden = !isHeat;
  both.querySelector(".other").hidden = hasMaps && !isHeat;
}

/** What a heat map says about a picture: red and a box are beyond normal pictures, blue is the most unusual within them.
 * @param {{stands_out: boolean | null}} picture @param {string} by what it is compared with */
export function meant({ stands_out }, by) {
  if (stands_out === null) return "there is no map of this picture";
  if (stands_out) return `red: where it differs from ${by === "all" ? "the other" : "normal"} pictures; in the box most`;
  return "no place stands out: it is unusual as a whole, or not at all. Blue: its own most unusual places";
}

/** A note that the file of a picture is gone or has changed: what is shown of it then is what was packed. */
export function fileNote() {
  const element = h("div", { role: "status" });
  const ask = restarting(async (signal, picture) => {
    const { problem } = await get(`/api/pictures/${picture.id}/file`, signal);
    element.replaceChildren(problem ? h("p", { class: "notice warning" }, problem) : "");
  });
  const of = (picture) => {
    element.replaceChildren();
    ask(picture).catch((err) => showFailure(err, element));
  };
  return { element, of };
}
