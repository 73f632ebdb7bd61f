// Search: the images most similar to one.

import { asked as wanted, remember } from "./address.js";
import { get, query, restarting } from "./api.js";
import { field, h, keepingFocus, notice, number, sayIgnored, select, showFailure, announce } from "./dom.js";
import { choosing, dropzone, openPicture, original, pictureButton, score, shortName, tileControls } from "./pictures.js";
import { lacks, workspace } from "./shared.js";

const DISTANCES = [
  ["whitened", "balanced similarity"],
  ["cosine", "cosine similarity"],
  ["l2", "Euclidean distance"],
];

const COUNTS = ["8", "24", "48", "100"];
const ALLOWED = { k: COUNTS, distance: DISTANCES.map(([name]) => name) };

const NOTHING_CLOSE =
  "Nothing in the index is close to this image: at most 1 % of the indexed images are as far from their nearest, or from the mean of all.";

export function mount(root) {
  const defaults = { picture: "", k: "24", distance: workspace.index?.distance };
  const state = { ...defaults, picture: null, found: [] };
  const asked = h("div", { class: "asked" });
  const found = h("div");
  const heading = h("h2", { tabindex: "-1" });
  const use = ([picture]) => {
    location.hash = `#search?picture=${picture.id}`;
  };

  const search = restarting(async (signal) => {
    if (!state.picture) return;
    const { id } = state.picture;
    const values = { picture: id, k: state.k, distance: state.distance };
    const started = performance.now();
    found.setAttribute("aria-busy", "true");
    let answer;
    try {
      answer = await get(`/api/search?${query(values)}`, signal);
    } finally {
      found.removeAttribute("aria-busy");
    }
    state.found = answer.neighbours;
    const took = Math.round(performance.now() - started);
    const head = h(
        "div",
        { class: "row between" },
        h("p", { class: "hint" }, `${answer.neighbours.length} nearest of ${number(workspace.index.images)} in ${took} ms. `,
          answer.similarity ? "1 means identical." : "0 means identical.",
          " After each score: the share of indexed images whose own nearest neighbour is no nearer."),
        h("a", { class: "button", href: `/api/search.csv?${query(values)}`, download: "neighbours.csv" }, "Save CSV"),
      );
    const grid = h("div", { class: "grid sized" }, answer.neighbours.map((near) => neighbour(near, answer.similarity)));
    const far = answer.nothing_close ? [notice({ message: NOTHING_CLOSE })] : [];
    keepingFocus(found, () => found.replaceChildren(...far, head, grid), () => heading);
    announce(`${answer.neighbours.length} nearest of ${shortName(state.picture)}.`);
  });
  const note = () => remember("search", { picture: state.picture?.id ?? "", k: state.k, distance: state.distance }, defaults);
  const run = () => search().catch((err) => showFailure(err, found));

  const percentile = (near) => (near.percentile === null ? "" : ` · ${near.percentile.toFixed(1)} %`);

  const neighbour = (near, isSimilarity) =>
    h(
      "div",
      { class: "cell" },
      pictureButton(near, {
        caption: `${score(near.score, isSimilarity)}${percentile(near)}${near.gone ? " (gone)" : ""}`,
        title: `${near.name}: search from this image`,
        onclick: () => use([near]),
      }),
      h("button", { type: "button", class: "icon open", "aria-label": `Open ${shortName(near)}`, title: "Open", onclick: () => openPicture(near, state.found) }, "⤢"),
    );

  const choose = choosing(
    (picture) => {
      state.picture = picture;
      if (!root.hidden) note();
      heading.textContent = shortName(picture);
      // The pressed neighbour is about to be removed, so focus moves to the heading of the new query.
      const isPressed = found.contains(document.activeElement) || asked.contains(document.activeElement);
      asked.replaceChildren(
        h("button", { type: "button", class: "picture query", title: picture.name, onclick: () => openPicture(picture) }, original(picture, 320)),
        h("div", {}, heading, h("p", { class: "hint" }, "The most similar images are below.")),
      );
      if (isPressed) heading.focus();
      run();
    },
    (err) => showFailure(err, found),
  );

  root.append(h("p", { class: "lead" }, `The pictures most like one of yours${workspace.index ? `, compared by ${workspace.index.compared}` : ""}. Press one to search from it.`));
  const lacking = lacks("search");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  const choice = (name, options) =>
    select(options, state[name], (value) => {
      state[name] = value;
      note();
      run();
    });
  const choices = { k: choice("k", COUNTS.map((k) => [k, k])), distance: choice("distance", DISTANCES) };
  root.append(
    h(
      "div",
      { class: "toolbar" },
      dropzone(use, { label: "Choose an image" }),
      field("Neighbours", choices.k),
      field("Compared by", choices.distance),
      tileControls(),
    ),
    asked,
    found,
  );

  return {
    take: use,
    show(params) {
      const { state: given, wrong } = wanted(params, { picture: "", k: state.k, distance: state.distance }, ALLOWED);
      sayIgnored(wrong);
      const isOther = ["k", "distance"].some((name) => given[name] !== state[name]);
      for (const name of ["k", "distance"]) choices[name].value = state[name] = given[name];
      if (isOther) run();
      choose(given.picture);
      note();
    },
  };
}
