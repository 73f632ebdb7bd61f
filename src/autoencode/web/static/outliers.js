// Outliers: one image at a time, the most unusual first, to keep or to drop.

import { parsed, remember } from "./address.js";
import { conclude, hear, newestCounts, propose } from "./decisions.js";
import { get, getBuffer, post, query, restarting, waitFor } from "./api.js";
import { counted, field, h, isTyping, keepingFocus, notice, number, percent, progressBar, say, sayIgnored, select, showFailure, announce } from "./dom.js";
import { histogramOf } from "./histogram.js";
import { decisionLists, keysHelp, wanted } from "./outlierlinks.js";
import { fileNote, showHeat, sidesOf } from "./outlierpicture.js";
import { openPicture, pictureButton, score, shortName } from "./pictures.js";
import { order, positionsOf, selection } from "./selection.js";
import { told } from "./selectionbar.js";
import { lacks, workspace } from "./shared.js";

const PAGE = 50;
const MOST_ROWS = 200; // that one answer holds

export function mount(root) {
  // The queue is loaded from `from` to its length; positions count from the most unusual image of all.
  // `dragged` is the threshold of the address; null leaves it to the server.
  const { by: first, dragged } = wanted(parsed(location.hash));
  const state = { queue: [], from: 0, at: 0, total: 0, heat: first !== "model", rate: null, smallest: null, by: first, dragged, normal: false };
  const asked = (more) => `/api/outliers?${query({ by: state.by, normal: state.normal || null, ...more })}`;
  const others = new BroadcastChannel(`decisions ${workspace.launch}`); // to other windows of this page
  const pressed = [];
  let writing = Promise.resolve();
  let loading = null;
  const body = h("div");
  root.append(h("p", { class: "lead" }, "Pictures unlike the others, the most unusual first. Keep or drop each, then save the list."), body);
  const basis = select(workspace.bases, state.by, (by) => compare(by, null));

  function compare(by, dragged, normal = false) {
    Object.assign(state, { by, dragged, normal, heat: by !== "model", queue: [], from: 0, at: 0, total: 0, rate: null });
    note();
    strip.replaceChildren();
    start();
  }

  /** Keep in the address what is compared and, once it was dragged, the threshold; it means nothing without the other. */
  function note() {
    const { by, dragged } = state;
    remember("outliers", { by, threshold: dragged === null ? "" : String(dragged) }, dragged === null ? { by: workspace.bases[0]?.[0] } : {});
  }

  const counts = h("p", { class: "counts" });
  const threshold = h("div", { class: "threshold" });
  const pictures = h("div");
  const facts = h("div");
  const file = fileNote();
  const near = h("div", { class: "near" });
  const card = h("div", { class: "review" }, pictures, h("div", {}, facts, file.element, counts, threshold, near));
  const strip = h("div", { class: "strip", role: "group", "aria-label": "The queue", tabindex: "0" });

  async function start() {
    if (!workspace.bases.length) {
      body.replaceChildren(notice((!workspace.kind && lacks("inspection")) || lacks("outliers")));
      return;
    }
    const { by } = state;
    const mine = (state.asking = {});
    const chooser = h("div", { class: "toolbar" }, field("Compared with", basis));
    const bar = progressBar("learning from normal images", by === "model" ? null : () => stop(by, chooser));
    body.replaceChildren(chooser, bar);
    try {
      const first = await waitFor(asked({ threshold: state.dragged, limit: PAGE }), bar.update);
      if (mine !== state.asking) return; // another was chosen meanwhile
      // If the decided images fill more than a page, the queue starts just before the first undecided one.
      const isFar = first.undecided >= first.queue.length;
      take(isFar ? await get(asked({ threshold: state.dragged, offset: first.undecided - 2, limit: PAGE })) : first);
    } catch (err) {
      if (mine === state.asking && !state.isStopped) showFailure(err, body, start);
      return;
    }
    if (!state.total) {
      body.replaceChildren(notice(new Error("There are no images to review.")));
      return;
    }
    const grid = h("a", { class: "button", href: "#browse?sort=score&down=true" }, "All in a grid");
    body.replaceChildren(h("div", { class: "toolbar" }, ...chooser.children, normalToggle(), grid), card, strip, decisionLists(by), keysHelp());
    buildThreshold();
    showCounts(state.found);
    show(state.found.undecided ?? 0);
    if (state.found.undecided === null) say("All images are decided.");
  }

  /** A box to show the pictures that the others are compared with, if they are left out or have been. */
  function normalToggle() {
    if (!state.found.left_out && !state.normal) return null;
    const box = h("input", { type: "checkbox", checked: state.normal, onchange: () => compare(state.by, null, box.checked) });
    return h("label", { class: "check" }, box, " Review those, too");
  }

  /** Add a part of the queue that lies before or after the loaded one. */
  function take(found) {
    const isBefore = found.offset < state.from;
    if (isBefore || !state.queue.length) state.from = found.offset;
    for (const [index, picture] of found.queue.entries()) {
      hear(picture, picture.decision, found.revision);
      state.queue[found.offset + index] = picture;
    }
    state.total = found.images;
    state.rate ??= found.rate;
    state.smallest = found.smallest_rate;
    state.found = found;
    showCounts(found);
    const items = found.queue.map((picture, index) => stripItem(picture, found.offset + index));
    if (isBefore) strip.prepend(...items);
    else strip.append(...items);
  }

  function inStrip(index) {
    return strip.children[index - state.from];
  }

  /** Stop a comparison; the choice of another stays. */
  async function stop(by, chooser) {
    state.isStopped = true;
    await post(`/api/outliers/cancel?${query({ by })}`).catch((err) => showFailure(err));
    body.replaceChildren(chooser, h("button", { type: "button", onclick: () => begin() }, "Compare"));
  }

  function begin() {
    state.isStopped = false;
    start();
  }

  function buildThreshold() {
    const text = h("p", { role: "status" });
    const report = ({ rate, flagged, images, measured, calibration_images, threshold: score }) => {
      const seen = measured ? ` It flags ${percent(measured.share)} (${percent(measured.low)} to ${percent(measured.high)}) of the validation images.` : "";
      const means =
        state.by === "all"
          ? `, the ${percent(flagged / images, 1)} most unlike the others: ${state.dragged === null ? "a share to look through, the same in every folder" : "from the line on"}. Drag the line to where they begin to belong.`
          : `, those with a score above ${number(score, 2)}. At most ${percent(rate)} of normal pictures would be flagged by mistake, calibrated on ${number(calibration_images)} of them.${seen}`;
      text.replaceChildren(h("strong", {}, `Flags ${number(flagged)} of ${number(images)} pictures`), means);
      Object.assign(state, { rate, threshold: score });
      histogram.show(score);
      for (const [index, item] of [...strip.children].entries()) mark(item, state.queue[state.from + index]);
    };
    const ask = restarting(async (signal, score) => {
      const found = await get(asked({ threshold: score, limit: 1 }), signal);
      state.dragged = score;
      report(found);
      note();
    });
    const choose = async () => {
      const bits = await getBuffer(`/api/outliers/flagged?${query({ by: state.by, normal: state.normal || null, threshold: state.threshold })}`);
      Object.assign(order, { sort: "score", down: "true" });
      selection.replace(positionsOf(new Uint8Array(bits)));
      say("The flagged are selected: the bar shows them in Browse, tags and drops them.");
    };
    const { images: out, threshold: from } = state.found.standing_out;
    const outText = `${counted(out, "picture")} ${out === 1 ? "stands" : "stand"} out`;
    const only = out
      ? h("button", { type: "button", class: "small", onclick: () => ask(from).catch((err) => showFailure(err)), title: "Move the line to where the scores leave those of the others" }, outText)
      : h("span", {}, "No picture stands out from the others.");
    const histogram = histogramOf(state.found.histogram, state.found.threshold, (score) => ask(score).catch((err) => showFailure(err)));
    const flagged = h("button", { type: "button", class: "small", onclick: () => choose().catch((err) => showFailure(err)) }, "Select the flagged");
    threshold.replaceChildren(histogram, text, h("div", { class: "row" }, only, flagged));
    report(state.found);
  }

  const showCounts = newestCounts(({ keep, drop }) => {
    counts.textContent = `${number(keep)} kept, ${number(drop)} dropped. Saved as you decide.`;
    // No empty file to save.
    for (const link of body.querySelectorAll("[data-decision]")) link.hidden = !{ keep, drop }[link.dataset.decision];
  });

  function stripItem(picture, index) {
    const button = pictureButton(picture, { onclick: () => show(index) });
    button.querySelector("img").loading = "lazy"; // there can be thousands
    mark(button, picture);
    return button;
  }

  function mark(button, picture) {
    button.classList.toggle("flagged", picture.score >= (state.threshold ?? Infinity));
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
    const change = () => {
      pictures.replaceChildren(sidesOf(picture, { by: state.by, hasMaps: state.found.has_maps, isHeat: state.heat, list: state.queue.slice(state.from) }));
      facts.replaceChildren(about(picture), decide(picture));
      near.replaceChildren();
    };
    keepingFocus(card, change, () => card.querySelector("h2"));
    announce(`${state.at + 1} of ${state.total}: ${shortName(picture)}, score ${number(picture.score, 2)}, ${picture.decision ?? "not decided"}.`);
    file.of(picture);
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
    take(await get(asked({ rate: state.rate, offset: state.queue.length, limit: PAGE })));
  }

  async function loadEarlier() {
    const offset = Math.max(0, state.from - PAGE);
    take(await get(asked({ rate: state.rate, offset, limit: state.from - offset })));
  }

  function about(picture) {
    const facts = [`score ${number(picture.score, 2)}`, state.by !== "all" && `p ${picture.p_value.toPrecision(2)}`, picture.split && `${picture.split} image`, picture.label];
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
    propose(picture, decision);
    mark(inStrip(index), picture);
    writing = writing
      .then(async () => {
        const answer = await post("/api/decisions", { picture: picture.id, decision });
        showCounts(answer);
        hear(picture, decision, answer.revision);
        others.postMessage({ name: picture.name });
        say(`${shortName(picture)}: ${decision}.`);
        // Another window may have decided otherwise since.
        if (conclude(picture)) showAgain(index);
      })
      .catch((err) => {
        conclude(picture);
        show(index);
        showFailure(err);
      });
    return next();
  }

  function undo() {
    writing = writing
      .then(async () => {
        const answer = await post("/api/decisions/undo");
        const { undone, images } = answer;
        showCounts(answer);
        if (undone === null) return say("There is nothing to undo.");
        others.postMessage({ name: undone });
        if (images > 1) {
          say(`Undone: the decision about ${counted(images, "picture")}.`);
          return told();
        }
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
    const answer = await get(asked({ offset: index, limit: 1 }));
    showCounts(answer);
    hear(state.queue[index], answer.queue[0].decision, answer.revision);
    mark(inStrip(index), state.queue[index]);
    return index;
  }

  function showAgain(index) {
    if (inStrip(index)) mark(inStrip(index), state.queue[index]);
    if (index === state.at) show(index);
  }

  // What another window says is only that something changed: the server is asked, so that all windows end with its answer.
  others.onmessage = async ({ data }) => {
    if (!state.total) return;
    try {
      const index = await lookAgain(data.name);
      if (index === state.at) show(index);
      if (index < 0) showCounts(await get(asked({ limit: 1 })));
    } catch (err) {
      showFailure(err);
    }
  };

  /** Load decisions made in other browsers, when this page is shown again. */
  async function catchUp() {
    for (let offset = state.from; offset < state.queue.length; offset += MOST_ROWS) {
      const part = state.queue.slice(offset, offset + MOST_ROWS);
      const { queue, ...now } = await get(asked({ offset, limit: part.length }));
      showCounts(now);
      for (const [place, picture] of part.entries()) {
        if (hear(picture, queue[place].decision, now.revision)) showAgain(offset + place);
      }
    }
  }

  const lookAnew = () => {
    if (state.total && !document.hidden) writing = writing.then(catchUp).catch((err) => showFailure(err));
  };
  document.addEventListener("visibilitychange", lookAnew);
  addEventListener("curated", () => root.hidden || lookAnew());

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
    showHeat(card, state.heat, state.found.has_maps);
    card.querySelector(".heat-toggle").setAttribute("aria-pressed", String(state.heat));
  }

  const keys = { k: () => write("keep"), d: () => write("drop"), u: undo, n: next, p: back, h: toggleHeat };
  start();
  return {
    show(params) {
      const { by, dragged, wrong } = wanted({ tab: "outliers", params });
      sayIgnored(wrong);
      const isOther = (params.has("by") && by !== state.by) || (dragged !== null && dragged !== state.dragged);
      if (isOther) {
        basis.value = by;
        compare(by, dragged);
      } else {
        note();
        lookAnew();
      }
    },
    help: [["K, D", "keep, drop"], ["U", "undo"], ["N, P", "next, previous"], ["H", "heat-map on or off"]],
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
