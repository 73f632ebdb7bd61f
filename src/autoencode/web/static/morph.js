// Morph: two to four pictures mixed, redrawn while the slider moves. Only the newest position is requested.

import { asked, between, remember } from "./address.js";
import { get, getBlob, newestWins, post, query, waitForBlob } from "./api.js";
import { field, h, keepingFocus, notice, progressBar, say, sayIgnored, save, select, showFailure, announce } from "./dom.js";
import { addToMorph, describe, dropzone, image, openPicture, shortName } from "./pictures.js";
import { MORPH_MOST, canGenerate, hasImages, lacks, morphing } from "./shared.js";

const WAYS = [
  ["linear", "linear"],
  ["spherical", "spherical"],
];
const SECONDS_A_LEG = 2;
const DEFAULTS = { pictures: "", x: "0.5", y: "0.5", interpolation: "linear" };
const ALLOWED = { x: between(0, 1), y: between(0, 1), interpolation: WAYS.map(([name]) => name) };

export function mount(root) {
  const lacking = lacks("morph");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  const at = { x: 0.5, y: 0.5 };
  let interpolation = "linear";
  let shownUrl = null;
  let blob = null;
  let playing = null;

  const slots = h("ol", { class: "slots" });
  const result = h("img", { class: "result", alt: "" });
  const empty = h("p", { class: "hint" }, "Add two pictures to begin.");
  const stage = h("div", { class: "stage" }, result, empty);
  const controls = h("div", { class: "morph-controls" });
  const buttons = h("div", { class: "actions" });
  const making = h("div");
  let giveUp = () => {};

  const draw = newestWins(async (signal) => {
    blob = await getBlob(`/api/morph/frame?${query({ pictures: names(), interpolation, x: at.x.toFixed(4), y: at.y.toFixed(4) })}`, signal);
    const url = URL.createObjectURL(blob);
    result.src = url;
    if (shownUrl) URL.revokeObjectURL(shownUrl);
    shownUrl = url;
    result.alt = `Mixture of ${morphing.map(shortName).join(", ")} at ${place()}`;
  });
  const names = () => morphing.map(({ id }) => id).join(",");
  const note = () => {
    if (root.hidden) return;
    const isSquare = morphing.length === 4;
    remember("morph", { pictures: names(), x: String(at.x), y: isSquare ? String(at.y) : "", interpolation }, DEFAULTS);
  };
  const redraw = () => draw().catch((err) => showFailure(err));
  const place = () => (morphing.length === 4 ? `${Math.round(100 * at.x)} % across, ${Math.round(100 * at.y)} % down` : `${Math.round(100 * at.x)} %`);

  function stop() {
    cancelAnimationFrame(playing);
    if (playing) note();
    playing = null;
    buttons.querySelector(".play")?.replaceChildren("Play");
  }

  function play() {
    if (playing) return stop();
    buttons.querySelector(".play").replaceChildren("Stop");
    const began = performance.now();
    const step = (now) => {
      const turn = ((now - began) / 1000 / SECONDS_A_LEG) % (morphing.length === 4 ? 4 : 2 * (morphing.length - 1));
      Object.assign(at, morphing.length === 4 ? round(turn) : { x: pingPong(turn / (morphing.length - 1)), y: at.y });
      showPlace();
      redraw();
      playing = requestAnimationFrame(step);
    };
    playing = requestAnimationFrame(step);
    return null;
  }

  function showPlace() {
    for (const axis of ["x", "y"]) {
      const slider = controls.querySelector(`.${axis}`);
      if (slider) slider.value = String(at[axis]);
    }
    const dot = controls.querySelector(".dot");
    if (dot) {
      dot.style.left = `${100 * at.x}%`;
      dot.style.top = `${100 * at.y}%`;
    }
  }

  const slider = (axis, label) =>
    h("input", {
      type: "range",
      class: axis,
      min: 0,
      max: 1,
      step: 0.005,
      value: at[axis],
      "aria-label": label,
      oninput: (event) => {
        stop();
        at[axis] = Number(event.target.value);
        showPlace();
        redraw();
      },
      onchange: note,
    });

  function pad() {
    const dot = h("span", { class: "dot" });
    const corners = morphing.map((picture) => image(picture, "", ""));
    const square = h("div", { class: "pad", "aria-hidden": "true" }, corners, dot);
    const move = (event) => {
      if (event.type === "pointerdown") square.setPointerCapture(event.pointerId);
      else if (!square.hasPointerCapture(event.pointerId)) return;
      stop();
      const box = square.getBoundingClientRect();
      at.x = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
      at.y = Math.min(1, Math.max(0, (event.clientY - box.top) / box.height));
      showPlace();
      redraw();
    };
    square.addEventListener("pointerdown", move);
    square.addEventListener("pointermove", move);
    square.addEventListener("pointerup", note);
    return square;
  }

  /** Make an animation and save it; a running one is cancelled. */
  async function animate(kind, button) {
    giveUp();
    const wanted = query({ pictures: names(), interpolation, kind });
    const mine = new AbortController();
    giveUp = () => {
      giveUp = () => {};
      mine.abort();
      making.replaceChildren();
      post(`/api/morph/animation/cancel?${wanted}`).catch((err) => showFailure(err));
    };
    const cancel = () => {
      giveUp();
      button.focus();
      say("Animation cancelled.");
    };
    const bar = progressBar("making the animation", cancel);
    making.replaceChildren(bar);
    try {
      const made = await waitForBlob(`/api/morph/animation?${wanted}`, bar.update, mine.signal);
      giveUp = () => {};
      keepingFocus(making, () => making.replaceChildren(), () => button);
      save(made, `morph.${kind}`);
      say(`Saved as morph.${kind}.`);
    } catch (err) {
      if (!mine.signal.aborted) keepingFocus(making, () => showFailure(err, making), () => button);
    }
  }

  function build() {
    stop();
    giveUp();
    making.replaceChildren();
    draw.cancel();
    slots.replaceChildren(...morphing.map((picture, index) => slot(picture, index)));
    note();
    const ready = morphing.length >= 2;
    result.hidden = !ready;
    empty.hidden = ready;
    controls.replaceChildren();
    buttons.replaceChildren();
    if (!ready) return;
    if (morphing.length === 4) {
      controls.append(pad(), field("Across", slider("x", "Across: from the left pictures to the right ones")), field("Down", slider("y", "Down: from the upper pictures to the lower ones")));
    } else {
      const ends = `from ${shortName(morphing[0])} to ${shortName(morphing.at(-1))}`;
      controls.append(h("div", { class: "between-ends" }, image(morphing[0], "", ""), slider("x", `Position ${ends}`), image(morphing.at(-1), "", "")));
    }
    const animation = (kind, name) =>
      h("button", { type: "button", onclick: (event) => animate(kind, event.currentTarget) }, name);
    buttons.append(
      h("button", { type: "button", class: "play", onclick: play }, "Play"),
      h("button", { type: "button", onclick: () => (blob ? save(blob, "morph.png") : say("There is no picture to save yet.")) }, "Save PNG"),
      animation("gif", "Save GIF"),
      animation("webp", "Save WebP"),
    );
    showPlace();
    redraw();
  }

  const slot = (picture, index) =>
    h(
      "li",
      {},
      h("button", { type: "button", class: "picture", onclick: () => openPicture(picture), title: picture.name }, image(picture)),
      h(
        "button",
        {
          type: "button",
          class: "remove",
          "aria-label": `Remove ${shortName(picture)}`,
          "data-focus": `remove ${index}`,
          onclick: () => remove(index),
        },
        "×",
      ),
    );

  /** Focus moves to the picture that takes the position, else to the last one, else to the control that adds pictures. */
  const remove = (index) => {
    const [picture] = morphing.splice(index, 1);
    keepingFocus(slots, build, () => slots.querySelector("li:last-child .remove") ?? root.querySelector(".dropzone input"));
    announce(`${shortName(picture)} removed. ${morphing.length} left.`);
  };

  /** Mix the pictures of an address; those that are gone are left out with a word. */
  async function takeAll(ids) {
    const found = await Promise.allSettled(ids.map((id) => describe(id)));
    morphing.splice(0, MORPH_MOST, ...found.flatMap((one) => (one.status === "fulfilled" ? [one.value] : [])));
    if (morphing.length < ids.length) say("Some pictures of the address are no longer in memory. Add them again.");
  }

  const add = (pictures) => {
    if (addToMorph(pictures)) announce(`In the morph: ${morphing.length}.`);
    build();
  };

  const ways = select(WAYS, interpolation, (value) => {
    interpolation = value;
    build();
  });
  root.append(
    h("p", { class: "lead" }, "Two to four pictures, mixed through their codes. Four pictures span a square to move in."),
    h(
      "div",
      { class: "toolbar" },
      dropzone(add, { multiple: true, label: "Add pictures" }),
      field("Interpolation", ways),
    ),
    h("div", { class: "morph" }, h("div", {}, stage), h("div", {}, h("h2", {}, "Pictures"), slots, controls, buttons, making)),
  );

  return {
    take: add,
    async show(params) {
      const { state, wrong } = asked(params, { ...DEFAULTS, interpolation }, ALLOWED);
      sayIgnored(wrong);
      const isOther = state.pictures && state.pictures !== names();
      if (isOther) await takeAll(state.pictures.split(",").slice(0, MORPH_MOST));
      if (isOther || params.has("x")) Object.assign(at, { x: Number(state.x), y: Number(state.y) });
      interpolation = ways.value = state.interpolation;
      if (!morphing.length) {
        const first = await firstPictures();
        // Pictures that were added while the request ran are kept.
        if (!morphing.length) morphing.push(...first);
      }
      build();
    },
    hide: stop,
  };
}

/** Two pictures to begin with: images of the workspace, or samples. */
async function firstPictures() {
  const seed = Math.floor(Math.random() * 1e6);
  if (hasImages()) return get(`/api/pictures?${query({ seed, count: 2 })}`);
  if (canGenerate()) return (await post("/api/generate", { count: 2, seed })).pictures;
  return [];
}

function pingPong(way) {
  const phase = way % 2;
  return phase < 1 ? phase : 2 - phase;
}

/** Once around the square. */
function round(turn) {
  const along = turn % 1;
  return [
    { x: along, y: 0 },
    { x: 1, y: along },
    { x: 1 - along, y: 1 },
    { x: 0, y: 1 - along },
  ][Math.floor(turn)];
}
