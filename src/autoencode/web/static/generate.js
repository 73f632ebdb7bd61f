// Generate: pictures drawn from the prior, and variations of any picture.

import { asked as wanted, between, remember } from "./address.js";
import { post, restarting, waitFor } from "./api.js";
import { field, h, keepingFocus, notice, sayIgnored, select, showFailure, announce } from "./dom.js";
import { describe, image, openPicture, pictureButton, pictureGrid, shortName, tileControls } from "./pictures.js";
import { lacks, workspace } from "./shared.js";

const MOST_SEED = 999999;
const MOST_TEMPERATURE = 1.5;
const COUNTS = ["12", "24", "48"];
const LEAST_SHARP = 0.3; // share of the detail of held-out pictures, below which new ones are smears
const PRIORS = { mixture: "mixture of the training codes", normal: "standard normal" };

export function mount(root) {
  const defaults = { count: "24", temperature: "1", seed: "0", prior: workspace.priors[0] ?? "", vary: "", amount: "0.3" };
  const asked = { count: 24, temperature: 1, seed: 0, prior: workspace.priors[0] };
  const near = { picture: null, amount: 0.3, seed: 0 };
  const grid = h("div");
  const variations = h("section", { hidden: true, "aria-label": "Variations" });

  root.append(h("p", { class: "lead" }, "New pictures like those the model was trained on. Press one to compare it with the most similar real images: a copy of one was memorised."));
  const lacking = lacks("generate");
  if (lacking) {
    root.append(notice(lacking));
    return {};
  }

  const trained = h("div");
  const judge = async () => {
    const { sharpness } = await waitFor("/api/health", () => {});
    if (!(sharpness !== null && sharpness < LEAST_SHARP)) return;
    const percent = Math.max(1, Math.round(100 * sharpness));
    trained.replaceChildren(h("p", { class: "notice" }, `Not trained enough to generate. The model restores ${percent} % of the fine detail of pictures that it never saw, and new ones are no sharper. Train it for longer, or on more pictures.`));
  };
  if (!lacks("health")) judge().catch(() => {}); // the overview says what went wrong there

  const draw = restarting(async (signal) => {
    grid.setAttribute("aria-busy", "true");
    let pictures;
    try {
      ({ pictures } = await post("/api/generate", asked, signal));
    } finally {
      if (!signal.aborted) grid.removeAttribute("aria-busy"); // an aborted draw leaves the mark to the one that replaced it
    }
    const made = pictureGrid(pictures);
    keepingFocus(grid, () => grid.replaceChildren(made), () => made.firstChild);
    announce(`${pictures.length} samples.`);
  });
  const drawn = () => ({ count: String(asked.count), temperature: String(asked.temperature), seed: String(asked.seed), prior: asked.prior });
  const note = () => {
    const varied = variations.hidden ? { vary: "", amount: "" } : { vary: near.picture.id, amount: String(near.amount) };
    remember("generate", { ...drawn(), ...varied }, defaults);
  };
  const redraw = () => {
    note();
    return draw().catch((err) => showFailure(err, grid));
  };

  const drawNear = restarting(async (signal) => {
    const { pictures } = await post(
      "/api/vary",
      { picture: near.picture.id, amount: near.amount, seed: near.seed, prior: asked.prior },
      signal,
    );
    const made = pictures.map((picture) => pictureButton(picture, { list: pictures }));
    const place = variations.querySelector(".grid");
    if (!place) return; // closed meanwhile
    keepingFocus(place, () => place.replaceChildren(...made), () => made[0]);
    announce(`${pictures.length} variations of ${shortName(near.picture)}.`);
  });
  const redrawNear = () => {
    note();
    return drawNear().catch((err) => showFailure(err, variations.querySelector(".grid")));
  };

  const seed = h("input", {
    type: "number",
    min: 0,
    max: MOST_SEED,
    value: 0,
    onchange: () => {
      // The field shows the seed that is used, also after an entry out of range.
      asked.seed = Math.min(MOST_SEED, Math.max(0, Math.floor(Number(seed.value) || 0)));
      seed.value = String(asked.seed);
      redraw();
    },
  });
  const others = () => {
    asked.seed = Math.floor(Math.random() * (MOST_SEED + 1));
    seed.value = String(asked.seed);
    redraw();
  };
  const warmth = slider("Temperature", asked.temperature, 0, MOST_TEMPERATURE, (value) => {
    asked.temperature = value;
    redraw();
  });
  const count = select(COUNTS.map((n) => [n, n]), "24", (value) => {
    asked.count = Number(value);
    redraw();
  });
  const prior = select(workspace.priors.map((name) => [name, PRIORS[name]]), asked.prior, (value) => {
    asked.prior = value;
    redraw();
  });
  const allowed = {
    count: COUNTS,
    temperature: between(0, MOST_TEMPERATURE),
    seed: (text) => /^\d{1,6}$/.test(text),
    prior: workspace.priors,
    amount: between(0, 1),
  };

  /** Take what an address asks for; return whether it is something else than what is shown. */
  function take(params) {
    const now = drawn();
    const { state, wrong } = wanted(params, { ...now, amount: String(near.amount) }, allowed);
    sayIgnored(wrong);
    Object.assign(asked, { count: Number(state.count), temperature: Number(state.temperature), seed: Number(state.seed), prior: state.prior });
    Object.assign(count, { value: state.count });
    seed.value = state.seed;
    prior.value = state.prior;
    warmth.set(asked.temperature);
    near.amount = Number(state.amount);
    return Object.entries(now).some(([name, value]) => value !== state[name]);
  }

  const drawOthers = h("button", { type: "button", class: "primary", onclick: others }, "Draw new samples");
  const hideVariations = () => {
    variations.hidden = true;
    variations.replaceChildren();
    note();
    drawOthers.focus();
  };
  root.append(
    h(
      "div",
      { class: "toolbar" },
      drawOthers,
      warmth,
      field("Seed", seed),
      field("Count", count),
      workspace.priors.length > 1 && field("Prior", prior),
      tileControls(),
    ),
    trained,
    variations,
    grid,
  );

  async function vary(id) {
    near.picture = await describe(id);
    near.seed = 0;
    variations.hidden = false;
    const head = h(
      "div",
      { class: "toolbar" },
      h("button", { type: "button", class: "picture query", onclick: () => openPicture(near.picture) }, image(near.picture)),
      slider("Variation", near.amount, 0, 1, (value) => {
        near.amount = value;
        redrawNear();
      }),
      h(
        "button",
        {
          type: "button",
          onclick: () => {
            near.seed += 1;
            redrawNear();
          },
        },
        "New variations",
      ),
      h("button", { type: "button", onclick: hideVariations }, "Done"),
    );
    variations.replaceChildren(h("h2", {}, `Variations of ${shortName(near.picture)}`), head, h("div", { class: "grid sized" }), h("h2", {}, "Samples"));
    redrawNear();
    variations.scrollIntoView();
  }

  let isDrawn = false;
  return {
    take: ([picture]) => vary(picture.id).catch((err) => showFailure(err)),
    show(params) {
      const isOther = take(params);
      if (!isDrawn || isOther) redraw();
      isDrawn = true;
      const id = params.get("vary");
      const isVaried = !variations.hidden && id === near.picture.id;
      if (id && !isVaried) vary(id).catch((err) => showFailure(err));
      else note();
    },
  };
}

function slider(label, value, min, max, onvalue) {
  const shown = h("output", {}, value.toFixed(2));
  const input = h("input", {
    type: "range",
    min,
    max,
    step: 0.05,
    value,
    oninput: () => {
      shown.textContent = Number(input.value).toFixed(2);
      onvalue(Number(input.value));
    },
  });
  const set = (now) => {
    input.value = String(now);
    shown.textContent = Number(input.value).toFixed(2);
  };
  return Object.assign(field(label, input, shown), { set });
}
