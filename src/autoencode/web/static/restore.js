// Restore: a picture and its reconstruction, with a movable line between before and after.

import { get, query, restarting } from "./api.js";
import { field, h, keepingFocus, select, showFailure, announce } from "./dom.js";
import { choosing, dropzone, image, shortName } from "./pictures.js";
import { hasImages, workspace } from "./shared.js";

export function mount(root) {
  const trained = workspace.corrupt[0] ?? "";
  const damages = [["", "none"], ...workspace.corruptions];
  if (!damages.some(([key]) => key === trained)) damages.push([trained, `${trained}, as in training`]);
  const state = { picture: null, clean: null, corrupt: trained };
  const place = h("div");
  const use = ([picture]) => {
    location.hash = `#restore?picture=${picture.id}`;
  };

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
    const rows = [
      found.seen_psnr_db !== null && ["PSNR before", decibels(found.seen_psnr_db)],
      ["PSNR after", decibels(found.psnr_db)],
      ["SSIM after", found.ssim === null ? "–" : found.ssim.toFixed(3)],
    ].filter(Boolean);
    return h(
      "div",
      {},
      h("table", { class: "settings" }, rows.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))),
      h("p", { class: "hint" }, `Compared with ${against}. Higher is better.`),
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
