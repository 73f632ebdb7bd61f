// Restore: a picture before and after, with a movable line between: at its full size, or through a model's code.

import { asked, parsed, remember, written } from "./address.js";
import { get, query, restarting, waitFor } from "./api.js";
import { field, h, keepingFocus, number, progressBar, sayIgnored, select, showFailure, announce } from "./dom.js";
import { choosing, dropzone, image, original, shortName } from "./pictures.js";
import { hasImages, lacks, workspace } from "./shared.js";
import { FITTING, fitted, moved, zoomed } from "./zoom.js";

export function mount(root) {
  if (lacks("code")) return mountWhole(root, addressOf("whole", "whole"));
  // A model that was trained to remove damage is here to be tried.
  const usual = workspace.corrupt.length ? "code" : "whole";
  const kinds = [["whole", "at full size, by a restorer"], ["code", "through the code of the model"]];
  const places = { whole: h("div"), code: h("div") };
  const choice = (own) => {
    const made = select(kinds, own, (value) => {
      made.value = own; // this one is shown with its own kind alone
      addressOf(value, usual).open(parsed(location.hash).params.get("picture") ?? "");
    });
    return field("Restored", made);
  };
  const views = {
    whole: mountWhole(places.whole, addressOf("whole", usual), choice("whole")),
    code: mountCode(places.code, addressOf("code", usual), choice("code")),
  };
  let by = usual;
  root.append(places.whole, places.code);
  return {
    take: (pictures) => views[by].take(pictures),
    show(params) {
      const { state, wrong } = asked(params, { by: usual }, { by: Object.keys(views) });
      sayIgnored(wrong);
      by = state.by;
      for (const [name, place] of Object.entries(places)) place.hidden = name !== by;
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
    const sides = comparison(`/api/restore/seen?${query(values)}`, `/api/restore/restored?${query(values)}`);
    const heading = h("h2", { tabindex: "-1" }, shortName(state.picture));
    const about = h("div", {}, heading, numbers(found), cleanChoice());
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

  function numbers(found) {
    const against = state.clean ? shortName(state.clean) : state.corrupt ? "the image before the damage" : "the image itself";
    const isDamaged = Boolean(state.clean || state.corrupt); // otherwise nothing was before
    const rows = [
      found.seen_psnr_db !== null && ["PSNR before", decibels(found.seen_psnr_db)],
      [isDamaged ? "PSNR after" : "PSNR", decibels(found.psnr_db)],
      [isDamaged ? "SSIM after" : "SSIM", found.ssim === null ? "–" : found.ssim.toFixed(3)],
    ].filter(Boolean);
    return h(
      "div",
      {},
      h("table", { class: "settings" }, rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))),
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

/** Two pictures on top of each other, divided by a movable line. */
function comparison(before, after) {
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
    "aria-label": "Share of the picture shown as before",
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

/** Pictures at their full size, by a restorer: before and after under one line, which can be zoomed. */
function mountWhole(root, address, choice) {
  const state = { picture: null, amount: 1 };
  const place = h("div", { class: "whole-place" });
  const facts = h("div", { class: "restore-facts" });
  let drawn = null;
  const use = ([picture]) => address.open(picture.id);

  const draw = restarting(async (signal) => {
    if (!state.picture) return;
    const values = query({ picture: state.picture.id, amount: state.amount });
    const bar = progressBar("restoring");
    facts.replaceChildren(bar);
    // Another strength of the same picture is compared with the last; another picture is not.
    if (drawn !== state.picture.id) place.replaceChildren(h("div", { class: "comparison large" }, h("div", { class: "frame" }, Object.assign(original(state.picture, 1280), { loading: "eager", className: "waiting" }))));
    drawn = state.picture.id;
    const found = await waitFor(`/api/restore/whole?${values}`, bar.update, signal);
    const url = (side) => `/api/restore/whole/${side}?${values}`;
    const stage = new Comparison(url("before"), url("after"), found);
    place.replaceChildren(stage.element);
    facts.replaceChildren(
      h("h2", { tabindex: "-1" }, shortName(state.picture)),
      h("p", { class: "hint" }, `${number(found.width)} × ${number(found.height)} pixels. Removed: ${(100 * found.removed_rms).toFixed(1)} % of the range of values.`),
      h("a", { class: "button primary", href: url("file"), download: "" }, "Save the restored file"),
      h("p", { class: "hint" }, "Wheel or pinch zooms, a drag beside the line moves."),
    );
    announce(`${shortName(state.picture)} restored.`);
  });
  const redraw = () => draw().catch((err) => showFailure(err, facts));
  const choose = choosing((picture) => {
    state.picture = picture;
    redraw();
  }, (err) => showFailure(err, facts));
  const amount = h("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.05,
    value: 1,
    onchange: () => {
      state.amount = Number(amount.value);
      redraw();
    },
  });
  root.append(
    h("p", { class: "lead" }, "A picture at its full size, before and after noise is taken out of it."),
    h("div", { class: "toolbar" }, dropzone(use, { label: "Choose an image" }), field("Strength", amount), choice),
    h("div", { class: "restore-whole" }, place, facts),
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

/** Two pictures of one size over each other, divided by a line that follows the mouse; zoomed together. */
class Comparison {
  constructor(before, after, size) {
    this.size = size;
    this.view = FITTING;
    this.share = 0.5;
    this.upper = h("img", { class: "upper", src: before, alt: "before", draggable: "false" });
    this.lower = h("img", { src: after, alt: "after", draggable: "false" });
    this.line = h("span", { class: "line" });
    this.slider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Share of the picture shown as before", oninput: () => this.#divide(Number(this.slider.value) / 100) });
    const zoom = (text, label, factor) => h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick: () => this.zoom(factor) }, text);
    this.frame = h("div", { class: "frame" }, this.lower, this.upper, this.line);
    this.element = h("div", { class: "comparison large" }, this.frame, h("div", { class: "row" }, h("span", { class: "hint" }, "before"), this.slider, h("span", { class: "hint" }, "after"), zoom("−", "Zoom out", 1 / 1.6), zoom("+", "Zoom in", 1.6)));
    this.frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * 0.002), this.#point(event));
    }, { passive: false });
    this.frame.addEventListener("pointerdown", (event) => {
      this.frame.setPointerCapture(event.pointerId);
      const box = this.frame.getBoundingClientRect();
      // Near the line the press takes the line, elsewhere the picture.
      this.isLine = this.view.scale === 1 || Math.abs(event.clientX - box.left - this.share * box.width) < 30;
      this.last = this.#point(event);
      if (this.isLine) this.#drag(event);
    });
    this.frame.addEventListener("pointermove", (event) => this.frame.hasPointerCapture(event.pointerId) && this.#drag(event));
    new ResizeObserver(() => this.#place()).observe(this.frame);
  }

  zoom(factor, point = { x: 0, y: 0 }) {
    this.view = zoomed(this.view, factor, point, this.fit, this.#stage());
    this.#place();
  }

  #stage() {
    return { width: this.frame.clientWidth || 1, height: this.frame.clientHeight || 1 };
  }

  #point(event) {
    const box = this.frame.getBoundingClientRect();
    return { x: event.clientX - box.left - box.width / 2, y: event.clientY - box.top - box.height / 2 };
  }

  #drag(event) {
    const point = this.#point(event);
    if (this.isLine) this.#divide(point.x / this.frame.clientWidth + 0.5);
    else {
      this.view = moved(this.view, point.x - this.last.x, point.y - this.last.y, this.fit, this.#stage());
      this.#place();
    }
    this.last = point;
  }

  #divide(share) {
    this.share = Math.min(1, Math.max(0, share));
    this.slider.value = String(Math.round(100 * this.share));
    this.#place();
  }

  #place() {
    const stage = this.#stage();
    this.fit = fitted(this.size, stage);
    const [width, height] = [this.fit.width * this.view.scale, this.fit.height * this.view.scale];
    for (const one of [this.lower, this.upper]) {
      Object.assign(one.style, { width: `${width}px`, height: `${height}px`, transform: `translate(calc(-50% + ${this.view.x}px), calc(-50% + ${this.view.y}px))` });
    }
    // The line is in the frame, the clip in the picture, which may begin left of it.
    const left = stage.width / 2 + this.view.x - width / 2;
    const clip = Math.min(width, Math.max(0, this.share * stage.width - left));
    this.upper.style.clipPath = `inset(0 ${width - clip}px 0 0)`;
    this.line.style.left = `${100 * this.share}%`;
  }
}
