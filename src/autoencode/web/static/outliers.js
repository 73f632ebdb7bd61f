// Outliers: one image at a time, the most unusual first, to keep or to drop.

import { get, imageUrl, post, query, restarting, waitFor } from "./api.js";
import { field, h, isTyping, keepingFocus, notice, number, percent, progressBar, say, showFailure, announce } from "./dom.js";
import { heatLegend, image, openPicture, pictureButton, score, shortName } from "./pictures.js";
import { lacks, workspace } from "./shared.js";

const PAGE = 50;
const MOST_ROWS = 200; // that one answer holds

export function mount(root) {
  // The queue is loaded from `from` to its length; positions count from the most unusual image of all.
  const state = { queue: [], from: 0, at: 0, total: 0, heat: false, rate: null, smallest: null };
  const others = new BroadcastChannel(`decisions ${workspace.launch}`); // to other windows of this page
  const pressed = [];
  let writing = Promise.resolve();
  let loading = null;
  const body = h("div");
  root.append(
    h("p", { class: "lead" }, "Images unlike those the model was trained on, the most unusual first. Keep or drop each, then save the list."),
    body,
  );

  const counts = h("p", { class: "counts" });
  const threshold = h("div", { class: "threshold" });
  const card = h("div", { class: "review" });
  const strip = h("div", { class: "strip", role: "group", "aria-label": "The queue", tabindex: "0" });

  async function start() {
    const lacking = lacks("outliers");
    if (lacking) {
      body.replaceChildren(notice(lacking));
      return;
    }
    const bar = progressBar("learning from normal images");
    body.replaceChildren(bar);
    try {
      const first = await waitFor(`/api/outliers?limit=${PAGE}`, bar.update);
      // If the decided images fill more than a page, the queue starts just before the first undecided one.
      const isFar = first.undecided >= first.queue.length;
      take(isFar ? await get(`/api/outliers?${query({ offset: first.undecided - 2, limit: PAGE })}`) : first);
    } catch (err) {
      showFailure(err, body, start);
      return;
    }
    if (!state.total) {
      body.replaceChildren(notice(new Error("There are no images to review.")));
      return;
    }
    body.replaceChildren(threshold, counts, card, strip, exports(), keysHelp());
    buildThreshold();
    show(state.found.undecided ?? 0);
    if (state.found.undecided === null) say("All images are decided.");
  }

  /** Add a part of the queue that lies before or after the loaded one. */
  function take(found) {
    const isBefore = found.offset < state.from;
    if (isBefore || !state.queue.length) state.from = found.offset;
    for (const [index, picture] of found.queue.entries()) state.queue[found.offset + index] = picture;
    state.total = found.images;
    state.rate ??= found.rate;
    state.smallest = found.smallest_rate;
    state.found = found;
    showCounts(found.counts);
    const items = found.queue.map((picture, index) => stripItem(picture, found.offset + index));
    if (isBefore) strip.prepend(...items);
    else strip.append(...items);
  }

  function inStrip(index) {
    return strip.children[index - state.from];
  }

  function buildThreshold() {
    const [low, high] = [Math.log(state.smallest), Math.log(0.5)];
    const text = h("p", { role: "status" });
    const report = ({ rate, flagged, images, measured, calibration_images }) => {
      const seen = measured ? ` It flags ${percent(measured.share)} (${percent(measured.low)} to ${percent(measured.high)}) of the validation images.` : "";
      text.replaceChildren(
        h("strong", {}, `Flags ${number(flagged)} of ${number(images)} images.`),
        ` At most ${percent(rate)} of normal images should be flagged by mistake, calibrated on ${number(calibration_images)} test images.${seen}`,
      );
      for (const [index, item] of [...strip.children].entries()) mark(item, state.queue[state.from + index]);
    };
    const ask = restarting(async (signal, rate) => report(await get(`/api/outliers?${query({ rate, limit: 1 })}`, signal)));
    const slider = h("input", {
      type: "range",
      min: low,
      max: high,
      step: (high - low) / 200,
      value: Math.log(state.rate),
      oninput: () => {
        state.rate = Math.min(0.5, Math.max(state.smallest, Math.exp(Number(slider.value))));
        slider.setAttribute("aria-valuetext", percent(state.rate));
        ask(state.rate).catch((err) => showFailure(err));
      },
      "aria-valuetext": percent(state.rate),
    });
    threshold.replaceChildren(field("False positive rate", slider), text);
    report(state.found);
  }

  function showCounts({ keep, drop }) {
    counts.textContent = `${number(keep)} kept, ${number(drop)} dropped. Saved as you decide.`;
  }

  function stripItem(picture, index) {
    const button = pictureButton(picture, { onclick: () => show(index) });
    button.querySelector("img").loading = "lazy"; // there can be thousands
    mark(button, picture);
    return button;
  }

  function mark(button, picture) {
    button.classList.toggle("flagged", picture.p_value <= state.rate);
    button.classList.toggle("keep", picture.decision === "keep");
    button.classList.toggle("drop", picture.decision === "drop");
    button.title = `${picture.name}, ${picture.decision ?? "not decided"}`;
    button.querySelector("img").alt = `${shortName(picture)}${picture.decision ? `, ${picture.decision}` : ""}`;
  }

  const neighbours = restarting(async (signal, picture, place) => {
    const found = await get(`/api/search?${query({ picture: picture.id, k: 6 })}`, signal);
    place.replaceChildren(
      h("h3", {}, "Most similar"),
      h("div", { class: "grid tiny" }, found.neighbours.map((near) => pictureButton(near, { caption: score(near.score, found.similarity) }))),
    );
  });

  function show(index) {
    state.at = Math.max(state.from, Math.min(index, state.queue.length - 1));
    const picture = state.queue[state.at];
    const near = h("div", { class: "near" });
    const parts = [sides(picture), h("div", {}, about(picture), decide(picture), near)];
    keepingFocus(card, () => card.replaceChildren(...parts), () => card.querySelector("h2"));
    announce(`${state.at + 1} of ${state.total}: ${shortName(picture)}, score ${number(picture.score, 2)}, ${picture.decision ?? "not decided"}.`);
    if (workspace.index) neighbours(picture, near).catch((err) => showFailure(err, near));
    for (const item of strip.children) item.removeAttribute("aria-current");
    const current = inStrip(state.at);
    current.setAttribute("aria-current", "true");
    strip.scrollTo({ left: current.offsetLeft - strip.clientWidth / 2 + current.clientWidth / 2 });
    if (state.at > state.queue.length - 10 && state.queue.length < state.total) more().catch((err) => showFailure(err));
  }

  /** Load the next page of the queue; calls made while it loads share the request. */
  function more() {
    loading ??= loadMore().finally(() => (loading = null));
    return loading;
  }

  async function loadMore() {
    take(await get(`/api/outliers?${query({ rate: state.rate, offset: state.queue.length, limit: PAGE })}`));
  }

  async function loadEarlier() {
    const offset = Math.max(0, state.from - PAGE);
    take(await get(`/api/outliers?${query({ rate: state.rate, offset, limit: state.from - offset })}`));
  }

  function sides(picture) {
    const heat = h("img", { class: "heat", src: imageUrl(picture.id, "difference"), alt: "where the two differ", width: workspace.width, height: workspace.height });
    heat.hidden = !state.heat;
    const caption = h("span", { class: "heat-caption" }, " and where it differs: ", heatLegend());
    caption.hidden = !state.heat;
    const original = h("figure", {}, h("div", { class: "frame" }, image(picture), heat), h("figcaption", {}, "image", caption));
    const restored = h("figure", {}, h("div", { class: "frame" }, image(picture, "reconstruction", `${shortName(picture)}, reconstruction`)), h("figcaption", {}, "reconstruction"));
    return h("div", { class: "sides" }, original, restored);
  }

  function about(picture) {
    const facts = [`score ${number(picture.score, 2)}`, `p ${picture.p_value.toPrecision(2)}`, `${picture.split} image`, picture.label];
    return h(
      "div",
      {},
      h("h2", { tabindex: "-1" }, shortName(picture)),
      h("p", { class: "facts" }, `${number(state.at + 1)} of ${number(state.total)} · ${facts.filter(Boolean).join(" · ")}`),
    );
  }

  function decide(picture) {
    const button = (text, key, onclick, more = {}) =>
      h("button", { type: "button", onclick, ...more, "aria-keyshortcuts": key, "data-focus": key }, text, h("kbd", {}, key));
    return h(
      "div",
      { class: "actions decide" },
      button("Keep", "K", () => press(() => write("keep")), { class: "keep", "aria-pressed": String(picture.decision === "keep") }),
      button("Drop", "D", () => press(() => write("drop")), { class: "drop", "aria-pressed": String(picture.decision === "drop") }),
      button("Undo", "U", () => press(undo)),
      button("Back", "P", () => press(back)),
      button("Next", "N", () => press(next)),
      button("Heat-map", "H", toggleHeat, { class: "heat-toggle", "aria-pressed": String(state.heat) }),
      h("button", { type: "button", onclick: () => openPicture(picture), "data-focus": "open" }, "Open"),
    );
  }

  /** Show the next image at once; decisions are written one at a time, in the order they were made. */
  function write(decision) {
    const index = state.at;
    const picture = state.queue[index];
    const before = picture.decision;
    const set = (value) => {
      picture.decision = value;
      mark(inStrip(index), picture);
    };
    set(decision);
    writing = writing
      .then(async () => {
        const { counts: now } = await post("/api/decisions", { picture: picture.id, decision });
        showCounts(now);
        others.postMessage({ name: picture.name, counts: now });
        say(`${shortName(picture)}: ${decision}.`);
      })
      .catch((err) => {
        set(before);
        show(index);
        showFailure(err);
      });
    return next();
  }

  function undo() {
    writing = writing
      .then(async () => {
        const { undone, counts: now } = await post("/api/decisions/undo");
        showCounts(now);
        if (undone === null) return say("There is nothing to undo.");
        others.postMessage({ name: undone, counts: now });
        say(`Undone: ${undone.split("/").pop()}.`);
        const index = await lookAgain(undone);
        return index < 0 ? null : show(index);
      })
      .catch((err) => showFailure(err));
    return writing; // the next key applies to the image that this shows
  }

  /** Reload the decision about an image; return its position, or -1 if it is not loaded here. */
  async function lookAgain(name) {
    const index = state.queue.findIndex((picture) => picture?.name === name);
    if (index < 0) return index;
    const { queue } = await get(`/api/outliers?${query({ offset: index, limit: 1 })}`);
    state.queue[index].decision = queue[0].decision;
    mark(inStrip(index), state.queue[index]);
    return index;
  }

  others.onmessage = async ({ data }) => {
    if (!state.total) return;
    showCounts(data.counts);
    try {
      if ((await lookAgain(data.name)) === state.at) show(state.at);
    } catch (err) {
      showFailure(err);
    }
  };

  /** Load decisions made in other browsers, when this page is shown again. */
  async function catchUp() {
    for (let offset = state.from; offset < state.queue.length; offset += MOST_ROWS) {
      const part = state.queue.slice(offset, offset + MOST_ROWS);
      const before = part.map(({ decision }) => decision);
      const { queue, counts: now } = await get(`/api/outliers?${query({ offset, limit: part.length })}`);
      showCounts(now);
      for (const [place, picture] of part.entries()) {
        const { decision } = queue[place];
        if (picture.decision !== before[place] || decision === before[place]) continue;
        picture.decision = decision;
        mark(inStrip(offset + place), picture);
        if (offset + place === state.at) show(state.at);
      }
    }
  }

  const lookAnew = () => {
    if (state.total && !document.hidden) writing = writing.then(catchUp).catch((err) => showFailure(err));
  };
  document.addEventListener("visibilitychange", lookAnew);

  async function next() {
    if (state.at + 1 === state.queue.length && state.queue.length < state.total) await more();
    show(state.at + 1);
  }

  async function back() {
    if (state.at === state.from && state.from > 0) await loadEarlier();
    show(state.at - 1);
  }

  /** Run actions in the order they were pressed: one about an image that is still loading waits for it. */
  async function press(act) {
    pressed.push(act);
    if (pressed.length > 1) return;
    try {
      while (pressed.length) {
        await pressed[0]();
        pressed.shift();
      }
    } catch (err) {
      pressed.length = 0;
      showFailure(err);
    }
  }

  function toggleHeat() {
    state.heat = !state.heat;
    card.querySelector(".heat").hidden = !state.heat;
    card.querySelector(".heat-caption").hidden = !state.heat;
    card.querySelector(".heat-toggle").setAttribute("aria-pressed", String(state.heat));
  }

  const keys = { k: () => write("keep"), d: () => write("drop"), u: undo, n: next, p: back, h: toggleHeat };
  start();
  return {
    show: lookAnew,
    key(event) {
      const act = keys[event.key.toLowerCase()];
      if (!act || isTyping(event) || !state.total) return;
      event.preventDefault();
      // A held key repeats: it may move through the queue, but decides about one image only.
      if (event.repeat && act !== next && act !== back) return;
      press(act);
    },
  };
}

function exports() {
  const link = (href, name, text) => h("a", { class: "button", href, download: name }, text);
  return h(
    "div",
    { class: "actions" },
    link("/api/outliers.csv", "outliers.csv", "Save all as CSV"),
    link("/api/decisions/drop.txt", "drop.txt", "List of dropped files"),
    link("/api/decisions/keep.txt", "keep.txt", "List of kept files"),
  );
}

function keysHelp() {
  return h(
    "p",
    { class: "hint" },
    "Keys: K keep, D drop, U undo, N next, P back, H heat-map. The lists have one path per line, for a script that moves " +
      "or copies those files.",
  );
}
