// Sliders: a picture, moved along the directions in which the pictures of the folder differ most, and by label.

import { asked as wanted, between, remember } from "./address.js";
import { getBlob, getBuffer, newestWins, query, waitFor } from "./api.js";
import { field, h, notice, progressBar, save, sayIgnored, showFailure } from "./dom.js";
import { choosing, dropzone, image, shortName } from "./pictures.js";
import { selection } from "./selection.js";
import { sendSelection } from "./selectionbar.js";
import { lacks } from "./shared.js";

const DEFAULTS = { picture: "", at: "", along: "0", across: "1", selection: "" };
const STEPS = 7; // of a strip and of each side of a square, as the server draws them

export function mount(root) {
  root.append(h("p", { class: "lead" }, "What the code holds: move a picture along the directions in which your pictures differ most, or towards a label or a selection."));
  const lacking = lacks("sliders");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }
  const state = { picture: null, at: [], names: [], reach: 2.5, selection: "", along: 0, across: 1, given: null };
  const body = h("div");
  const result = h("img", { class: "result", alt: "" });
  const before = h("div", { class: "query" });
  const strip = h("img", { class: "strip-of-steps", alt: "" });
  const sliders = h("div", { class: "slider-list" });
  const square = h("img", { class: "square-of-steps", alt: "", onclick: (event) => step(event) });
  const squareTitle = h("h3", {});
  const title = h("h2", {});
  let shown = null;
  let blob = null;
  root.append(body);

  const positions = () => state.at.map((value) => String(Number(value.toFixed(2)))).join(",");
  const asked = (more = {}) => query({ picture: state.picture.id, at: positions(), selection: state.selection, ...more });
  const note = () => {
    if (!state.picture || !state.names.length || root.hidden) return;
    const { along, across, selection: towards_ } = state;
    const at = state.at.some(Boolean) ? positions() : "";
    remember("sliders", { picture: state.picture.id, at, along: String(along), across: String(across), selection: towards_ }, DEFAULTS);
  };
  const draw = newestWins(async (signal) => {
    if (!state.picture || !state.names.length) return;
    blob = await getBlob(`/api/sliders/frame?${asked()}`, signal);
    const url = URL.createObjectURL(blob);
    result.src = url;
    if (shown) URL.revokeObjectURL(shown);
    shown = url;
    result.alt = `${shortName(state.picture)}, moved`;
  });
  const redraw = () => draw().catch((err) => showFailure(err));
  const drawStrip = () => {
    note();
    strip.src = `/api/sliders/strip?${asked({ along: state.along })}`;
    strip.alt = `Seven steps along ${state.names[state.along]}`;
    const isTwo = state.names.length > 1;
    square.hidden = squareTitle.hidden = !isTwo;
    if (!isTwo) return;
    const [right, down] = [state.names[state.along], state.names[state.across]];
    square.src = `/api/sliders/strip?${asked({ along: state.along, across: state.across })}`;
    square.alt = `Seven by seven steps: ${right} to the right, ${down} downwards`;
    squareTitle.textContent = `${right} → by ${down} ↓: press a picture to go there`;
  };

  /** Move both sliders of the square to the picture that was pressed. */
  const step = (event) => {
    const box = square.getBoundingClientRect();
    const place = (at, size) => state.reach * (Math.round((Math.min(0.999, Math.max(0, at / size)) * STEPS - 0.5)) / ((STEPS - 1) / 2) - 1);
    state.at[state.along] = place(event.clientX - box.left, box.width);
    state.at[state.across] = place(event.clientY - box.top, box.height);
    build();
    redraw();
    note();
  };

  const build = () => {
    sliders.replaceChildren(
      ...state.names.map((name, k) => {
        const slider = h("input", {
          type: "range",
          min: -state.reach,
          max: state.reach,
          step: 0.05,
          value: state.at[k] ?? 0,
          oninput: () => {
            state.at[k] = Number(slider.value);
            redraw();
          },
          onchange: () => {
            if (k !== state.along) Object.assign(state, { along: k, across: state.along });
            drawStrip();
          },
        });
        return field(name, slider);
      }),
    );
  };

  const set = (values) => {
    state.at = state.names.map((_, k) => values(k));
    build();
    redraw();
    drawStrip();
  };

  async function towards() {
    nameSelection(await sendSelection());
    set((k) => state.at[k] ?? 0);
  }

  /** Add the direction towards a selection, and show its steps. */
  function nameSelection(name) {
    state.selection = name;
    if (state.names.at(-1) !== "more like the selection") state.names = [...state.names, "more like the selection"];
    const last = state.names.length - 1;
    if (last !== state.along) Object.assign(state, { along: last, across: state.along });
  }

  /** Take the directions and positions of an address, once the names of the directions are known. */
  async function take() {
    const given = state.given;
    state.given = null;
    if (given.selection) {
      await getBuffer(`/api/selections/${given.selection}`); // is it known still?
      nameSelection(given.selection);
    }
    const [along, across] = [Number(given.along), Number(given.across)];
    if (along !== across && Math.max(along, across) < state.names.length) Object.assign(state, { along, across });
    const at = given.at.split(",").map(Number);
    set((k) => Math.min(state.reach, Math.max(-state.reach, at[k] || 0)));
  }

  const begin = () => {
    if (!state.given) return set(() => 0);
    return take().catch((err) => {
      set(() => 0);
      showFailure(err);
    });
  };

  const choose = choosing((picture) => {
    state.picture = picture;
    title.textContent = shortName(picture);
    before.replaceChildren(image(picture));
    if (state.names.length) begin();
  }, (err) => showFailure(err, body));
  const use = ([picture]) => (location.hash = `#sliders?picture=${picture.id}`);

  async function start() {
    const bar = progressBar("encoding images");
    body.replaceChildren(bar);
    try {
      const found = await waitFor("/api/sliders", bar.update);
      Object.assign(state, { names: found.names, reach: found.reach });
    } catch (err) {
      showFailure(err, body, start);
      return;
    }
    const button = (text, act) => h("button", { type: "button", onclick: () => Promise.resolve(act()).catch((err) => showFailure(err)) }, text);
    body.replaceChildren(
      h("div", { class: "toolbar" }, dropzone(use, { label: "Choose an image" })),
      h(
        "div",
        { class: "morph" },
        h("div", {}, h("div", { class: "stage" }, result), h("div", { class: "actions" }, button("As it was", () => set(() => 0)), button("At random", () => set(() => (Math.random() + Math.random() + Math.random() - 1.5) * 1.2)), button("Save PNG", () => blob && save(blob, "moved.png"))), strip),
        h("div", {}, h("div", { class: "asked" }, before, title), sliders, button("Towards the selection", () => (selection.size ? towards() : showFailure(new Error("Select some pictures in Browse or on the map first.")))), squareTitle, square),
      ),
    );
    if (state.picture) begin();
  }

  start();
  return {
    take: use,
    show(params) {
      const isList = (text) => text.split(",").every(between(-Infinity, Infinity));
      const isPlace = (text) => /^\d{1,3}$/.test(text);
      const { state: given, wrong } = wanted(params, DEFAULTS, { at: isList, along: isPlace, across: isPlace });
      sayIgnored(wrong);
      const isOther = given.picture && given.picture !== state.picture?.id;
      if (isOther || (given.at && given.at !== positions())) state.given = given;
      choose(given.picture);
      if (state.given && !isOther && state.names.length) begin();
      note();
    },
  };
}
