// Restore: a picture before and after, with a movable line between: at its full size, or through a model's code.

import { asked, parsed, remember, written } from "./address.js";
import { get, query, restarting, waitFor } from "./api.js";
import { field, h, keepingFocus, number, progressBar, sayIgnored, select, showFailure, announce } from "./dom.js";
import { followGestures } from "./gestures.js";
import { choosing, dropzone, image, original, shortName } from "./pictures.js";
import { hasImages, lacks, workspace } from "./shared.js";
import { FITTING, fitted, moved, zoomed } from "./zoom.js";

export function mount(root) {
  if (lacks("code")) return mountWhole(root, addressOf("whole", "whole"));
  // A model that was trained to remove damage is here to be tried.
  const usual = workspace.corrupt.length ? "code" : "whole";
  const kinds = [["whole", "at full size, by a restorer"], ["code", "through the code of the model"]];
  const panels = { whole: h("div"), code: h("div") };
  const choice = (own) => {
    const made = select(kinds, own, (value) => {
      made.value = own; // this one is shown with its own kind alone
      addressOf(value, usual).open(parsed(location.hash).params.get("picture") ?? "");
    });
    return field("Restored", made);
  };
  const views = {
    whole: mountWhole(panels.whole, addressOf("whole", usual), choice("whole")),
    code: mountCode(panels.code, addressOf("code", usual), choice("code")),
  };
  let by = usual;
  root.append(panels.whole, panels.code);
  return {
    take: (pictures) => views[by].take(pictures),
    show(params) {
      const { state, wrong } = asked(params, { by: usual }, { by: Object.keys(views) });
      sayIgnored(wrong);
      by = state.by;
      for (const [name, panel] of Object.entries(panels)) panel.hidden = name !== by;
      views[by].show(params);
    },
  };
}

/** How a picture restored in one way is opened by the address, and noted there. */
function addressOf(by, usual) {
  return {
    open: (picture) => (location.hash = written("restore", { by, picture }, { by: usual })),
    note: (picture) => remember("restore", { by, picture }, { by: usual }),
  };
}

/** What is left of a picture after a model's code, which a model may have learned to use against damage. */
function mountCode(root, address, choice) {
  const trained = workspace.corrupt.join(","); // a chain: all of its corruptions, one after the other
  const damages = [["", "none"], ...workspace.corruptions];
  if (!damages.some(([key]) => key === trained)) damages.push([trained, `${workspace.corrupt.join(", then ")}, as in training`]);
  const state = { picture: null, clean: null, corrupt: trained };
  const place = h("div");
  const use = ([picture]) => address.open(picture.id);

  const draw = restarting(async (signal) => {
    if (!state.picture) return;
    const values = { picture: state.picture.id, corrupt: state.corrupt };
    const found = await get(`/api/restore?${query({ ...values, clean: state.clean?.id })}`, signal);
    const url = (side) => `/api/restore/${side}?${query(values)}`;
    const sides = dividedPictures(url("corrupted"), url("reconstructed"));
    const heading = h("h2", { tabindex: "-1" }, shortName(state.picture));
    const about = h("div", {}, heading, qualityTable(found), cleanChoice());
    keepingFocus(place, () => place.replaceChildren(sides, about), () => heading);
    announce(`${shortName(state.picture)} restored: PSNR ${decibels(found.psnr_db)}.`);
  });
  const redraw = () => draw().catch((err) => showFailure(err, place));

  const choose = choosing(
    (picture) => {
      Object.assign(state, { picture, clean: null });
      redraw();
    },
    (err) => showFailure(err, place),
  );

  function qualityTable(found) {
    const against = state.clean ? shortName(state.clean) : state.corrupt ? "the image before the damage" : "the image itself";
    const isDamaged = Boolean(state.clean || state.corrupt); // otherwise nothing was before
    const rows = [
      found.corrupted_psnr_db !== null && ["PSNR before", decibels(found.corrupted_psnr_db)],
      [isDamaged ? "PSNR after" : "PSNR", decibels(found.psnr_db)],
      [isDamaged ? "SSIM after" : "SSIM", found.ssim === null ? "–" : found.ssim.toFixed(3)],
    ].filter(Boolean);
    const row = ([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value));
    return h(
      "div",
      {},
      h("table", { class: "settings" }, rows.map(row)),
      h("p", { class: "hint" }, `How close the result is to ${against}: PSNR by pixels, SSIM by structure. Higher is closer.`),
    );
  }

  function cleanChoice() {
    if (state.clean) {
      return h(
        "div",
        { class: "row" },
        h("div", { class: "query" }, image(state.clean)),
        h(
          "button",
          {
            type: "button",
            onclick: () => {
              state.clean = null;
              redraw();
            },
          },
          "Compare with itself again",
        ),
      );
    }
    const take = ([picture]) => {
      state.clean = picture;
      redraw();
    };
    return h("details", {}, h("summary", {}, "Compare with a clean version"), dropzone(take, { label: "Choose the clean image" }));
  }

  root.append(
    h("p", { class: "lead" }, "A picture and its reconstruction. A model trained to remove a kind of damage, such as noise, removes it here."),
    h(
      "div",
      { class: "toolbar" },
      dropzone(use, { label: "Choose an image" }),
      field("Damage", select(damages, state.corrupt, (value) => {
        state.corrupt = value;
        redraw();
      })),
      choice,
    ),
    h("div", { class: "restore" }, place),
  );

  return {
    take: use,
    show(params) {
      const id = params.get("picture");
      if (id || state.picture || hasImages()) choose(id);
      else place.replaceChildren(h("p", { class: "hint" }, "Choose an image to begin."));
    },
  };
}

/** Two small pictures on top of each other, divided by a movable line. */
function dividedPictures(before, after) {
  const { width, height } = workspace;
  const upper = h("img", { class: "upper", src: before, alt: "before", width, height });
  const lower = h("img", { src: after, alt: "after", width, height });
  const line = h("span", { class: "line" });
  const move = (value) => {
    upper.style.clipPath = `inset(0 ${100 - value}% 0 0)`;
    line.style.left = `${value}%`;
  };
  const slider = h("input", {
    type: "range",
    min: 0,
    max: 100,
    value: 50,
    "aria-label": "Part of the picture shown as before",
    oninput: () => move(Number(slider.value)),
  });
  move(50);
  return h(
    "div",
    { class: "comparison" },
    h("div", { class: "frame" }, lower, upper, line, slider),
    h("div", { class: "row between hint" }, h("span", {}, "before"), h("span", {}, "after")),
    h("a", { class: "button", href: after, download: "restored.png" }, "Save PNG"),
  );
}

function decibels(value) {
  return value === null ? "equal" : `${value.toFixed(1)} dB`;
}

const WAITING_PX = 1280; // longest side of the picture that is shown while it is being restored

/** Pictures at their full size, by a restorer: before and after under one line, which can be zoomed. */
function mountWhole(root, address, choice) {
  const state = { picture: null, amount: 1, scale: 1 };
  const stage = h("div", { class: "whole-place" });
  const facts = h("div", { class: "restore-facts" });
  let shown = null;
  const use = ([picture]) => address.open(picture.id);

  const draw = restarting(async (signal) => {
    if (!state.picture) return;
    const { picture, amount, scale } = state;
    const values = query({ picture: picture.id, amount, scale });
    const bar = progressBar("restoring");
    facts.replaceChildren(bar);
    // A new amount of the same picture is compared with the last one; another picture takes its place at once.
    if (shown !== picture.id) stage.replaceChildren(waitingPicture(picture));
    shown = picture.id;
    const found = await waitFor(`/api/restore/whole?${values}`, bar.update, signal);
    const url = (side) => `/api/restore/whole/${side}?${values}`;
    stage.replaceChildren(new ZoomedComparison(url("before"), url("after"), found).element);
    facts.replaceChildren(
      h("h2", { tabindex: "-1" }, shortName(picture)),
      h("p", { class: "hint" }, `${number(found.width)} × ${number(found.height)} pixels. ${removedInWords(found.removed_rms)}`),
      h("a", { class: "button primary", href: url("file"), download: "" }, "Save the restored file"),
      h("p", { class: "hint" }, "Wheel or pinch zooms, a drag beside the line moves."),
    );
    announce(`${shortName(picture)} restored.`);
  });
  const redraw = () => draw().catch((err) => showFailure(err, facts));
  const set = (name) => (value) => {
    state[name] = Number(value);
    redraw();
  };
  const choose = choosing((picture) => {
    state.picture = picture;
    redraw();
  }, (err) => showFailure(err, facts));
  const amountShown = h("output", {}, "100 %");
  const amount = h("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.05,
    value: 1,
    oninput: () => (amountShown.value = `${Math.round(100 * Number(amount.value))} %`),
    onchange: () => set("amount")(amount.value),
  });
  // Only a model that was trained with downscale can enlarge.
  const scales = [["1", "no"], ...workspace.scales.map((factor) => [String(factor), `${factor} times`])];
  const enlarge = scales.length > 1 ? field("Enlarge", select(scales, "1", set("scale"))) : null;
  root.append(
    h("p", { class: "lead" }, "A picture at its full size, before and after noise is taken out of it."),
    h("div", { class: "toolbar" }, dropzone(use, { label: "Choose an image" }), field("Amount", amount, amountShown), enlarge, choice),
    h("div", { class: "restore-whole" }, stage, facts),
  );
  return {
    take: use,
    show(params) {
      const id = params.get("picture");
      if (id || state.picture || hasImages()) choose(id);
      else facts.replaceChildren(h("p", { class: "hint" }, "Choose an image to begin."));
      if (!id && state.picture) address.note(state.picture.id);
    },
  };
}

function waitingPicture(picture) {
  const small = Object.assign(original(picture, WAITING_PX), { loading: "eager", className: "waiting" });
  return h("div", { class: "comparison large" }, h("div", { class: "frame" }, small));
}

/** What was removed from a picture, in the words of the command `restore`. */
function removedInWords(rms) {
  return `Removed: ${rms.toFixed(4)} (${(255 * rms).toFixed(1)} of 255 levels, root mean square; for noise its standard deviation).`;
}

const ZOOM_STEP = 1.6; // of a press on + or −
const LINE_REACH = 30; // pixels from the line within which a press takes the line and not the picture

/** Two pictures of one size over each other, divided by a line that can be dragged; zoomed together. */
class ZoomedComparison {
  constructor(before, after, size) {
    this.size = size;
    this.view = FITTING;
    this.divided = 0.5;
    this.upper = h("img", { class: "upper", src: before, alt: "before", draggable: "false" });
    this.lower = h("img", { src: after, alt: "after", draggable: "false" });
    this.line = h("span", { class: "line" });
    this.frame = h("div", { class: "frame" }, this.lower, this.upper, this.line);
    this.element = h("div", { class: "comparison large" }, this.frame, this.#controls());
    followGestures(this.frame, {
      zoom: (factor, point) => {
        this.isLine = false; // of a finger that pressed the line before the other came
        this.zoom(factor, point);
      },
      press: (point) => {
        const line = (this.divided - 0.5) * this.#stage().width;
        this.isLine = this.view.scale === 1 || Math.abs(point.x - line) < LINE_REACH;
        if (this.isLine) this.#divideAt(point);
      },
      drag: (now, before) => (this.isLine ? this.#divideAt(now) : this.#move(now.x - before.x, now.y - before.y)),
    });
    new ResizeObserver(() => this.#place()).observe(this.frame);
  }

  #controls() {
    const label = "Part of the picture shown as before";
    const oninput = () => this.#divide(Number(this.slider.value) / 100);
    this.slider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": label, oninput });
    const button = (text, title, factor) => {
      const onclick = () => this.zoom(factor);
      return h("button", { type: "button", class: "icon", "aria-label": title, title, onclick }, text);
    };
    return h(
      "div",
      { class: "row" },
      h("span", { class: "hint" }, "before"),
      this.slider,
      h("span", { class: "hint" }, "after"),
      button("−", "Zoom out", 1 / ZOOM_STEP),
      button("+", "Zoom in", ZOOM_STEP),
    );
  }

  zoom(factor, point = { x: 0, y: 0 }) {
    this.view = zoomed(this.view, factor, point, this.fit, this.#stage());
    this.#place();
  }

  #move(dx, dy) {
    this.view = moved(this.view, dx, dy, this.fit, this.#stage());
    this.#place();
  }

  #stage() {
    return { width: this.frame.clientWidth || 1, height: this.frame.clientHeight || 1 };
  }

  #divideAt(point) {
    this.#divide(point.x / this.#stage().width + 0.5);
  }

  #divide(part) {
    this.divided = Math.min(1, Math.max(0, part));
    this.slider.value = String(Math.round(100 * this.divided));
    this.#place();
  }

  #place() {
    const stage = this.#stage();
    this.fit = fitted(this.size, stage);
    const width = this.fit.width * this.view.scale;
    const height = this.fit.height * this.view.scale;
    const transform = `translate(calc(-50% + ${this.view.x}px), calc(-50% + ${this.view.y}px))`;
    for (const one of [this.lower, this.upper]) {
      Object.assign(one.style, { width: `${width}px`, height: `${height}px`, transform });
      // Noise is judged by single pixels, which the browser would smooth away.
      one.classList.toggle("pixelated", width > 2 * this.size.width);
    }
    // The line is in the frame, the clip in the picture, which may begin left of it.
    const left = stage.width / 2 + this.view.x - width / 2;
    const clip = Math.min(width, Math.max(0, this.divided * stage.width - left));
    this.upper.style.clipPath = `inset(0 ${width - clip}px 0 0)`;
    this.line.style.left = `${100 * this.divided}%`;
  }
}
