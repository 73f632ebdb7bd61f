// Outliers: one image at a time, strangest first, to keep or to drop.

import { get, imageUrl, post, query, restarting, waitFor } from "/static/api.js";
import { field, h, isTyping, notice, number, percent, progressBar, say, showFailure } from "/static/dom.js";
import { image, openPicture, pictureButton, score, shortName } from "/static/pictures.js";
import { workspace } from "/static/shared.js";

export const title = "Outliers";

const PAGE = 50;

export function mount(root) {
  const state = { queue: [], at: 0, total: 0, heat: false, rate: null, smallest: null };
  const pressed = [];
  let writing = Promise.resolve();
  let loading = null;
  const body = h("div");
  root.append(
    h("p", { class: "lead" }, "Images unlike those the model was trained on, strangest first. Decide, and take the list with you."),
    body,
  );

  const counts = h("p", { class: "counts" });
  const threshold = h("div", { class: "threshold" });
  const card = h("div", { class: "review" });
  const strip = h("div", { class: "strip", role: "group", "aria-label": "The queue", tabindex: "0" });

  async function start() {
    const bar = progressBar("learning what is ordinary");
    body.replaceChildren(bar);
    try {
      take(await waitFor(`/api/outliers?limit=${PAGE}`, bar.update));
    } catch (err) {
      showFailure(err, body);
      return;
    }
    if (!state.total) {
      body.replaceChildren(notice(new Error("There are no images to review.")));
      return;
    }
    body.replaceChildren(threshold, counts, card, strip, exports(), keysHelp());
    buildThreshold();
    show(0);
  }

  function take(found) {
    state.queue.splice(found.offset, found.queue.length, ...found.queue);
    state.total = found.images;
    state.rate ??= found.rate;
    state.smallest = found.smallest_rate;
    state.found = found;
    showCounts(found.counts);
    strip.replaceChildren(...state.queue.map(stripItem));
  }

  function buildThreshold() {
    const [low, high] = [Math.log(state.smallest), Math.log(0.5)];
    const text = h("p", { role: "status" });
    const tell = ({ rate, flagged, images, measured, calibration_images }) => {
      const seen = measured ? ` Of the validation images it flags ${percent(measured.share)} (${percent(measured.low)} to ${percent(measured.high)}).` : "";
      text.replaceChildren(
        h("strong", {}, `Flags ${number(flagged)} of ${number(images)} images.`),
        ` At most ${percent(rate)} of ordinary images are flagged by mistake, calibrated on ${number(calibration_images)} test images.${seen}`,
      );
      for (const [index, item] of [...strip.children].entries()) mark(item, state.queue[index]);
    };
    const ask = restarting(async (signal, rate) => tell(await get(`/api/outliers?${query({ rate, limit: 1 })}`, signal)));
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
    threshold.replaceChildren(field("Expected false alarms", slider), text);
    tell(state.found);
  }

  function showCounts({ keep, drop }) {
    counts.textContent = `${number(keep)} kept, ${number(drop)} dropped. Written down as you decide.`;
  }

  function stripItem(picture, index) {
    const button = pictureButton(picture, {
      title: `${picture.name}, ${picture.decision ?? "not decided"}`,
      onclick: () => show(index),
    });
    mark(button, picture);
    return button;
  }

  function mark(button, picture) {
    button.classList.toggle("flagged", picture.p_value <= state.rate);
    button.classList.toggle("keep", picture.decision === "keep");
    button.classList.toggle("drop", picture.decision === "drop");
    button.querySelector("img").alt = `${shortName(picture)}${picture.decision ? `, ${picture.decision}` : ""}`;
  }

  const neighbours = restarting(async (signal, picture, place) => {
    const found = await get(`/api/search?${query({ picture: picture.id, k: 6 })}`, signal);
    place.replaceChildren(
      h("h3", {}, "Looks most like"),
      h("div", { class: "grid tiny" }, found.neighbours.map((near) => pictureButton(near, { caption: score(near.score, found.similarity) }))),
    );
  });

  function show(index) {
    state.at = Math.max(0, Math.min(index, state.queue.length - 1));
    const picture = state.queue[state.at];
    const near = h("div", { class: "near" });
    card.replaceChildren(sides(picture), h("div", {}, about(picture), decide(picture), near));
    if (workspace.index) neighbours(picture, near).catch((err) => showFailure(err, near));
    for (const item of strip.children) item.removeAttribute("aria-current");
    const current = strip.children[state.at];
    current.setAttribute("aria-current", "true");
    strip.scrollTo({ left: current.offsetLeft - strip.clientWidth / 2 + current.clientWidth / 2 });
    if (state.at > state.queue.length - 10 && state.queue.length < state.total) more().catch((err) => showFailure(err));
  }

  /** Load the next page of the queue; who asks while it comes waits for the same. */
  function more() {
    loading ??= loadMore().finally(() => (loading = null));
    return loading;
  }

  async function loadMore() {
    const found = await get(`/api/outliers?${query({ rate: state.rate, offset: state.queue.length, limit: PAGE })}`);
    const at = strip.scrollLeft;
    take(found);
    strip.scrollLeft = at;
    strip.children[state.at]?.setAttribute("aria-current", "true");
  }

  function sides(picture) {
    const heat = h("img", { class: "heat", src: imageUrl(picture.id, "difference"), alt: "where the two differ", width: workspace.width, height: workspace.height });
    heat.hidden = !state.heat;
    const original = h("figure", {}, h("div", { class: "frame" }, image(picture), heat), h("figcaption", {}, "image"));
    const restored = h("figure", {}, h("div", { class: "frame" }, image(picture, "reconstruction", `${shortName(picture)}, reconstruction`)), h("figcaption", {}, "reconstruction"));
    return h("div", { class: "sides" }, original, restored);
  }

  function about(picture) {
    const facts = [`score ${number(picture.score, 2)}`, `p ${picture.p_value.toPrecision(2)}`, `${picture.split} image`, picture.label];
    return h(
      "div",
      {},
      h("h2", {}, shortName(picture)),
      h("p", { class: "facts" }, `${number(state.at + 1)} of ${number(state.total)} · ${facts.filter(Boolean).join(" · ")}`),
    );
  }

  function decide(picture) {
    const button = (text, key, onclick, more = {}) =>
      h("button", { type: "button", onclick, ...more, "aria-keyshortcuts": key }, text, h("kbd", {}, key));
    return h(
      "div",
      { class: "actions decide" },
      button("Keep", "K", () => press(() => write("keep")), { class: "keep", "aria-pressed": String(picture.decision === "keep") }),
      button("Drop", "D", () => press(() => write("drop")), { class: "drop", "aria-pressed": String(picture.decision === "drop") }),
      button("Undo", "U", () => press(undo)),
      button("Back", "P", () => press(back)),
      button("Next", "N", () => press(next)),
      button("Heat-map", "H", toggleHeat, { class: "heat-toggle", "aria-pressed": String(state.heat) }),
      h("button", { type: "button", onclick: () => openPicture(picture) }, "Open"),
    );
  }

  /** The next image comes at once; the decisions reach the disk one at a time, in the order they were made. */
  function write(decision) {
    const index = state.at;
    const picture = state.queue[index];
    const before = picture.decision;
    const set = (value) => {
      picture.decision = value;
      mark(strip.children[index], picture);
    };
    set(decision);
    writing = writing
      .then(async () => {
        const { counts: now } = await post("/api/decisions", { picture: picture.id, decision });
        showCounts(now);
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
        const index = state.queue.findIndex(({ name }) => name === undone);
        say(`Taken back: ${undone.split("/").pop()}.`);
        if (index < 0) return null;
        state.queue[index].decision = (await get(`/api/outliers?${query({ offset: index, limit: 1 })}`)).queue[0].decision;
        mark(strip.children[index], state.queue[index]);
        return show(index);
      })
      .catch((err) => showFailure(err));
  }

  async function next() {
    if (state.at + 1 === state.queue.length && state.queue.length < state.total) await more();
    show(state.at + 1);
  }

  function back() {
    show(state.at - 1);
  }

  /** Do what is pressed in its order: what is about an image that is still to come waits for it. */
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
    card.querySelector(".heat-toggle").setAttribute("aria-pressed", String(state.heat));
  }

  const keys = { k: () => write("keep"), d: () => write("drop"), u: undo, n: next, p: back, h: toggleHeat };
  start();
  return {
    key(event) {
      const act = keys[event.key.toLowerCase()];
      if (!act || isTyping(event) || !state.total) return;
      event.preventDefault();
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
    "Keys: K keep, D drop, U undo, N next, P back, H heat-map. To move what you dropped: ",
    h("code", {}, "xargs -d '\\n' -a drop.txt mv -t elsewhere/"),
  );
}
