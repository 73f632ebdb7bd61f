// Map: every image as a point, and as a picture where there is room. Drag to move, wheel or pinch to zoom.

import { getBuffer, waitFor } from "./api.js";
import { h, notice, progressBar, showFailure } from "./dom.js";
import { MapView } from "./mapview.js";
import { Points } from "./points.js";
import { lacks } from "./shared.js";

export function mount(root) {
  root.classList.add("wide");
  const lacking = lacks("map");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  let view = null;
  let wanted = null;
  const start = async () => {
    const bar = progressBar("encoding images");
    const place = h("div", {}, bar);
    root.append(place);
    try {
      const { about, points } = await load(bar);
      view = new MapView(root, about, points, load);
      place.remove();
      view.open(wanted);
    } catch (err) {
      showFailure(err, place, () => {
        place.remove();
        start();
      });
    }
  };
  start();
  return {
    show(params) {
      wanted = params;
      view?.resize();
      view?.open(params);
    },
    key: (event) => view?.key(event),
    help: [["arrows", "move the map"], ["+ − 0", "zoom in, zoom out, show all"], ["Enter", "open the picture in the middle, or select what the rectangle holds"], ["Shift and arrows", "open a rectangle, and resize it"], ["Escape", "close the rectangle, select none"], ["Shift and drag", "draw around some"]],
  };
}

/** Lay the images out and load their points. */
async function load(bar, layout = "pca", signal = undefined) {
  const about = await waitFor(`/api/map?layout=${layout}`, bar.update, signal);
  return { about, points: new Points(await getBuffer(`/api/map/points?layout=${layout}`, signal), about.images) };
}
